"""Weights with the configuration that made them: safetensors and JSON, no pickle."""

import hashlib
import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lensml.network.model import Network, NetworkConfig
from lensml.paths import WEIGHTS, InputError, atomic_path

__all__ = ["load_network", "load_tensors", "save_network", "save_tensors", "weights_hash"]

MODEL = "model.safetensors"
CONFIG = "config.json"
# Names of older runs and today's: keys of a network's configuration, first parts of its tensors'
# names, second parts inside the residual-map encoder.
CONFIG_KEYS = {
    "opinion": "embedding_channels",
    "blocks_down": "encoder_blocks",
    "blocks_up": "decoder_blocks",
}
LAYERS = {
    "merge": "downsample",
    "down": "encoder",
    "lift": "upsample",
    "up": "decoder",
    "expert": "residual_encoder",
    "consult": "project",
    "embed_residuals": "embed_innovations",
}
MAP_LAYERS = {"scalars": "fit_summary", "look": "conv2", "say": "output"}


def save_tensors(path: Path, tensors: dict[str, Tensor], notes: dict) -> None:
    """Write tensors and JSON notes into one file, atomically: they can never disagree."""
    flat = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
    with atomic_path(path) as temporary:
        save_file(flat, temporary, metadata={"notes": json.dumps(notes)})


def open_tensors(path: Path) -> safe_open:
    """Open a file of `save_tensors`, or the one that a writer puts in its place meanwhile.

    The library opens a file twice, for its header and for its tensors; one of each file is neither.
    """
    while True:
        before = path.stat()
        opened = safe_open(path, framework="pt")
        after = path.stat()
        if (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns):
            return opened


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict]:
    """Tensors and notes of `save_tensors`."""
    try:
        with open_tensors(path) as file:
            notes = json.loads((file.metadata() or {}).get("notes", "{}"))
            return {name: file.get_tensor(name) for name in file.keys()}, notes
    except (OSError, SafetensorError, ValueError) as error:
        raise InputError(f"{path}: not a readable weights file ({error})") from None


def save_network(run: Path, network: Network, notes: dict) -> None:
    """Write `model.safetensors` of a run; its notes rebuild the network."""
    described = notes | {"network": network.config.describe()}
    save_tensors(run / MODEL, network.state_dict(), described)


def _folder(run: Path | str | None) -> Path:
    """Folder of the weights; `x.pt`, as the thesis' scripts name a run, is the folder `x`."""
    if run is None:
        return WEIGHTS
    run = Path(run)
    return run.with_suffix("") if run.suffix in (".pt", ".pth") else run


def current_config(network: dict) -> dict:
    """A network's configuration under today's names; runs from before refits had none of them."""
    renamed = {CONFIG_KEYS.get(key, key): value for key, value in network.items()}
    return {"embedding_channels": 0} | renamed


def current_tensor_name(name: str) -> str:
    """Today's name of a tensor of the network, whichever version saved it."""
    first, *rest = name.split(".")
    if first == "expert":
        rest[0] = MAP_LAYERS.get(rest[0], rest[0])
    return ".".join([LAYERS.get(first, first), *rest])


def load_network(
    run: Path | str | None = None, device: str | torch.device = "cpu"
) -> tuple[Network, dict]:
    """The network of a run folder, or the one that ships with the package.

    Args:
        run: Folder with `model.safetensors` and `config.json`; None = the shipped weights.
        device: Where to put it.

    Returns:
        The network in evaluation mode, and the run's configuration.

    Raises:
        InputError: If the folder holds no such run.
    """
    folder = _folder(run)
    if not (folder / MODEL).exists():
        raise InputError(
            f"{folder}: no {MODEL} there; `lensml train --data SET --output {folder}` makes a run, "
            "and without --model the shipped weights are used"
        )
    tensors, notes = load_tensors(folder / MODEL)
    network = Network(NetworkConfig(**current_config(notes["network"])))
    network.load_state_dict({current_tensor_name(k): x for k, x in tensors.items()})
    config = folder / CONFIG
    return network.to(device).eval(), json.loads(config.read_text()) if config.exists() else notes


def weights_hash(run: Path | str | None = None) -> str:
    """SHA-256 of the weights file: which network a number belongs to."""
    folder = _folder(run)
    return hashlib.sha256((folder / MODEL).read_bytes()).hexdigest()
