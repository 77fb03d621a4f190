"""One more epoch of many events as a function of tensors: what the stream runs and exports.

Axes: B events, R epochs of the recent past, C channels, F features, S numbers of state. An epoch
completes `depth` levels of the pyramid; an event at depth 0 runs the stem and the head alone.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lensml.features import HISTORY, WIDTHS
from lensml.model import PATCH, Network

__all__ = ["MIN_ROWS", "RECENT", "Step", "depth_of", "latest_features", "level_width", "near_width"]

RECENT = HISTORY - 1  # epochs, the present one included, that the averages reach
# Matrix products of fewer rows take other roads through the library and round otherwise; with at
# least this many, an event's answer does not depend on who shares its batch.
MIN_ROWS = 4


def depth_of(count: int, num_levels: int) -> int:
    """Levels of the pyramid that the epoch number `count` (from 1) completes."""
    groups, rest = divmod(count, PATCH)
    return 0 if rest else min((groups & -groups).bit_length(), num_levels)


def near_width(network: Network) -> int:
    """Numbers that every epoch of an event reads and writes."""
    stem = network.config.stem_channels
    past = sum(block.past for block in network.stem)
    return (past + PATCH - 1) * stem + network.config.channels


def level_width(network: Network, level: int) -> int:
    """Numbers that a completed token of `level` reads and writes."""
    past = sum(block.past for way in (network.down, network.up) for block in way[level])
    last = level + 1 == network.config.num_levels
    # Its last token, for the coarser level to merge, and what that level last sent down.
    return (past + (0 if last else 2)) * network.config.channels


def latest_features(times: Tensor, weight: Tensor, bright: Tensor, count: Tensor) -> Tensor:
    """Features of the last epoch alone, equal to `encode(...)[:, -1]` of the whole past.

    Sums are taken anew over the epochs they need: nothing accumulates, nothing drifts.

    Args:
        times: The last R = RECENT epochs, (B, R) float64 [day]; anything before the first.
        weight: 1 / sigma^2, (B, R) float32 [mag^-2]; 0 before the first epoch.
        bright: Baseline minus magnitude, (B, R) float32 [mag].
        count: Epochs seen, the last one included, (B,) int64.

    Returns:
        Features, (B, F) float32.
    """
    back = times - times[:, -1:]
    heavy = weight.double()
    sums = torch.stack([heavy, heavy * bright, heavy * back], dim=1)  # (B, 3, R)
    bins = [
        sums[:, :, -4 * width :].unflatten(2, (4, width)).sum(3) if width > 1 else sums[:, :, -4:]
        for width in WIDTHS
    ]
    w0, wb, wt = torch.stack(bins, dim=2).unbind(1)  # (B, widths, 4), the last bin is the present
    (m3, m2, m1, mean), (when3, when2, when1, when) = (wb / w0).unbind(2), (wt / w0).unbind(2)
    v3, v2, v1, variance = (1 / w0).unbind(2)
    t1, t2, t3 = when - when1, when - when2, when - when3
    t21, t31, t32 = t2 - t1, t3 - t1, t3 - t2
    r = t1 / t21
    linear = (mean - m1 - (m1 - m2) * r) / torch.sqrt(variance + (1 + r) ** 2 * v1 + r**2 * v2)
    c1, c2, c3 = t2 * t3 / (t21 * t31), -t1 * t3 / (t21 * t32), t1 * t2 / (t31 * t32)
    scatter = torch.sqrt(variance + c1**2 * v1 + c2**2 * v2 + c3**2 * v3)
    parabolic = (mean - c1 * m1 - c2 * m2 - c3 * m3) / scatter
    surprises = torch.stack([linear, parabolic], dim=2)  # (B, widths, 2)
    needed = torch.tensor([[3 * w, 4 * w] for w in WIDTHS], device=times.device)
    surprises = torch.where(count[:, None, None] >= needed, torch.asinh(surprises) / 2, 0.0)
    noise = torch.asinh(mean[:, 2:] / torch.sqrt(variance[:, 2:])) / 4
    b, sigma = bright[:, -1].double(), torch.rsqrt(heavy[:, -1])
    step = torch.where(count > 1, -back[:, -2], 1.0)
    amplitude = 10 ** (0.4 * b.clamp(0.005, 8.0))
    root = torch.sqrt(amplitude**2 - 1)
    first = [
        b.clamp(-3, 8) / 2,
        torch.asinh(b / sigma) / 3,
        torch.log10(sigma / 0.03),
        torch.log10(step.clamp(1e-4, 1e3)) / 2,
        torch.log(2 / ((amplitude + root) * root)) / 4,
    ]
    features = torch.cat([torch.stack(first, dim=1), surprises.flatten(1), noise], dim=1)
    return features.float().nan_to_num(0.0, 0.0, 0.0)


class Step(nn.Module):
    """One epoch of B events; each completes as many levels as its state is handed in for.

    Rows are in falling order of depth, so that those which complete a level are the first ones.
    """

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(
        self, features: Tensor, near: Tensor, *levels: Tensor, rows: list[int] | None = None
    ) -> tuple[Tensor, ...]:
        """Take one epoch.

        Args:
            features: (B, F).
            near: State that every epoch needs, (B, S).
            *levels: State of each completed level, (B_k, S_k), B_k <= B rows, never rising.
            rows: How many rows of each level count, the others being padding; None = all.

        Returns:
            P(binary) (B,), then `near` and `levels` as they are to be kept.
        """
        network, stem = self.network, self.network.config.stem_channels
        rows = rows or [len(state) for state in levels]
        *pasts, pending, context = near.split(
            [
                *(block.past * stem for block in network.stem),
                (PATCH - 1) * stem,
                network.config.channels,
            ],
            dim=1,
        )
        x, kept = network.embed(features), []
        for block, past in zip(network.stem, pasts, strict=True):
            x, past = self._block(block, x, past)
            kept += past
        group = torch.cat([pending, x], dim=1)
        after = []
        if levels:
            token = network.merge[0](group[: len(levels[0])])
            heard, after = self._level(0, token, levels, rows)
            context = _over(heard, context, rows[0])
        hidden = network.head[:3](torch.cat([x, context], dim=1))
        # A product with one column rounds by the number of rows; this sum does not.
        logit = (hidden * network.head[3].weight).sum(1) + network.head[3].bias
        return torch.sigmoid(logit), torch.cat([*kept, group[:, stem:], context], dim=1), *after

    def _level(
        self, k: int, x: Tensor, levels: tuple[Tensor, ...], rows: list[int]
    ) -> tuple[Tensor, list[Tensor]]:
        """Down, through the coarser level where it has a new token, and up: (B_k, C), states."""
        network, channels = self.network, self.network.config.channels
        state, kept, after = levels[k], [], []
        widths = [block.past * channels for block in (*network.down[k], *network.up[k])]
        *pasts, rest = state.split([*widths, state.shape[1] - sum(widths)], dim=1)
        for block, past in zip(network.down[k], pasts, strict=False):
            x, past = self._block(block, x, past)
            kept += past
        ends = []
        if k + 1 < network.config.num_levels:
            earlier, coarse = rest.split(channels, dim=1)
            ends = [x]
            if k + 1 < len(levels):
                n = len(levels[k + 1])
                token = network.merge[k + 1](torch.cat([earlier[:n], x[:n]], dim=1))
                above, after = self._level(k + 1, token, levels, rows)
                coarse = _over(network.lift[k](above), coarse, rows[k + 1])
            ends.append(coarse)
            x = x + coarse
        for block, past in zip(network.up[k], pasts[len(network.down[k]) :], strict=True):
            x, past = self._block(block, x, past)
            kept += past
        return x, [torch.cat([*kept, *ends], dim=1), *after]

    @staticmethod
    def _block(block: nn.Module, x: Tensor, past: Tensor) -> tuple[Tensor, list[Tensor]]:
        """A block at one token (B, C) behind its `past` (B, P); the output and its next past."""
        channels, d = x.shape[1], block.dilation
        normed = block.norm(x)
        taps = [past[:, k * d * channels : (k * d + 1) * channels] for k in range(2)]
        mixed = block.mix(F.relu(block.conv(torch.cat([*taps, normed], dim=1))))
        return x + mixed, [past[:, channels:], normed]


def _over(new: Tensor, old: Tensor, rows: int) -> Tensor:
    """The first `rows` of `new`, then what `old` holds behind them."""
    return new if rows == len(old) else torch.cat([new[:rows], old[rows:]])
