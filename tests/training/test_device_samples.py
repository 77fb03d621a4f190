"""Samples made by kernels: those that a CPU cuts from the same rows at the same epochs."""

import numpy as np
import pytest
import torch

from lensml.network import DataSetEpochs
from lensml.simulation import Survey, draw_torch, observe
from lensml.training.device_samples import (
    cut_on_device,
    draw_epochs,
    observe_pairs,
    samples_at,
)
from lensml.training.samples import Observation, cut_samples, log_ratio_terms

pytest.importorskip("triton")
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
NUM, SIGMA = 32, 0.05
SURVEY = Survey(num_epochs=NUM, window=(-40.0, 40.0), sigma=SIGMA, missing_fraction=0.3)
TIMES = torch.linspace(-40, 40, NUM, dtype=torch.float64)
SECOND, FREE, BEGINS = (2, 1, 0), (True, False, False), -30.0  # the last is a contaminant


def noise_free(num=3):
    """Pairs (num, 2, T): a lens, and the same with a bump."""
    u = torch.hypot(torch.linspace(0.2, 0.6, num)[:, None], TIMES / 15)
    lens = -2.5 * torch.log10((u**2 + 2) / (u * torch.sqrt(u**2 + 4)))
    bump = -0.3 * torch.exp(-(((TIMES - 10) / 4) ** 2))
    return torch.stack([lens, lens + bump], dim=1).float()


def observed(survey=SURVEY, sigma=None, values=None, seed=0):
    values = noise_free() if values is None else values
    return observe_pairs(
        values.to(DEVICE), sigma, torch.tensor(SECOND, device=DEVICE),
        torch.tensor(FREE, device=DEVICE), torch.full((3,), BEGINS, device=DEVICE),
        TIMES.to(DEVICE), survey, torch.Generator(DEVICE).manual_seed(seed),
    )  # fmt: skip


@pytest.fixture(scope="module")
def rows():
    return observed()


class Drawn:
    """In place of a generator: draws that lead to given epochs after the first refit."""

    def __init__(self, epochs, total):
        self.values = iter([np.ones(len(epochs)), (np.array(epochs) - 7 + 0.5) / (total - 7)])

    def random(self, count):
        return next(self.values)


def test_a_contaminant_counts_without_its_single_lens(rows):
    assert rows.labels.tolist() == [0, 2, 0, 1, 0] and rows.of_pair.tolist() == [2, 2, 1, 1, 0]
    assert rows.exact.all() and rows.events.free.tolist() == [1, 1, 0, 0, 0]


def test_samples_are_those_of_a_cpu(rows):
    draws = draw_torch(3, NUM, torch.Generator(DEVICE).manual_seed(0), outliers=False)
    clean = noise_free().flatten(0, 1)
    columns = observe(clean.to(DEVICE), draws, SURVEY, TIMES.to(DEVICE))
    delta, sigma, seen = (x.cpu().numpy() for x in columns)
    total = rows.events.total.tolist()
    epochs = [[7, 9, n - 4, n - 1] for n in total]
    samples = samples_at(rows, torch.arange(5, device=DEVICE), torch.tensor(epochs, device=DEVICE))
    for place, row in enumerate((0, 1, 2, 3, 5)):
        on = np.flatnonzero(seen[row])
        assert len(on) == total[place]
        assert int(rows.begins[place]) == (TIMES.numpy()[on] < BEGINS).sum()
        mag, noise = delta[row, on].astype(float), sigma[row, on].astype(float)
        one, two = (clean[row - row % 2 + k].numpy()[on].astype(float) for k in (0, 1))
        ratio = np.cumsum(log_ratio_terms(mag, one, two, noise, noise))
        data = DataSetEpochs(TIMES.numpy()[on], mag, noise, 0.0, True)
        label, of_pair = int(rows.labels[place]), int(rows.of_pair[place])
        event = Observation([data], FREE[row // 2], data.times, ratio, -np.inf)
        expected = cut_samples(event, label, of_pair, 4, Drawn(epochs[place], len(on)))
        for name, mine, theirs in zip(samples._fields, samples, expected, strict=True):
            mine = mine[4 * place : 4 * place + 4].float().cpu().numpy()
            np.testing.assert_allclose(mine, theirs.astype(float), atol=0.02, err_msg=name)


def test_epochs_are_drawn_where_a_cpu_draws_them(rows):
    generator = torch.Generator(DEVICE).manual_seed(1)
    kept, epochs = draw_epochs(rows, 4000, generator, last=True)
    total, begins = rows.events.total[kept], rows.begins[kept]
    assert kept.tolist() == list(range(5)) and (epochs[:, -1] == total - 1).all()
    assert (epochs >= 7).all() and (epochs < total[:, None]).all()
    early = (epochs < torch.maximum(begins, begins * 0 + 7)[:, None]).float().mean(1)
    low = (begins - 7).clamp_min(0) / (total - 7)
    assert torch.allclose(early, 0.25 * low, atol=0.03)


def test_a_generator_of_one_seed_gives_the_same_rows():
    few = observed(seed=4)
    again = observed(seed=4)
    other = observed(seed=5)
    assert torch.equal(few.events.bright, again.events.bright)
    assert not torch.equal(few.events.bright[:, :5], other.events.bright[:, :5])


def test_what_was_observed_before_stays_and_its_target_is_the_label():
    values = noise_free()
    values[:, :, 20:] = torch.nan
    rows = observed(sigma=torch.full_like(values, SIGMA).to(DEVICE), values=values)
    assert rows.events.total.tolist() == [20] * 5 and not rows.of_pair.any()
    torch.testing.assert_close(rows.events.bright[0].cpu(), -values[0, 0, :20])
    samples = cut_on_device(rows, 1, torch.Generator(DEVICE).manual_seed(0), last=True)
    assert torch.equal(samples.targets.argmax(1), rows.labels) and samples.held.tolist() == [4] * 5
