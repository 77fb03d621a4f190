"""The encoder of residual maps as matrix products of rows (plain torch, no kernel of its own).

Channels lie together and the taps of a convolution beside each other, so that each convolution is
one matrix product. As convolutions of (R, 10, 96) the same took 30 ms, forward and backward, of
36,864 images on an H200, and 8 ms like this.
The weights stay those of `Expert`; their gradients flow through views.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["forward"]


def _taps(x: Tensor, width: int, pad: int, to: int = 0) -> Tensor:
    """Rows (R, K, C) beside their neighbours, (R, K, width C), filled up with zeros to `to`."""
    x = F.pad(x, (0, 0, pad, pad))
    k = x.shape[1] - width + 1
    parts = [x[:, i : i + k] for i in range(width)]
    if to:
        parts.append(x.new_zeros(x.shape[0], k, to - width * x.shape[2]))
    return torch.cat(parts, 2)


def _rows(conv: torch.nn.Conv1d, to: int = 0) -> Tensor:
    """Weights of a convolution as (C', width C), filled up with zeros to `to`."""
    weight = conv.weight.permute(0, 2, 1).flatten(1)
    return F.pad(weight, (0, to - weight.shape[1])) if to else weight


def forward(expert: torch.nn.Module, images: Tensor, scalars: Tensor) -> Tensor:
    """`Expert.forward` of images (R, 10, 96) and scalars (R, 19), under autocast."""
    told = expert.scalars(scalars)
    x = images.to(told.dtype).transpose(1, 2)
    # 5 taps of 10 channels, filled up to 56: rows of products are then multiples of 16 bytes.
    x = F.linear(_taps(x, 5, 2, 56), _rows(expert.first, 56), expert.first.bias)
    x = F.relu(x + told[:, None])
    num, bins, channels = x.shape
    y = F.pad(x, (0, 0, 1, 1)).view(num, bins // 2 + 1, 2 * channels)  # width 4, stride 2
    x = F.linear(torch.cat([y[:, :-1], y[:, 1:]], 2), _rows(expert.halve), expert.halve.bias)
    look = F.linear(_taps(F.relu(x), 3, 1), _rows(expert.look), expert.look.bias)
    x = x + F.linear(F.relu(look), expert.mix.weight[:, :, 0], expert.mix.bias)
    x = F.relu(x).reshape(num, bins // 8, 4 * x.shape[2])  # width 4, stride 4
    x = F.relu(F.linear(x, _rows(expert.quarter), expert.quarter.bias))
    wide, places = x.shape[2], x.shape[1]
    join = expert.join.weight  # its columns are by channel, then by bin: here the other way round
    of_rows = join[:, : places * wide].unflatten(1, (wide, places)).transpose(1, 2).flatten(1)
    join = torch.cat([of_rows, join[:, places * wide :]], 1)
    x = F.relu(F.linear(torch.cat([x.flatten(1), told], 1), join, expert.join.bias))
    return F.relu(expert.say(x))
