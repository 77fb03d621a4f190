"""Put the kernels into `lensml` as of commit b93ca74, and take them out again.

`install()` once, then `use("refits", "exact", "block", "expert", "head")` switches these on and all
others off:

    refits  refits of training (`quick`, float32), residual maps and residuals by kernels
    exact   the same in float64, for validation and evaluation
    block   causal blocks                             only under autocast on a GPU,
    expert  the encoder of residual maps as products  hence in training alone
    head    the head of the network
"""

import random

import torch
import torch.nn.functional as F

from kernels import block as block_kernels
from kernels import expert as expert_rows
from kernels import head as head_kernels
from kernels import maps as map_kernels
from kernels import refits as refit_kernels
from lensml import loop, model, unexplained
from lensml.features import Observed
from lensml.model import CausalBlock, Expert, Network
from lensml.refit import KEEP, schedule
from lensml.unexplained import SPARED, TRAINED, Refits

__all__ = ["ALL", "fused_refits", "install", "use"]

ALL = ("refits", "exact", "block", "expert", "head")
ON: set[str] = set()
PLAIN = {
    "refit_curves": unexplained.refit_curves,
    "block": CausalBlock.forward,
    "expert": Expert.forward,
    "network": Network.forward,
}


def use(*names: str) -> None:
    """Switch these on, all others off."""
    if unknown := set(names) - set(ALL):
        raise ValueError(f"{sorted(unknown)} are none of {ALL}")
    ON.clear()
    ON.update(names)


def _trained(x: torch.Tensor) -> bool:
    return x.is_cuda and torch.is_autocast_enabled("cuda")


@torch.no_grad()
def fused_refits(observed: Observed, counts: list[int], blended: torch.Tensor) -> Refits:
    """`unexplained._refit_curves` by kernels, in the kind of `observed.times`."""
    rows, length = observed.valid.shape
    if length > KEEP:
        raise ValueError(f"{length} epochs, but refits reach {KEEP}: use the plain code")
    device, kind = observed.valid.device, observed.times.dtype
    times, bright, root = (
        F.pad(x.to(kind), (0, -length % refit_kernels.BIN_EPOCHS)).contiguous()
        for x in (
            observed.times,
            observed.brightening,
            observed.valid / observed.sigma.to(kind).clamp_min(1e-3),
        )
    )
    own = observed.valid.sum(1).to(torch.int32)
    ends = torch.tensor(counts, dtype=torch.int32).to(device, non_blocking=True)
    given = times, bright, root, own, ends
    theta, covariance = refit_kernels.refit_all(*given, blended)
    images, scalars = map_kernels.maps(*given, blended, theta, covariance)
    out = map_kernels.residuals(*given, theta, covariance)
    epochs = torch.arange(1, length + 1, dtype=torch.int32, device=device)
    in_force = torch.searchsorted(ends, epochs, right=True)
    return Refits(
        out[:, :length].nan_to_num_(0.0, 0.0, 0.0),
        images.nan_to_num_(),
        scalars.nan_to_num_(),
        in_force.expand(rows, -1),
    )


def refit_curves(observed: Observed, quick: int | None = None, blended=True) -> Refits:
    """`unexplained.refit_curves`, by kernels where they are switched on."""
    name = "exact" if quick is None else "refits"
    if name not in ON or not observed.valid.is_cuda or observed.valid.shape[1] > KEEP:
        return PLAIN["refit_curves"](observed, quick, blended)
    blended = torch.as_tensor(blended, device=observed.valid.device).expand(len(observed.valid))
    counts = schedule(observed.valid.shape[1])
    if quick is not None:
        chooser = random.Random(quick)
        counts = [n for n in counts if n <= SPARED or chooser.random() < TRAINED]
        times = observed.times - observed.times[:, :1]
        observed = observed._replace(times=times.float())
    return fused_refits(observed, counts, blended)


def block_forward(self: CausalBlock, x: torch.Tensor) -> torch.Tensor:
    """`CausalBlock.forward`, by kernels in training."""
    if "block" in ON and _trained(x) and x.is_contiguous():
        return block_kernels.forward(self, x)
    return PLAIN["block"](self, x)


def expert_forward(self: Expert, images: torch.Tensor, scalars: torch.Tensor) -> torch.Tensor:
    """`Expert.forward`, as products in training."""
    if "expert" in ON and _trained(images):
        return expert_rows.forward(self, images, scalars)
    return PLAIN["expert"](self, images, scalars)


def network_forward(self: Network, features: torch.Tensor, refits: Refits | None = None):
    """`Network.forward` with the head as a kernel; the rest as it stands there."""
    if "head" not in ON or refits is None or not _trained(features):
        return PLAIN["network"](self, features, refits)
    linear, delayed = model._linear, model.delayed
    x = linear(self.embed, features) + linear(self.embed_residuals, refits.residuals)
    for block in self.stem:
        x = block(x)
    levels = [self._merge(x, 0)]
    for k in range(len(self.down)):
        for block in self.down[k]:
            levels[k] = block(levels[k])
        if k + 1 < len(self.down):
            levels.append(self._merge(levels[k], k + 1))
    for k in reversed(range(len(levels))):
        if k < len(self.lift):
            lifted = linear(self.lift[k], levels[k + 1])
            levels[k] = levels[k] + delayed(lifted, 2, levels[k].shape[1])
        for block in self.up[k]:
            levels[k] = block(levels[k])
    rows, num = refits.images.shape[:2]
    said = self.opinions(refits.images.flatten(0, 1), refits.scalars.flatten(0, 1))
    force = torch.cummax(refits.in_force[0], 0).values  # the plain path ends before the padding
    start = torch.searchsorted(force, torch.arange(1, num + 2, device=force.device))
    said = said.unflatten(0, (rows, num)).to(x.dtype)
    return head_kernels.forward(
        self.head, x, levels[0].to(x.dtype), said, force.to(torch.int32), start.to(torch.int32)
    )


def install() -> None:
    """Put the switches in; nothing changes until `use` is called."""
    model.refit_curves = refit_curves
    CausalBlock.forward = block_forward
    Expert.forward = expert_forward
    Network.forward = network_forward
    assert loop.Network is Network
