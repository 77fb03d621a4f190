"""One more epoch of many events as a function of tensors: what the stream runs and exports.

Axes: B events, C channels, F features, K tokens of the past, N lags. An epoch completes `depth`
levels of the pyramid; at depth 0 the stem and the head run alone. Nothing here is in place: what
goes in is what was remembered, and what comes out is what must be written over it.
"""

from math import log, log10
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lensml.network import (
    BIN_WIDTHS,
    FEATURE_WINDOW,
    NUM_INNOVATIONS,
    PATCH_SIZE,
    PHASE_BINS,
    CausalBlock,
    Network,
)

__all__ = [
    "Array",
    "BINS",
    "LAGS",
    "Opinions",
    "RECENT",
    "Step",
    "bin_sums",
    "depth_of",
    "latest_features",
    "library",
    "moved_sums",
]

RECENT = FEATURE_WINDOW - 1  # epochs, the present one included, that the averages reach
BINS = 4  # averages of each width, one behind the other
WIDE = BIN_WIDTHS[1:]  # a width of one epoch needs no sum
EDGES = [[k * width for k in range(BINS + 1)] for width in WIDE]
LAGS = sorted({*range(BINS), *sum(EDGES, [])})  # epochs back that an update looks at
ENTER = [[LAGS.index(lag) for lag in edges[:-1]] for edges in EDGES]
LEAVE = [[LAGS.index(lag) for lag in edges[1:]] for edges in EDGES]
LN10 = log(10)
Array = NDArray | Tensor


def depth_of(count: int, num_levels: int) -> int:
    """Levels of the pyramid that the epoch number `count` (from 1) completes."""
    groups, rest = divmod(count, PATCH_SIZE)
    return 0 if rest else min((groups & -groups).bit_length(), num_levels)


def library(x: Array):
    """The library whose functions take `x`: these few have the same names in both."""
    return torch if isinstance(x, Tensor) else np


def bin_sums(recent: Array) -> Array:
    """Sums over BINS bins of each wide width, newest first: (B, 3, RECENT) -> (B, 3, widths, 4)."""
    xp = library(recent)
    bins = [recent[:, :, -BINS * w :].reshape(-1, 3, BINS, w).sum(3) for w in WIDE]
    return xp.stack(bins, axis=2)[..., list(reversed(range(BINS)))]


def moved_sums(sums: Array, lagged: Array) -> Array:
    """`bin_sums` after one more epoch, from those before it and the epochs (B, 3, N) at LAGS."""
    return sums + lagged[:, :, ENTER] - lagged[:, :, LEAVE]


def latest_features(lagged: Array, sums: Array, count: Array, widths: Array) -> Array:
    """Features of the last epoch alone, equal to `encode(...)[:, -1]` of the whole past.

    Arrays of numpy or of torch: single events call for the one, a GPU for the other.

    Args:
        lagged: Of the epochs at LAGS back: weight 1 / sigma^2 (0 before the first epoch), weight
            times brightening, and weight times time since any epoch near, (B, 3, N) float64.
        sums: `bin_sums` of the same, the last epoch included, (B, 3, widths, 4) float64.
        count: Epochs seen, the last one included, (B,) int64.
        widths: WIDTHS.

    Returns:
        Features, (B, F) float64.
    """
    xp = library(lagged)
    bins = xp.concatenate([lagged[:, :, None, :BINS], sums], axis=2)  # (B, 3, widths, 4)
    variance = 1 / bins[:, 0]
    means = bins[:, 1:] * variance[:, None]
    (m0, m1, m2, m3), (v0, v1, v2, v3) = _last_axis(means[:, 0]), _last_axis(variance)
    when = means[:, 1]
    t1, t2, t3 = _last_axis(when[..., :1] - when[..., 1:])  # distance back in time
    t21, t31, t32 = t2 - t1, t3 - t1, t3 - t2
    r = t1 / t21
    linear = (m0 - m1 - (m1 - m2) * r) / xp.sqrt(v0 + (1 + r) ** 2 * v1 + r * r * v2)
    c1, c2, c3 = t2 * t3 / (t21 * t31), -t1 * t3 / (t21 * t32), t1 * t2 / (t31 * t32)
    scatter = xp.sqrt(v0 + c1 * c1 * v1 + c2 * c2 * v2 + c3 * c3 * v3)
    parabolic = (m0 - c1 * m1 - c2 * m2 - c3 * m3) / scatter
    seen = count[:, None]
    linear = xp.where(seen >= 3 * widths, linear, 0.0)
    parabolic = xp.where(seen >= 4 * widths, parabolic, 0.0)
    surprises = xp.stack([linear, parabolic], axis=2).reshape(len(seen), -1)
    noise = m0 / xp.sqrt(v0)
    # The first width is one epoch: its mean is the brightening, its noise that over sigma.
    squashed = xp.arcsinh(xp.concatenate([noise[:, :1], surprises, noise[:, 2:]], axis=1))
    b = m0[:, :1]
    amplitude = xp.exp(b.clip(0.005, 8.0) * (0.4 * LN10))
    root = xp.sqrt(amplitude * amplitude - 1)
    step = xp.where(seen > 1, t1[:, :1], 1.0).clip(1e-4, 1e3)
    logs = xp.log(xp.concatenate([v0[:, :1], step, (amplitude + root) * root], axis=1))
    last = 1 + 2 * len(BIN_WIDTHS)
    columns = [
        b.clip(-3, 8) / 2,
        squashed[:, :1] / 3,
        logs[:, :2] * (0.5 / LN10),
        (log(2) - logs[:, 2:]) / 4,
        squashed[:, 1:last] / 2,
        squashed[:, last:] / 4,
    ]
    features = xp.concatenate(columns, axis=1)
    features[:, 2] -= log10(0.03)
    return xp.where(xp.isfinite(features), features, 0.0)


