"""Causal time-distributed 1-D CNN. Axes: B events, L observed epochs, C channels, F features.

A causal pyramid: a stem at every epoch; patches of 4 epochs become tokens; each further level
merges two tokens of the level below. On the way down a level sees its own past, on the way up it
also hears the last *completed* token of the coarser level. A token is used only once its last
epoch has come, so the logit at epoch k depends on epochs <= k, whatever the length or spacing.
"""

from dataclasses import asdict, dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from lensml.dataset import LightCurves
from lensml.features import NUM_FEATURES, encode, observed_epochs

__all__ = ["Network", "NetworkConfig", "probabilities"]

PATCH = 4  # epochs in a token of the finest level


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """Shape of the network."""

    stem_channels: int = 32
    channels: int = 64
    num_levels: int = 7  # the coarsest token spans 4 x 2^6 = 256 epochs
    blocks_down: int = 2  # at each level
    blocks_up: int = 1
    num_features: int = NUM_FEATURES

    def describe(self) -> dict:
        """Plain values for JSON."""
        return asdict(self)


def delayed(coarse: Tensor, group: int, length: int) -> Tensor:
    """Coarse tokens (B, J, C) as the finer axis may know them, (B, length, C).

    Entry i holds token (i + 1) // group - 1, the last one whose `group` members have all come;
    zeros before the first.
    """
    return F.pad(coarse, (0, 0, 1, 0)).repeat_interleave(group, dim=1)[:, 1 : length + 1]


class CausalBlock(nn.Module):
    """Residual block: a convolution over a token and two of its past, then a mix of channels."""

    def __init__(self, channels: int, dilation: int = 1) -> None:
        super().__init__()
        self.dilation = dilation
        self.norm = nn.LayerNorm(channels)
        self.conv = nn.Linear(3 * channels, channels)  # a width-3 convolution as one product
        self.mix = nn.Linear(channels, channels)

    @property
    def past(self) -> int:
        """Tokens of its own past that a block remembers."""
        return 2 * self.dilation

    def forward(self, x: Tensor) -> Tensor:  # (B, L, C) -> (B, L, C)
        return x + self.step(x, F.pad(self.norm(x), (0, 0, self.past, 0)))

    def step(self, x: Tensor, normed: Tensor) -> Tensor:
        """What is added to `x` (B, L, C), given its normed self behind `past` earlier tokens."""
        length, d = x.shape[1], self.dilation
        taps = [normed[:, k * d : k * d + length] for k in range(3)]
        return self.mix(F.relu(self.conv(torch.cat(taps, dim=2))))


class Network(nn.Module):
    """P(binary) as a logit at every observed epoch."""

    def __init__(self, config: NetworkConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or NetworkConfig()
        stem, c, levels = config.stem_channels, config.channels, config.num_levels
        self.embed = nn.Linear(config.num_features, stem)
        self.stem = nn.ModuleList([CausalBlock(stem), CausalBlock(stem, dilation=2)])
        self.merge = nn.ModuleList(
            [nn.Linear(PATCH * stem, c), *(nn.Linear(2 * c, c) for _ in range(levels - 1))]
        )
        self.down = nn.ModuleList(
            nn.ModuleList(CausalBlock(c) for _ in range(config.blocks_down)) for _ in range(levels)
        )
        self.lift = nn.ModuleList(nn.Linear(c, c) for _ in range(levels - 1))
        self.up = nn.ModuleList(
            nn.ModuleList(CausalBlock(c) for _ in range(config.blocks_up)) for _ in range(levels)
        )
        self.head = nn.Sequential(
            nn.LayerNorm(stem + c), nn.Linear(stem + c, c), nn.GELU("tanh"), nn.Linear(c, 1)
        )
        for block in self.modules():
            if isinstance(block, CausalBlock):
                nn.init.zeros_(block.mix.weight)  # each block begins as the identity
        nn.init.zeros_(self.head[-1].weight)  # P = 0.5 everywhere at the start
        nn.init.zeros_(self.head[-1].bias)

    @property
    def num_parameters(self) -> int:
        """Trainable parameters."""
        return sum(p.numel() for p in self.parameters())

    def forward(self, features: Tensor) -> Tensor:  # (B, L, F) -> (B, L)
        length = features.shape[1]
        x = self.embed(features)
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
                levels[k] = levels[k] + delayed(self.lift[k](levels[k + 1]), 2, levels[k].shape[1])
            for block in self.up[k]:
                levels[k] = block(levels[k])
        context = delayed(levels[0], PATCH, length)
        return self.head(torch.cat([x, context], dim=2)).squeeze(2)

    def _merge(self, x: Tensor, level: int) -> Tensor:
        """Join complete groups of tokens (B, L, C) -> (B, L // group, C'); a begun group waits."""
        group = PATCH if level == 0 else 2
        whole = x.shape[1] // group
        return self.merge[level](x[:, : whole * group].reshape(len(x), whole, group * x.shape[2]))


@torch.no_grad()
def probabilities(
    network: Network,
    curves: LightCurves,
    *,
    batch_size: int = 256,
    device: str | torch.device | None = None,
    progress: bool = False,
) -> NDArray[np.float32]:
    """P(binary) at every epoch of every curve, in float32 without TF32 or autocast.

    Args:
        network: The classifier; moved to `device` if one is given.
        curves: Light curves; `X` is used as it is.
        batch_size: Curves at a time.
        device: Where to compute; None = where the network is.
        progress: Whether to show a bar.

    Returns:
        Array (n, T), NaN where an epoch was not observed. Entry k depends on epochs <= k only.
    """
    if device is not None:
        network = network.to(device)
    device = next(network.parameters()).device
    network.eval()
    times, sigmas = curves.times(), curves.sigmas()
    result = np.full(curves.X.shape, np.nan, dtype=np.float32)
    for first in tqdm(range(0, len(curves), batch_size), "classify", disable=not progress):
        rows = slice(first, first + batch_size)
        observed = observed_epochs(
            curves.X[rows], sigmas[rows], times[rows], curves.m_base[rows], device
        )
        p = torch.sigmoid(network(encode(observed))).cpu().numpy()
        row, column = np.nonzero(observed.valid.cpu().numpy())
        result[first + row, observed.index.cpu().numpy()[row, column]] = p[row, column]
    return result
