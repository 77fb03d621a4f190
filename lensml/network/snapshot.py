"""A state on disk that is whole or not there: versioned, checksummed, written as it lies."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from safetensors import SafetensorError
from torch import Tensor

from lensml.network.checkpoint import open_tensors, save_tensors
from lensml.network.model import Network
from lensml.paths import InputError

__all__ = ["fingerprint", "read_snapshot", "write_snapshot"]

CHECKSUM = "sha256"


def fingerprint(network: Network) -> str:
    """SHA-256 of a network's configuration and weights: whose state a snapshot is."""
    tensors = {k: v.detach().cpu() for k, v in network.state_dict().items()}
    return checksum(tensors, network.config.describe())


def checksum(tensors: Mapping[str, Tensor], notes: dict) -> str:
    """SHA-256 of notes and tensors: names, shapes, types and bytes."""
    digest = hashlib.sha256(json.dumps(notes, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        if tensor.numel():
            digest.update(memoryview(tensor.numpy()).cast("B"))
    return digest.hexdigest()


def write_snapshot(path: Path, tensors: dict[str, Tensor], notes: dict) -> None:
    """Write tensors and notes with their checksum, atomically and without a copy in memory."""
    tensors = {name: tensor.detach().cpu() for name, tensor in tensors.items()}
    save_tensors(path, tensors, notes | {CHECKSUM: checksum(tensors, notes)})


class _Stored(Mapping):
    """Tensors of a file, each read when it is asked for: never all in memory twice."""

    def __init__(self, path: Path) -> None:
        self.file = open_tensors(path)

    def __getitem__(self, name: str) -> Tensor:
        return self.file.get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.file.keys())

    def __len__(self) -> int:
        return len(self.file.keys())


def read_snapshot(path: Path, version: int) -> tuple[Mapping[str, Tensor], dict]:
    """Tensors of a snapshot, each read when it is asked for, and its notes.

    Raises:
        InputError: If the file is damaged, no snapshot or of another version.
    """
    try:
        tensors = _Stored(path)
        notes = json.loads((tensors.file.metadata() or {}).get("notes", "{}"))
    except (OSError, SafetensorError, ValueError) as error:
        raise InputError(f"{path}: not a readable state file ({error}); move it away") from None
    if not isinstance(notes, dict) or notes.get("version") != version:
        found = notes.get("version", "none") if isinstance(notes, dict) else "none"
        raise InputError(
            f"{path}: a state of version {found}, but version {version} was expected; "
            "move it away and feed the epochs again"
        )
    found = notes.pop(CHECKSUM, None)
    if found != checksum(tensors, notes):
        raise InputError(
            f"{path}: damaged, its content does not match its checksum; "
            "move it away and feed the epochs again"
        )
    return tensors, notes
