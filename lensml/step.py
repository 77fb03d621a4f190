"""One more epoch of many events as a function of tensors: what the stream runs and exports.

Axes: B events, C channels, F features, K tokens of the past, N lags. An epoch completes `depth`
levels of the pyramid; at depth 0 the stem and the head run alone. Nothing here is in place: what
goes in is what was remembered, and what comes out is what must be written over it.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from lensml.features import HISTORY, WIDTHS
from lensml.model import PATCH, CausalBlock, Network

__all__ = [
    "BINS",
    "LAGS",
    "MIN_ROWS",
    "RECENT",
    "Step",
    "bin_sums",
    "depth_of",
    "latest_features",
    "moved_sums",
]

RECENT = HISTORY - 1  # epochs, the present one included, that the averages reach
BINS = 4  # averages of each width, one behind the other
WIDE = WIDTHS[1:]  # a width of one epoch needs no sum
ENTER = [[k * width for k in range(BINS)] for width in WIDE]
LEAVE = [[(k + 1) * width for k in range(BINS)] for width in WIDE]
LAGS = sorted({*range(BINS), *sum(ENTER + LEAVE, [])})  # epochs back that an update looks at
# Matrix products of fewer rows take other roads through the library and round otherwise; with at
# least this many, an event's answer does not depend on who shares its batch.
MIN_ROWS = 4


def depth_of(count: int, num_levels: int) -> int:
    """Levels of the pyramid that the epoch number `count` (from 1) completes."""
    groups, rest = divmod(count, PATCH)
    return 0 if rest else min((groups & -groups).bit_length(), num_levels)


def bin_sums(recent: Tensor) -> Tensor:
    """Sums over BINS bins of each wide width, newest first: (B, 3, RECENT) -> (B, 3, widths, 4)."""
    bins = [recent[:, :, -BINS * w :].unflatten(2, (BINS, w)).sum(3).flip(2) for w in WIDE]
    return torch.stack(bins, dim=2)


def moved_sums(sums: Tensor, lagged: Tensor) -> Tensor:
    """`bin_sums` after one more epoch, from those before it and the epochs (B, 3, N) at LAGS."""
    places = {lag: place for place, lag in enumerate(LAGS)}
    enter, leave = ([[places[lag] for lag in row] for row in x] for x in (ENTER, LEAVE))
    return sums + lagged[:, :, enter] - lagged[:, :, leave]


def latest_features(lagged: Tensor, sums: Tensor, count: Tensor) -> Tensor:
    """Features of the last epoch alone, equal to `encode(...)[:, -1]` of the whole past.

    Args:
        lagged: Of the epochs at LAGS back: weight 1 / sigma^2 (0 before the first epoch), weight
            times brightening, and weight times time since any epoch near, (B, 3, N) float64.
        sums: `bin_sums` of the same, the last epoch included, (B, 3, widths, 4) float64.
        count: Epochs seen, the last one included, (B,) int64.

    Returns:
        Features, (B, F) float32.
    """
    w0, wb, wt = torch.cat([lagged[:, :, None, :BINS], sums], dim=2).unbind(1)  # (B, widths, 4)
    variance = 1 / w0
    mean, when = wb * variance, wt * variance
    m0, m1, m2, m3 = mean.unbind(2)
    v0, v1, v2, v3 = variance.unbind(2)
    t1, t2, t3 = (when[:, :, :1] - when[:, :, 1:]).unbind(2)  # distance back in time
    t21, t31, t32 = t2 - t1, t3 - t1, t3 - t2
    r = t1 / t21
    linear = (m0 - m1 - (m1 - m2) * r) * torch.rsqrt(v0 + (1 + r) ** 2 * v1 + r**2 * v2)
    c1, c2, c3 = t2 * t3 / (t21 * t31), -t1 * t3 / (t21 * t32), t1 * t2 / (t31 * t32)
    parabolic = m0 - c1 * m1 - c2 * m2 - c3 * m3
    parabolic = parabolic * torch.rsqrt(v0 + c1**2 * v1 + c2**2 * v2 + c3**2 * v3)
    needed = torch.tensor([[3 * w, 4 * w] for w in WIDTHS], device=count.device)
    surprises = torch.stack([linear, parabolic], dim=2)  # (B, widths, 2)
    surprises = torch.where(count[:, None, None] >= needed, surprises, 0.0).flatten(1)
    noise = m0 * torch.rsqrt(v0)
    # The first width is one epoch: its mean is the brightening, its noise that over sigma.
    squashed = torch.asinh(torch.cat([noise[:, :1], surprises, noise[:, 2:]], dim=1))
    b = m0[:, 0]
    step = torch.where(count > 1, t1[:, 0], 1.0)
    amplitude = torch.exp2(b.clamp(0.005, 8.0) * (0.4 * 3.321928094887362))  # 10 ** (0.4 b)
    root = torch.sqrt(amplitude * amplitude - 1)
    logs = torch.log(torch.stack([v0[:, 0], step.clamp(1e-4, 1e3), (amplitude + root) * root], 1))
    ln10, ln2, ln_sigma0 = 2.302585092994046, 0.6931471805599453, -3.506557897319982
    columns = [
        b[:, None].clamp(-3, 8) / 2,
        squashed[:, :1] / 3,
        (logs[:, :1] / 2 - ln_sigma0) / ln10,
        logs[:, 1:2] / (2 * ln10),
        (ln2 - logs[:, 2:]) / 4,
        squashed[:, 1 : 1 + 2 * len(WIDTHS)] / 2,
        squashed[:, 1 + 2 * len(WIDTHS) :] / 4,
    ]
    return torch.cat(columns, dim=1).float().nan_to_num(0.0, 0.0, 0.0)


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

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network
        self.stem = [_split(block) for block in network.stem]
        self.down = [[_split(block) for block in level] for level in network.down]
        self.up = [[_split(block) for block in level] for level in network.up]

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
            features: (B, F).
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
        x, written = network.embed(features), []
        width = 2 * x.shape[1]
        for k, block in enumerate(self.stem):
            x, normed = _apply(block, x, past[:, k * width : (k + 1) * width])
            written.append(normed)
        after = []
        if levels:
            n, merge = len(levels[0]), network.merge[0]
            group = torch.cat([past[:n, len(self.stem) * width :], x[:n]], dim=1)
            after = self._level(0, torch.addmm(merge.bias, group, merge.weight.T), levels, rows)
            context = _over(after[1], context, rows and rows[0])
        norm, first, gelu, last = network.head
        hidden = gelu(first(_normed(norm, torch.cat([x, context], dim=1))))
        # A product with one column rounds by the number of rows; this sum does not.
        logit = (hidden * last.weight).sum(1) + last.bias
        return torch.sigmoid(logit), torch.stack([*written, x], dim=1), *after

    def _level(
        self, k: int, x: Tensor, levels: tuple[Tensor, ...], rows: list[int] | None
    ) -> list[Tensor]:
        """Down, through the coarser level where it has a new token, and up."""
        network, written, after = self.network, [], []
        past, width, place = levels[k].flatten(1), 2 * x.shape[1], 0
        for block in self.down[k]:
            x, normed = _apply(block, x, past[:, place : place + width])
            place += width
            written.append(normed)
        own = x
        if k + 1 < network.config.num_levels:
            earlier, coarse = past[:, -width:].split(width // 2, dim=1)
            if k + 1 < len(levels):
                n, merge = len(levels[k + 1]), network.merge[k + 1]
                pair = torch.cat([earlier[:n], x[:n]], dim=1)
                token = torch.addmm(merge.bias, pair, merge.weight.T)
                after = self._level(k + 1, token, levels, rows)
                coarse = _over(after[1], coarse, rows and rows[k + 1])
            x = x + coarse
        for block in self.up[k]:
            x, normed = _apply(block, x, past[:, place : place + width])
            place += width
            written.append(normed)
        if k + 1 < network.config.num_levels:
            written.append(own)
        sent = network.lift[k - 1](x) if k else x
        return [torch.stack(written, dim=1), sent, *after]


def _over(new: Tensor, old: Tensor, rows: int | None) -> Tensor:
    """The first `rows` of `new`, then what `old` holds behind them; None = all of `new`."""
    return new if rows is None or rows == len(old) else torch.cat([new[:rows], old[rows:]])
