"""Causal time-distributed 1-D CNN. Axes: B events, L observed epochs, C channels, F features.

A causal pyramid: a stem at every epoch; patches of 4 epochs become tokens; each further level
merges two tokens of the level below. On the way down a level sees its own past, on the way up it
also hears the last *completed* token of the coarser level. A token is used only once its last
epoch has come, so the logit at epoch k depends on epochs <= k, whatever the length or spacing.

Beside it an expert reads what refits of a single lens to growing prefixes leave unexplained, binned
by phase; its last opinion is heard at every epoch until the next refit.
"""

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

__all__ = ["Network", "NetworkConfig"]

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
    embedding_channels: int = 64  # channels of the expert's opinion; 0 = a network without refits

    def describe(self) -> dict:
        """Plain values for JSON."""
        return asdict(self)


def causal_upsample(coarse: Tensor, group: int, length: int) -> Tensor:
    """Coarse tokens (B, J, C) as the finer axis may know them, (B, length, C).

    Entry i holds token (i + 1) // group - 1, the last one whose `group` members have all come;
    zeros before the first.
    """
    return F.pad(coarse, (0, 0, 1, 0)).repeat_interleave(group, dim=1)[:, 1 : length + 1]


def _image(x: Tensor) -> Tensor:
    """Rows (B, L, C) as an image (B, C, 1, L) whose channels lie together; no copy."""
    return x.transpose(1, 2)[:, :, None]


def _rows(image: Tensor) -> Tensor:
    """An image (B, C, 1, L) as rows (B, L, C); no copy."""
    return image.squeeze(2).transpose(1, 2)  # indexing would copy in the gradient


def _train_by_convolution(x: Tensor) -> bool:
    """Whether oneDNN's convolutions serve better than matrix products and automatic gradients.

    On a CPU they need no copies of shifted rows, and find the gradients of weights and biases in
    one pass. Inference keeps the plain path.
    """
    on_cpu = x.device.type == "cpu" and torch.backends.mkldnn.is_available()
    training = torch.is_grad_enabled() and not torch.compiler.is_compiling()
    return on_cpu and training and x.numel() > 0


def _working_dtype(x: Tensor) -> torch.dtype:
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


def _linear(layer: nn.Linear, x: Tensor) -> Tensor:
    """`layer(x)` of rows (B, L, C)."""
    if not _train_by_convolution(x):
        return layer(x)
    return _rows(F.conv2d(_image(x), layer.weight[:, :, None, None], layer.bias))


class _BlockStep(torch.autograd.Function):
    """`CausalBlock` with its gradient written out: each array is read and written once.

    Equal to `x + block.step(x, ...)`, which stays the reference. `taps` (C, C, 1, 3) and `mix`
    (C, C, 1, 1) are the weights as convolutions.
    """

    @staticmethod
    def forward(ctx, x, gain, shift, taps, taps_bias, mix, mix_bias, dilation, eps):
        length, channels = x.shape[1:]
        normed, mean, scale = torch.native_layer_norm(x, (channels,), gain, shift, eps)
        padding, spacing = (0, 2 * dilation), (1, dilation)  # the surplus lies at the end
        wide = F.conv2d(_image(normed), taps, taps_bias, 1, padding, spacing)
        active = wide[..., :length].relu()
        ctx.save_for_backward(x, mean, scale, normed, active, gain, shift, taps, mix)
        ctx.padding, ctx.spacing = padding, spacing
        return _rows(F.conv2d(active, mix, mix_bias)).add_(x)

    @staticmethod
    def backward(ctx, gradient):
        x, mean, scale, normed, active, gain, shift, taps, mix = ctx.saved_tensors
        length, channels = x.shape[1:]
        bias, one, none, every = [channels], [1, 1], [0, 0], [True] * 3
        gradient = gradient.contiguous()
        back = torch.ops.aten.convolution_backward
        inner, to_mix, to_mix_bias = back(
            _image(gradient), active, mix, bias, one, none, one, False, none, 1, every
        )
        wide = x.new_empty(len(x), length + ctx.padding[1], channels)
        wide[:, length:] = 0
        kept = _image(wide)[..., :length]
        torch.ops.aten.threshold_backward.grad_input(inner, active, 0, grad_input=kept)
        inner, to_taps, to_taps_bias = back(
            _image(wide), _image(normed), taps, bias, one, ctx.padding, ctx.spacing, False, none, 1,
            every,
        )  # fmt: skip
        below, to_gain, to_shift = torch.ops.aten.native_layer_norm_backward(
            _rows(inner).contiguous(), x, [channels], mean, scale, gain, shift, every
        )
        below += gradient
        return below, to_gain, to_shift, to_taps, to_taps_bias, to_mix, to_mix_bias, None, None


