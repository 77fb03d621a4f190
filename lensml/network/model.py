"""A plain causal CNN for events of any number of data sets: five classes at every epoch.

Axes: B samples, N epochs of an event, C channels, W = RECEPTIVE_FIELD epochs, E of an embedding.

Temporal branch: dilated causal blocks over the inputs of each epoch. Map branch: a small CNN embeds
the residual map and the summary of the refit in force. The head joins both. Inputs before the first
refit, and before the first epoch, are zeros.
"""

import math
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lensml.limits import MAX_WIDTH
from lensml.network.residuals import (
    NUM_CHANNELS,
    NUM_INPUTS,
    NUM_STATE,
    NUM_SUMMARY,
    PHASE_BINS,
)
from lensml.paths import InputError

CLASSES = ("single", "planetary", "stellar", "binary_source", "other")
PLANETARY_Q = 0.03  # mass ratio below which a binary is planetary
DEPTH = 5  # blocks, of dilations 1, 2, 4, ...
RECEPTIVE_FIELD = 2**DEPTH * 2 - 1


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """Shape of the network."""

    channels: int = 48
    embedding_channels: int = 64
    state_channels: int = 32
    head_channels: tuple[int, int] = (128, 64)
    class_fractions: tuple[float, ...] = (0.2,) * len(CLASSES)  # of CLASSES in training

    def __post_init__(self) -> None:
        sizes = self.channels, self.embedding_channels, self.state_channels, *self.head_channels
        fractions = self.class_fractions
        good = len(sizes) == 5 and all(type(n) is int and 0 < n <= MAX_WIDTH for n in sizes)
        good &= len(fractions) == len(CLASSES) and all(0 <= x <= 1 for x in fractions)
        if not (good and fractions[0] > 0 and 0 < sum(fractions[1:3]) < 1):
            raise InputError(f"{self}: layers of 1 to {MAX_WIDTH} and {len(CLASSES)} fractions, of "
                             "single and binary lenses among them, were expected")  # fmt: skip

    def describe(self) -> dict:
        """Plain values for JSON."""
        return asdict(self)


def _train_by_convolution(x: Tensor) -> bool:
    """Whether a block calls oneDNN's convolutions: in CPU training they save copies of rows.

    Inference keeps matrix products, whose last bits older results hold.
    """
    return torch.is_grad_enabled() and x.device.type == "cpu" and x.numel() > 0


class CausalBlock(nn.Module):
    """Residual block: a causal convolution of width 3 over normed tokens, then a channel mix."""

    def __init__(self, channels: int, dilation: int = 1) -> None:
        super().__init__()
        self.dilation = dilation
        self.norm = nn.LayerNorm(channels)
        self.conv = nn.Linear(3 * channels, channels)  # a width-3 convolution as one product
        self.mix = nn.Linear(channels, channels)

    @property
    def past(self) -> int:
        """Tokens of its own past that a block sees."""
        return 2 * self.dilation

    def forward(self, x: Tensor) -> Tensor:  # (B, L, C) -> (B, L, C)
        normed = F.pad(self.norm(x), (0, 0, self.past, 0))
        if _train_by_convolution(x):
            return x + self._convolved(normed)
        length, d = x.shape[1], self.dilation
        taps = [normed[:, k * d : k * d + length] for k in range(3)]
        return x + self.mix(F.relu(self.conv(torch.cat(taps, dim=2))))

    def _convolved(self, normed: Tensor) -> Tensor:
        """The same by 2-D convolutions of images (B, C, 1, L), whose channels lie together."""
        channels = normed.shape[2]
        taps = self.conv.weight.view(channels, 1, 3, channels).permute(0, 3, 1, 2)
        image = normed.transpose(1, 2)[:, :, None]
        hidden = F.relu(F.conv2d(image, taps, self.conv.bias, dilation=(1, self.dilation)))
        mixed = F.conv2d(hidden, self.mix.weight[:, :, None, None], self.mix.bias)
        return mixed.squeeze(2).transpose(1, 2)

    def step(self, x: Tensor, past: Tensor) -> tuple[Tensor, Tensor]:
        """Output and normed token, which is to be kept, of one more token `x`: each (B, C).

        `past` (B, 2 C): the normed tokens 2 and 1 dilations before it, one behind the other.
        """
        normed = self.norm(x)
        hidden = self.conv(torch.cat([past, normed], dim=1)).relu_()
        return self.mix(hidden).add_(x), normed


