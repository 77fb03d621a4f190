"""On a GPU: the kernel and the network give the results of a CPU."""

import pytest
import torch
from sets import data_sets

from lensml.lensing.normal_equations import _gauss_newton_rows, _kernels, gauss_newton_terms
from lensml.network import load_network, predict_event

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
GPU = torch.device("cuda")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("blended", [False, True])
@pytest.mark.parametrize("shared", [False, True])
def test_the_kernel_sums_what_torch_sums(dtype, blended, shared):
    assert _kernels(GPU) is not None
    torch.manual_seed(0)
    rows, n = 37, 613
    uniform = torch.rand(rows, 4, dtype=torch.float64, device=GPU)
    low, wide = uniform.new_tensor([-20, -2, 2, 0.1]), uniform.new_tensor([40, 2, 2, 0.9])
    theta = low + wide * uniform
    times = torch.rand(1 if shared else rows, n, dtype=torch.float64, device=GPU).sort(1)[0]
    data, root = torch.rand(2, rows, n, dtype=torch.float64, device=GPU) + 0.1
    for weight in (root, None):
        exact = _gauss_newton_rows(theta, 200 * times - 100, data, weight, blended)
        arguments = [None if x is None else x.to(dtype) for x in (200 * times - 100, data, weight)]
        got = gauss_newton_terms(theta.to(dtype), *arguments, blended)
        assert got.dtype == dtype
        error = (got.double() - exact).norm() / exact.norm()
        assert error < (1e-5 if dtype == torch.float32 else 1e-13)


def test_the_network_is_the_same_on_both():
    datasets, network = data_sets(3, 200), load_network()[0]
    on_cpu = predict_event(network, datasets).logits.softmax(1)
    on_gpu = predict_event(network.to(GPU), datasets).logits.softmax(1)
    torch.testing.assert_close(on_gpu, on_cpu, rtol=0, atol=1e-3, equal_nan=True)