class _GeluStep(torch.autograd.Function):
    """GELU by tanh as x sigmoid(2 y): a CPU computes sigmoid three times as fast as tanh."""

    LINE, CUBE = 2 * 0.7978845608028654, 2 * 0.7978845608028654 * 0.044715

    @staticmethod
    def forward(ctx, x):
        gate = x.square().mul_(_GeluStep.CUBE).add_(_GeluStep.LINE).mul_(x).sigmoid_()
        ctx.save_for_backward(x, gate)
        return x * gate

    @staticmethod
    def backward(ctx, gradient):
        x, gate = ctx.saved_tensors
        slope = x.square().mul_(3 * _GeluStep.CUBE).add_(_GeluStep.LINE).mul_(x)
        return slope.mul_(1 - gate).add_(1).mul_(gate).mul_(gradient)


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
        if _train_by_convolution(x):
            return self._written_out(x)
        return x + self.step(x, F.pad(self.norm(x), (0, 0, self.past, 0)))

    def step(self, x: Tensor, normed: Tensor) -> Tensor:
        """What is added to `x` (B, L, C), given its normed self behind `past` earlier tokens."""
        length, d = x.shape[1], self.dilation
        taps = [normed[:, k * d : k * d + length] for k in range(3)]
        return self.mix(F.relu(self.conv(torch.cat(taps, dim=2))))

    def _written_out(self, x: Tensor) -> Tensor:
        dtype, channels = _working_dtype(x), x.shape[2]
        taps = self.conv.weight.to(dtype).view(channels, 1, 3, channels).permute(0, 3, 1, 2)
        mix = self.mix.weight.to(dtype)[:, :, None, None]
        biases = self.conv.bias.to(dtype), self.mix.bias.to(dtype)
        return _BlockStep.apply(
            x.to(dtype).contiguous(), self.norm.weight, self.norm.bias, taps, biases[0], mix,
            biases[1], self.dilation, self.norm.eps,
        )  # fmt: skip


class ResidualMapEncoder(nn.Module):
    """What residuals binned by phase say of a prefix: (R, C, K) and (R, S) to an opinion (R, E)."""

    def __init__(self, embedding_channels: int) -> None:
        super().__init__()
        self.fit_summary = nn.Linear(NUM_SUMMARY, 24)
        self.first = nn.Conv1d(NUM_MAP_CHANNELS, 24, 5, padding=2)
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
        """What the network needs beside `features.encode`; None if it was made without.

        `subsample_seed` and `blended` as in `residual_maps.residual_inputs`.
        """
        return (
            residual_inputs(observed, subsample_seed, blended)
            if self.config.embedding_channels
            else None
        )

    def embed_refits(self, maps: Tensor, fit_summary: Tensor) -> Tensor:
        """What each of R refits adds in the head, (R, C): images (R, ., K), scalars (R, S)."""
        return self.project(self.residual_encoder(maps, fit_summary))

    def forward(self, features: Tensor, refits: ResidualInputs | None = None) -> Tensor:
        """Logits (B, L) of features (B, L, F) and refits of the same curves."""
        length = features.shape[1]
        x = _linear(self.embed, features)
        if refits is not None:
            x = x + _linear(self.embed_innovations, refits.innovations)
        for block in self.stem:
            x = block(x)
        levels = [self._downsample(x, 0)]
        for k in range(len(self.encoder)):
            for block in self.encoder[k]:
                levels[k] = block(levels[k])
            if k + 1 < len(self.encoder):
                levels.append(self._downsample(levels[k], k + 1))
        for k in reversed(range(len(levels))):
            if k < len(self.upsample):
                levels[k] = levels[k] + causal_upsample(
                    _linear(self.upsample[k], levels[k + 1]), 2, levels[k].shape[1]
                )
            for block in self.decoder[k]:
                levels[k] = block(levels[k])
        context = causal_upsample(levels[0], PATCH_SIZE, length)
        norm, fc1, gelu, fc2 = self.head
        wide = _linear(fc1, norm(torch.cat([x, context], dim=2)))
        if refits is not None:
            wide = wide + self._held_embedding(refits)
        bent = _GeluStep.apply(wide) if _train_by_convolution(wide) else gelu(wide)
        return fc2(bent).squeeze(2)

    def _held_embedding(self, refits: ResidualInputs) -> Tensor:
        """At each epoch what the refit in force adds in the head, (B, L, C)."""
        rows, num = refits.maps.shape[:2]
        embedding = self.embed_refits(refits.maps.flatten(0, 1), refits.fit_summary.flatten(0, 1))
        embedding = F.pad(
            embedding.unflatten(0, (rows, num)), (0, 0, 1, 0)
        )  # nothing before the first
        return embedding.gather(
            1, refits.active_refit[:, :, None].expand(-1, -1, embedding.shape[2])
        )

    def _downsample(self, x: Tensor, level: int) -> Tensor:
        """Join complete groups of tokens (B, L, C) -> (B, L // group, C'); a begun group waits."""
        group = PATCH_SIZE if level == 0 else 2
        whole = x.shape[1] // group
        return _linear(
            self.downsample[level], x[:, : whole * group].reshape(len(x), whole, group * x.shape[2])
        )