def _last_axis(x: Array) -> list[Array]:
    return [x[..., k] for k in range(x.shape[-1])]


class _Block(NamedTuple):
    """Weights of a `CausalBlock`, its convolution split into past and present."""

    norm: nn.LayerNorm
    earlier: Tensor  # (2 C, C), of the two tokens of the past
    now: Tensor  # (C, C)
    bias: Tensor
    mix: Tensor
    mix_bias: Tensor


def _split(block: CausalBlock) -> _Block:
    weight = block.conv.weight.detach().T
    channels = weight.shape[1]
    return _Block(
        block.norm,
        weight[: 2 * channels].contiguous(),
        weight[2 * channels :].contiguous(),
        block.conv.bias.detach(),
        block.mix.weight.detach().T.contiguous(),
        block.mix.bias.detach(),
    )


def _normed(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    return torch.layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, norm.eps)


def _apply(block: _Block, x: Tensor, past: Tensor) -> tuple[Tensor, Tensor]:
    """A block at one token (B, C) behind two of its past (B, 2 C): output and normed input."""
    normed = _normed(block.norm, x)
    hidden = torch.addmm(block.bias, past, block.earlier).addmm_(normed, block.now).relu_()
    return torch.addmm(block.mix_bias, hidden, block.mix).add_(x), normed


