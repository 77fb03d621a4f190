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

from lensml.network.joint_residuals import NUM_CHANNELS, NUM_INPUTS, NUM_STATE, NUM_SUMMARY
from lensml.network.model import CausalBlock, ResidualMapEncoder

CLASSES = ("single", "planetary", "stellar", "binary_source", "other")
PLANETARY_Q = 0.03  # mass ratio below which a binary is planetary
DEPTH = 5  # blocks, of dilations 1, 2, 4, ...
RECEPTIVE_FIELD = 2**DEPTH * 2 - 1


@dataclass(frozen=True, kw_only=True)
class EventNetworkConfig:
    """Shape of the network."""

    channels: int = 48
    embedding_channels: int = 64
    state_channels: int = 32
    head_channels: tuple[int, int] = (128, 64)
    class_fractions: tuple[float, ...] = (0.2,) * len(CLASSES)  # of CLASSES in training

    def describe(self) -> dict:
        """Plain values for JSON."""
        return asdict(self)


class EventNetwork(nn.Module):
    """Logits of `CLASSES` at every epoch of an event."""

    def __init__(self, config: EventNetworkConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or EventNetworkConfig()
        c, embedding, state = config.channels, config.embedding_channels, config.state_channels
        wide, narrow = config.head_channels
        self.embed = nn.Linear(NUM_INPUTS, c)
        self.blocks = nn.ModuleList(CausalBlock(c, dilation=2**k) for k in range(DEPTH))
        self.residual_encoder = ResidualMapEncoder(embedding, NUM_CHANNELS)
        self.state = nn.Linear(NUM_STATE + NUM_SUMMARY, state)
        self.norm = nn.LayerNorm(c)
        self.head = nn.Sequential(
            nn.Linear(c + embedding + state + 1, wide), nn.GELU("tanh"),
            nn.Linear(wide, narrow), nn.GELU("tanh"), nn.Linear(narrow, len(CLASSES)),
        )  # fmt: skip
        for block in self.blocks:
            nn.init.zeros_(block.mix.weight)
        nn.init.zeros_(self.head[-1].weight)
        nn.init.zeros_(self.head[-1].bias)

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

        The other classes keep their proportions of training. Bayes' formula, as `prior_shift`.
        """
        binary = sum(self.config.class_fractions[1:3])
        odds = math.log(prevalence / (1 - prevalence) * (1 - binary) / binary)
        return torch.softmax(logits + logits.new_tensor([0, odds, odds, 0, 0]), dim=-1)

    def binary_of_two(self, logits: Tensor) -> Tensor:
        """P(binary) if only single and binary lenses are possible, equally often; logits (..., 5).

        The answer on the thesis' two-class sets.
        """
        single, *binary = self.config.class_fractions[:3]
        shift = math.log(single / sum(binary))
        return torch.sigmoid(torch.logsumexp(logits[..., 1:3], dim=-1) - logits[..., 0] + shift)
