"""Causal time-distributed 1-D CNN: a logit of P(binary) at every observed epoch.

Axes: B curves, L observed epochs in time order, C channels, F features, J refits of a curve.

Inputs: features of each epoch (`features.encode`) and, from point-lens fits to the epochs so far
(`residual_maps.residual_inputs`), innovations of each epoch and one residual map for each refit.

Temporal branch: two blocks at every epoch (the stem), then an encoder and decoder over levels.
A token of the finest level spans 4 epochs, one of each further level two tokens of the level
below. The encoder of a level sees its own past; its decoder also sees the last *completed* token
of the next coarser level, held until the next one (zero-order hold). A token is used only once its
last epoch has come, so the logit at epoch k depends on epochs <= k.

Residual branch: a small CNN embeds the residual map of each refit; the embedding of the last refit
is added to the head's hidden layer and held until the next refit.

`Network.forward` reads whole curves, `Network.step` takes one more epoch: the same layers.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lensml.network.features import NUM_FEATURES, PackedCurves
from lensml.network.residual_maps import (
    NUM_INNOVATIONS,
    NUM_MAP_CHANNELS,
    NUM_SUMMARY,
    PHASE_BINS,
    ResidualInputs,
    residual_inputs,
)

PATCH_SIZE = 4  # epochs in a token of the finest level


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """Shape of the network."""

    stem_channels: int = 32
    channels: int = 64
    num_levels: int = 7  # the coarsest token spans 4 x 2^6 = 256 epochs
    encoder_blocks: int = 2  # at each level
    decoder_blocks: int = 1
    num_features: int = NUM_FEATURES
    embedding_channels: int = 64  # of the residual branch; 0 = a network without refits

    def describe(self) -> dict:
        """Plain values for JSON."""
        return asdict(self)


def causal_upsample(coarse: Tensor, group: int, length: int) -> Tensor:
    """Coarse tokens (B, J, C) held along the finer axis once complete, (B, length, C).

    Entry i holds token (i + 1) // group - 1, the last whose members have all come; zeros before it.
    """
    return F.pad(coarse, (0, 0, 1, 0)).repeat_interleave(group, dim=1)[:, 1 : length + 1]


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

    def __init__(self, embedding_channels: int, num_channels: int = NUM_MAP_CHANNELS) -> None:
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
    """P(binary) as a logit at every observed epoch."""

    def __init__(self, config: NetworkConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or NetworkConfig()
        stem, c, levels = config.stem_channels, config.channels, config.num_levels
        self.embed = nn.Linear(config.num_features, stem)
        self.stem = nn.ModuleList([CausalBlock(stem), CausalBlock(stem, dilation=2)])
        self.downsample = nn.ModuleList(
            [nn.Linear(PATCH_SIZE * stem, c), *(nn.Linear(2 * c, c) for _ in range(levels - 1))]
        )
        self.encoder = nn.ModuleList(
            nn.ModuleList(CausalBlock(c) for _ in range(config.encoder_blocks))
            for _ in range(levels)
        )
        self.upsample = nn.ModuleList(nn.Linear(c, c) for _ in range(levels - 1))
        self.decoder = nn.ModuleList(
            nn.ModuleList(CausalBlock(c) for _ in range(config.decoder_blocks))
            for _ in range(levels)
        )
        self.head = nn.Sequential(
            nn.LayerNorm(stem + c), nn.Linear(stem + c, c), nn.GELU("tanh"), nn.Linear(c, 1)
        )
        if config.embedding_channels:
            self.embed_innovations = nn.Linear(NUM_INNOVATIONS, stem, bias=False)
            self.residual_encoder = ResidualMapEncoder(config.embedding_channels)
            self.project = nn.Linear(config.embedding_channels, c, bias=False)
            nn.init.zeros_(self.embed_innovations.weight)
            nn.init.zeros_(self.project.weight)
        for block in self.modules():
            if isinstance(block, CausalBlock):
                nn.init.zeros_(block.mix.weight)  # each block begins as the identity
        nn.init.zeros_(self.head[-1].weight)  # P = 0.5 everywhere at the start
        nn.init.zeros_(self.head[-1].bias)

    @property
    def num_parameters(self) -> int:
        """Trainable parameters."""
        return sum(p.numel() for p in self.parameters())

    def refits(
        self,
        observed: PackedCurves,
        subsample_seed: int | None = None,
        blended: Tensor | bool = True,
    ) -> ResidualInputs | None:
        """Inputs from refits, as `residual_maps.residual_inputs`; None for a network without."""
        if not self.config.embedding_channels:
            return None
        return residual_inputs(observed, subsample_seed, blended)

    def embed_refits(self, maps: Tensor, fit_summary: Tensor) -> Tensor:
        """What R refits add to the head's hidden layer, (R, C), of maps and fit summaries."""
        return self.project(self.residual_encoder(maps, fit_summary))

    def forward(self, features: Tensor, refits: ResidualInputs | None = None) -> Tensor:
        """Logits (B, L) of features (B, L, F) and refits of the same curves."""
        length = features.shape[1]
        # The stem: every epoch.
        x = self.embed(features)
        if refits is not None:
            x = x + self.embed_innovations(refits.innovations)
        for block in self.stem:
            x = block(x)
        # The encoder: from fine to coarse.
        levels = [self._downsample(x, 0)]
        for k in range(len(self.encoder)):
            for block in self.encoder[k]:
                levels[k] = block(levels[k])
            if k + 1 < len(self.encoder):
                levels.append(self._downsample(levels[k], k + 1))
        # The decoder: from coarse to fine, each level with the held token of the coarser one.
        for k in reversed(range(len(levels))):
            if k < len(self.upsample):
                coarse = self.upsample[k](levels[k + 1])
                levels[k] = levels[k] + causal_upsample(coarse, 2, levels[k].shape[1])
            for block in self.decoder[k]:
                levels[k] = block(levels[k])
        # The head: stem, held token of the finest level and held embedding of the last refit.
        context = causal_upsample(levels[0], PATCH_SIZE, length)
        embedding = None if refits is None else self._held_embedding(refits)
        return self._logit(x, context, embedding)

    def _downsample(self, x: Tensor, level: int) -> Tensor:
        """Join complete groups of tokens, (B, L, C) -> (B, L // group, C'); the rest waits."""
        group = PATCH_SIZE if level == 0 else 2
        whole = x.shape[1] // group
        joined = x[:, : whole * group].reshape(len(x), whole, group * x.shape[2])
        return self.downsample[level](joined)

    def _held_embedding(self, refits: ResidualInputs) -> Tensor:
        """At each epoch what the last refit adds to the head's hidden layer, (B, L, C)."""
        rows, num = refits.maps.shape[:2]
        embedding = self.embed_refits(refits.maps.flatten(0, 1), refits.fit_summary.flatten(0, 1))
        # Row 0 holds zeros: nothing is added before the first refit.
        embedding = F.pad(embedding.unflatten(0, (rows, num)), (0, 0, 1, 0))
        last = refits.active_refit[:, :, None].expand(-1, -1, embedding.shape[2])
        return embedding.gather(1, last)

    def _logit(self, x: Tensor, context: Tensor, embedding: Tensor | None) -> Tensor:
        """The head: logits (...) of stem (..., C), context (..., C') and embedding (..., C')."""
        norm, fc1, gelu, fc2 = self.head
        hidden = fc1(norm(torch.cat([x, context], dim=-1)))
        if embedding is not None:
            hidden = hidden + embedding
        return fc2(gelu(hidden)).squeeze(-1)

    def step(
        self,
        features: Tensor,
        innovations: Tensor | None,
        embedding: Tensor | None,
        near: Tensor,
        context: Tensor,
        levels: Sequence[Tensor],
    ) -> tuple[Tensor, Tensor, list[Tensor], list[Tensor]]:
        """One more epoch of B events, those that complete most levels first.

        `features` (B, F) and `innovations` (B, I) are of the epoch, `embedding` (B, C) what the
        last refit adds to the head's hidden layer; None without refits. `near` (B, K, C): two past
        tokens of each block of the stem, then the PATCH_SIZE - 1 epochs of the stem before this
        one. `context` (B, C): the last token that the finest level sent to the head. `levels`: for
        each level that some events complete, of those events, (B_k, K, C) with B_k never rising:
        two tokens of each block, encoder then decoder; then (but at the coarsest level) the level's
        own last token and the held one of the coarser level.

        Returns logits (B,); new tokens of the stem (B, K', C), one of each block and its output;
        for each level new tokens (B_k, K', C), one of each block and its own; and what each level
        sends to the finer one, or to the head, (B_k, C).
        """
        # The stem: every event.
        x = self.embed(features)
        if innovations is not None:
            x = x + self.embed_innovations(innovations)
        x, stem = _advance(self.stem, x, near)
        stem.append(x)
        # The encoder, as far as a token is completed: join it and its elder siblings.
        tokens, own, group = [], [], torch.cat([near[:, 2 * len(self.stem) :].flatten(1), x], dim=1)
        for k, past in enumerate(levels):
            if k:
                group = torch.cat([levels[k - 1][:, -2], own[-1]], dim=1)
            token, normed = _advance(self.encoder[k], self.downsample[k](group[: len(past)]), past)
            tokens.append(normed)
            own.append(token)
        # The decoder: back to the finest level; events without a new coarse token hold the old.
        sent: list[Tensor] = []
        for k in reversed(range(len(levels))):
            token, past = own[k], levels[k]
            if k + 1 < self.config.num_levels:
                token = token + (_over(sent[0], past[:, -1]) if sent else past[:, -1])
            token, normed = _advance(self.decoder[k], token, past[:, 2 * len(self.encoder[k]) :])
            tokens[k] += [*normed, own[k]] if k + 1 < self.config.num_levels else normed
            sent.insert(0, self.upsample[k - 1](token) if k else token)
        logit = self._logit(x, _over(sent[0], context) if sent else context, embedding)
        return logit, torch.stack(stem, dim=1), [torch.stack(t, dim=1) for t in tokens], sent


def _advance(blocks: Sequence[CausalBlock], x: Tensor, past: Tensor) -> tuple[Tensor, list[Tensor]]:
    """`CausalBlock.step` of blocks in turn, each with its two tokens of `past` (B, K, C)."""
    kept = []
    for k, block in enumerate(blocks):
        x, normed = block.step(x, past[:, 2 * k : 2 * k + 2].flatten(1))
        kept.append(normed)
    return x, kept


def _over(new: Tensor, old: Tensor) -> Tensor:
    """The rows of `new` in place of the first rows of `old`."""
    return new if len(new) == len(old) else torch.cat([new, old[len(new) :]])