class Step(nn.Module):
    """One epoch of B events; each completes as many levels as its state is handed in for.

    Rows are in falling order of depth, so that those which complete a level are the first ones.
    """

    # Matrix products of fewer rows take other roads through the library and round otherwise; with
    # at least this many, an event's answer does not depend on who shares its batch.
    min_rows = 4

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network
        self.stem = [_split(block) for block in network.stem]
        self.encoder = [[_split(block) for block in level] for level in network.encoder]
        self.decoder = [[_split(block) for block in level] for level in network.decoder]

    def forward(
        self,
        features: Tensor,
        near: Tensor,
        context: Tensor,
        *levels: Tensor,
        rows: list[int] | None = None,
    ) -> tuple[Tensor, ...]:
        """Take one epoch.

        Args:
            features: (B, F); for a network with refits, behind them NUM_RESIDUALS of the epoch
                against the fit in force and what the last refit adds in the head, (B, F + . + C).
            near: For each block of the stem two tokens of its past, then the PATCH - 1 epochs
                before this one, (B, K, C).
            context: What the finest level last sent down, (B, C).
            *levels: For each completed level the past of its blocks, two tokens each, then its
                own last token and what the coarser one last sent down (the coarsest has neither),
                (B_k, K, C) with B_k <= B rows, never rising.
            rows: How many rows of each level count, the others being padding; None = all.

        Returns:
            P(binary) (B,); new tokens of the stem (B, K', C): of each block, and the epoch itself;
            then for each level new tokens (B_k, K', C), likewise, and what it sends down (B_k, C).
        """
        network, past = self.network, near.flatten(1)
        num, embedding = network.config.num_features, None
        x, written = network.embed(features[:, :num]), []
        if network.config.embedding_channels:
            own, embedding = (
                features[:, num : num + NUM_INNOVATIONS],
                features[:, num + NUM_INNOVATIONS :],
            )
            x = x + network.embed_innovations(own)
        width = 2 * x.shape[1]
        for k, block in enumerate(self.stem):
            x, normed = _apply(block, x, past[:, k * width : (k + 1) * width])
            written.append(normed)
        after = []
        if levels:
            n, downsample = levels[0].shape[0], network.downsample[0]
            group = torch.cat([past[:n, len(self.stem) * width :], x[:n]], dim=1)
            after = self._level(
                0, torch.addmm(downsample.bias, group, downsample.weight.T), levels, rows
            )
            context = _over(after[1], context, rows and rows[0])
        norm, first, gelu, last = network.head
        hidden = first(_normed(norm, torch.cat([x, context], dim=1)))
        hidden = gelu(hidden if embedding is None else hidden + embedding)
        # A product with one column rounds by the number of rows; this sum does not.
        logit = (hidden * last.weight).sum(1) + last.bias
        return torch.sigmoid(logit), torch.stack([*written, x], dim=1), *after

    def _level(
        self, k: int, x: Tensor, levels: tuple[Tensor, ...], rows: list[int] | None
    ) -> list[Tensor]:
        """Down, through the coarser level where it has a new token, and up."""
        network, written, after = self.network, [], []
        past, width, place = levels[k].flatten(1), 2 * x.shape[1], 0
        for block in self.encoder[k]:
            x, normed = _apply(block, x, past[:, place : place + width])
            place += width
            written.append(normed)
        own = x
        if k + 1 < network.config.num_levels:
            earlier, coarse = past[:, -width:].split(width // 2, dim=1)
            if k + 1 < len(levels):
                n, downsample = levels[k + 1].shape[0], network.downsample[k + 1]
                pair = torch.cat([earlier[:n], x[:n]], dim=1)
                token = torch.addmm(downsample.bias, pair, downsample.weight.T)
                after = self._level(k + 1, token, levels, rows)
                coarse = _over(after[1], coarse, rows and rows[k + 1])
            x = x + coarse
        for block in self.decoder[k]:
            x, normed = _apply(block, x, past[:, place : place + width])
            place += width
            written.append(normed)
        if k + 1 < network.config.num_levels:
            written.append(own)
        sent = network.upsample[k - 1](x) if k else x
        return [torch.stack(written, dim=1), sent, *after]


def _over(new: Tensor, old: Tensor, rows: int | None) -> Tensor:
    """The first `rows` of `new`, then what `old` holds behind them; None = all of `new`."""
    return new if rows is None or rows == len(old) else torch.cat([new[:rows], old[rows:]])


class Opinions:
    """`Network.embed_refits` by products of rows, which round alike for any number of events."""

    def __init__(self, network: Network) -> None:
        residual_encoder = network.residual_encoder
        layers = (
            residual_encoder.first,
            residual_encoder.halve,
            residual_encoder.conv2,
            residual_encoder.mix,
            residual_encoder.quarter,
        )
        #: Of each convolution its weights as (taps x C, C'), and its bias.
        self.layers = [
            (x.weight.detach().permute(2, 1, 0).flatten(0, 1).contiguous(), x.bias.detach())
            for x in layers
        ]
        join = residual_encoder.join.weight.detach()
        bins, wide = PHASE_BINS // 8, residual_encoder.quarter.out_channels
        picture = join[:, : bins * wide].unflatten(1, (wide, bins)).transpose(1, 2).flatten(1)
        self.join = torch.cat([picture, join[:, bins * wide :]], dim=1)
        self.residual_encoder, self.project = residual_encoder, network.project

    def __call__(self, maps: Tensor, fit_summary: Tensor) -> Tensor:
        """What refits (R, ., K), (R, S) add in the head, (R, C); what is not finite counts as 0."""
        num = len(maps)
        if num < Step.min_rows:
            filled = torch.arange(Step.min_rows, device=maps.device).clamp_max(num - 1)
            maps, fit_summary = maps[filled], fit_summary[filled]
        summary = self.residual_encoder.fit_summary(fit_summary.nan_to_num())
        x = maps.nan_to_num().transpose(1, 2)
        x = (self._convolved(0, x, 5, 1, 2) + summary[:, None]).relu_()
        x = self._convolved(1, x, 4, 2, 1)
        x = x + self._convolved(3, self._convolved(2, x.relu(), 3, 1, 1).relu_(), 1, 1, 0)
        x = self._convolved(4, x.relu_(), 4, 4, 0).relu_().flatten(1)
        x = torch.addmm(
            self.residual_encoder.join.bias, torch.cat([x, summary], dim=1), self.join.T
        ).relu_()
        return self.project(self.residual_encoder.output(x).relu_())[:num]

    def _convolved(self, layer: int, x: Tensor, width: int, stride: int, pad: int) -> Tensor:
        """A convolution along the bins of rows (R, K, C)."""
        weight, bias = self.layers[layer]
        rows, bins = len(x), x.shape[1] // stride
        x = torch.nn.functional.pad(x, (0, 0, pad, pad)).contiguous()
        taps = x.as_strided(
            (rows, bins, width * x.shape[2]),
            (x.stride(0), stride * x.stride(1), 1),
        )
        return torch.addmm(bias, taps.flatten(0, 1), weight).unflatten(0, (rows, bins))