class ResidualMapEncoder(nn.Module):
    """Embeds residual maps and fit summaries: (R, C, K) and (R, S) -> (R, E)."""

    def __init__(self, embedding_channels: int, num_channels: int = NUM_CHANNELS) -> None:
        super().__init__()
        self.fit_summary = nn.Linear(NUM_SUMMARY, 24)
        self.first = nn.Conv1d(num_channels, 24, 5, padding=2)
        self.halve = nn.Conv1d(24, 32, 4, stride=2, padding=1)
        self.conv2 = nn.Conv1d(32, 32, 3, padding=1)
        self.mix = nn.Conv1d(32, 32, 1)
        self.quarter = nn.Conv1d(32, 48, 4, stride=4)
        self.join = nn.Linear(48 * (PHASE_BINS // 8) + 24, 96)
        self.output = nn.Linear(96, embedding_channels)

    def forward(self, maps: Tensor, fit_summary: Tensor) -> Tensor:
        summary = self.fit_summary(fit_summary)
        x = self.halve(F.relu(self.first(maps) + summary[:, :, None]))
        x = x + self.mix(F.relu(self.conv2(F.relu(x))))
        x = F.relu(self.quarter(F.relu(x))).flatten(1)
        return F.relu(self.output(F.relu(self.join(torch.cat([x, summary], dim=1)))))


class Network(nn.Module):
    """Logits of `CLASSES` at every epoch of an event."""

    def __init__(self, config: NetworkConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or NetworkConfig()
        c, embedding, state = config.channels, config.embedding_channels, config.state_channels
        wide, narrow = config.head_channels
        self.embed = nn.Linear(NUM_INPUTS, c)
        self.blocks = nn.ModuleList(CausalBlock(c, dilation=2**k) for k in range(DEPTH))
        self.residual_encoder = ResidualMapEncoder(embedding)
        self.state = nn.Linear(NUM_STATE + NUM_SUMMARY, state)
        self.norm = nn.LayerNorm(c)
        self.head = nn.Sequential(
            nn.Linear(c + embedding + state + 1, wide), nn.GELU("tanh"),
            nn.Linear(wide, narrow), nn.GELU("tanh"), nn.Linear(narrow, len(CLASSES)),
        )  # fmt: skip
        for block in self.blocks:
            nn.init.zeros_(block.mix.weight)
        nn.init.zeros_(self.head[-1].weight)
        first = [math.log(f) if f > 0 else 0.0 for f in config.class_fractions]
        self.head[-1].bias.data = torch.tensor(first)  # the prior, P = 0.5 of two classes

    @property
    def num_parameters(self) -> int:
        """Trainable parameters."""
        return sum(p.numel() for p in self.parameters())

    @property
    def embedding_size(self) -> int:
        """Length E of what `embed_refits` gives."""
        return self.config.embedding_channels + self.config.state_channels

    def embed_refits(self, maps: Tensor, summaries: Tensor, states: Tensor) -> Tensor:
        """What the head gets of R refits, (R, E)."""
        state = F.relu(self.state(torch.cat([summaries, states], dim=1)))
        return torch.cat([self.residual_encoder(maps, summaries), state], dim=1)

    def latest(self, windows: Tensor) -> Tensor:
        """Temporal branch at the last epoch of windows (B, W, NUM_INPUTS): (B, C).

        Of each block only the places are computed that the next one reads: every second.
        """
        x = self.embed(windows)
        for block in self.blocks:
            normed = block.norm(x)
            taps = torch.cat([normed[:, :-2:2], normed[:, 1:-1:2], normed[:, 2::2]], dim=2)
            x = x[:, 2::2] + block.mix(F.relu(block.conv(taps)))
        return x[:, 0]

    def at_every_epoch(self, inputs: Tensor) -> Tensor:
        """Temporal branch (N, C) at every epoch of one event, of its inputs (N, NUM_INPUTS)."""
        x = self.embed(F.pad(inputs, (0, 0, RECEPTIVE_FIELD - 1, 0)))[None]
        for block in self.blocks:
            x = block(x)
        return x[0, RECEPTIVE_FIELD - 1 :]

    def join(self, temporal: Tensor, embedding: Tensor, held: Tensor) -> Tensor:
        """Logits (B, 5), `held` (B,) epochs after the refit that `embedding` is of."""
        age = torch.log1p(held.to(temporal.dtype))[:, None] / 2
        return self.head(torch.cat([self.norm(temporal), embedding, age], dim=1))

    def forward(
        self, windows: Tensor, maps: Tensor, summaries: Tensor, states: Tensor, held: Tensor
    ) -> Tensor:
        """Logits (B, 5) at the last epochs of windows (B, W, NUM_INPUTS), each with its refit."""
        return self.join(self.latest(windows), self.embed_refits(maps, summaries, states), held)

    def probabilities(self, logits: Tensor, prevalence: float = 0.5) -> Tensor:
        """Probabilities (..., 5) of logits where a fraction `prevalence` of events are binaries.

        The other classes keep their proportions of training; those that were no part of it are
        impossible. Bayes' formula, as `prior_shift`.
        """
        fractions = self.config.class_fractions
        binary = sum(fractions[1:3])
        odds = math.log(prevalence / (1 - prevalence) * (1 - binary) / binary)
        shift = [odds * (k in (1, 2)) if f > 0 else -math.inf for k, f in enumerate(fractions)]
        return torch.softmax(logits + logits.new_tensor(shift), dim=-1)

    def binary_of_two(self, logits: Tensor) -> Tensor:
        """P(binary) if only single and binary lenses are possible, equally often; logits (..., 5).

        The answer on the thesis' two-class sets.
        """
        single, *binary = self.config.class_fractions[:3]
        shift = math.log(single / sum(binary))
        return torch.sigmoid(torch.logsumexp(logits[..., 1:3], dim=-1) - logits[..., 0] + shift)
