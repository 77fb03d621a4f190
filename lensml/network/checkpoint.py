"""Weights and states on disk: safetensors with JSON notes, no pickle.

Files of weights carry the configuration that made them. States also carry a version and a checksum:
they are whole and of this version, or refused.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lensml.network.model import Network, NetworkConfig
from lensml.paths import (
    WEIGHTS,
    InputError,
    atomic_path,
    check_keys,
    parse_json,
    read_json,
    regular_file,
)
from lensml.simulation import LightCurves

MODEL = "model.safetensors"
CONFIG = "config.json"
CHECKSUM = "sha256"
RUN = {"trained_on?": list, "validated_on?": list}  # of a run's configuration
RANGE = {"preset": str, "seed": int, "first": int, "stop": int}  # of events


def save_tensors(path: Path, tensors: dict[str, Tensor], notes: dict) -> None:
    """Write tensors and JSON notes into one file, atomically: they can never disagree."""
    flat = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
    with atomic_path(path) as temporary:
        try:
            save_file(flat, temporary, metadata={"notes": json.dumps(notes)})
        except SafetensorError as error:  # a full disk, for one
            raise OSError(str(error)) from None


def open_tensors(path: Path) -> safe_open:
    """Open a file of `save_tensors`, or the one that a writer puts in its place meanwhile.

    The library opens a file twice, for its header and for its tensors; one of each file is neither.
    """
    regular_file(path)
    while True:
        before = path.stat()
        opened = safe_open(path, framework="pt")
        after = path.stat()
        if (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns):
            return opened


def _mapped_tensors(path: Path) -> tuple[dict[str, Tensor], dict]:
    """Tensors, whose memory is the mapped file until they are copied, and notes."""
    with open_tensors(path) as file:
        notes = parse_json((file.metadata() or {}).get("notes", "{}"), {}, f"{path}: notes")
        return {name: file.get_tensor(name) for name in file.keys()}, notes


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict]:
    """Tensors and notes of `save_tensors`."""
    try:
        return _mapped_tensors(path)
    except InputError:
        raise
    except (OSError, SafetensorError, ValueError) as error:
        raise InputError(f"{path}: not a readable weights file ({error})") from None


def save_network(run: Path, network: Network, notes: dict) -> None:
    """Write `model.safetensors` of a run; its notes rebuild the network."""
    described = notes | {"network": network.config.describe()}
    save_tensors(run / MODEL, network.state_dict(), described)


def run_folder(run: Path | str | None) -> Path:
    """Folder of a run, None = the shipped one; the thesis names the folder `x` as `x.pt`."""
    run = WEIGHTS if run is None else Path(run)
    return run.with_suffix("") if run.suffix in (".pt", ".pth") else run


def load_network(
    run: Path | str | None = None, device: str | torch.device = "cpu"
) -> tuple[Network, dict]:
    """The network of a run folder (None = the shipped one) in evaluation mode, and its config.

    The folder holds `model.safetensors` and `config.json`; InputError if it holds no run.
    """
    folder = run_folder(run)
    if not (folder / MODEL).exists():
        raise InputError(
            f"{folder}: no {MODEL} there; `lensml train --data SET --output {folder}` makes a run, "
            "and without --model the shipped weights are used"
        )
    tensors, notes = load_tensors(folder / MODEL)
    if "class_fractions" not in check_keys(notes.get("network", {}), {}, f"{folder}: network"):
        raise InputError(
            f"{folder}: weights of a network of version 0.1 before its joint fits, which this "
            "version does not read; train anew, or take the commit in its config.json"
        )
    network = _network_of(notes["network"], tensors, folder / MODEL)
    config = folder / CONFIG
    config = read_json(config, RUN) if config.exists() else check_keys(notes, RUN, folder)
    for ranges in (config.get(name, []) for name in ("trained_on", "validated_on")):
        for each in ranges:
            check_keys(each, RANGE, folder / CONFIG)
    return network.to(device).eval(), config


def _network_of(shape: dict, tensors: dict[str, Tensor], path: Path) -> Network:
    """A network of such a shape with these weights; no memory is taken before they fit it."""
    shape = {k: tuple(v) if isinstance(v, list) else v for k, v in shape.items()}
    try:
        with torch.device("meta"):
            network = Network(NetworkConfig(**shape))
        wrong = [
            k for k, x in tensors.items() if not (x.is_floating_point() and x.isfinite().all())
        ]
        if wrong:
            raise ValueError(f"{wrong[0]} holds what is no finite number")
        # A copy of the mapped file, which another process may write anew.
        copies = {name: x.to(torch.float32, copy=True) for name, x in tensors.items()}
        network.load_state_dict(copies, assign=True)
    except (TypeError, ValueError, RuntimeError) as error:
        why = " ".join(str(error).split())[:200]
        raise InputError(f"{path}: no weights of this version's network ({why})") from None
    return network.requires_grad_(True)


def weights_hash(run: Path | str | None = None) -> str:
    """SHA-256 of the weights file: which network a number belongs to."""
    return hashlib.sha256((run_folder(run) / MODEL).read_bytes()).hexdigest()


def fingerprint(network: Network) -> str:
    """SHA-256 of a network's configuration and weights: which network a state belongs to."""
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


def read_snapshot(path: Path, version: int) -> tuple[dict[str, Tensor], dict]:
    """Mapped tensors and notes of a snapshot; InputError if damaged or of another version."""
    try:
        tensors, notes = _mapped_tensors(path)
    except InputError as error:
        raise InputError(f"{error}; move it away") from None
    except (OSError, SafetensorError, ValueError) as error:
        raise InputError(f"{path}: not a readable state file ({error}); move it away") from None
    if notes.get("version") != version:
        found = notes.get("version", "none")
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


def check_unseen(curves: LightCurves, config: Mapping[str, Any], path: Path) -> None:
    """Refuse a set with events that the network was trained or validated on.

    An event is (preset, seed, index): another file name, noise or cadence does not make it new.
    """
    preset, seed, events = curves.events()
    ranges = {name: config.get(name) or [] for name in ("trained_on", "validated_on")}
    for name, seen in ranges.items():
        same = [r for r in seen if (r["preset"], r["seed"]) == (preset, seed)]
        hits = sum(int(((events >= r["first"]) & (events < r["stop"])).sum()) for r in same)
        if hits:
            fresh = 1 + max(r["seed"] for seen in ranges.values() for r in seen)
            raise InputError(
                f"{path}: {hits} of its {events.size} events (preset {preset}, seed {seed}) are "
                f"among those the model was {name.replace('_', ' ')}; make fresh ones with "
                f"`lensml simulate --binary_params {preset} --seed {fresh} "
                f"--n_pspl {events.size} --n_binary {events.size} --output FRESH.npz`"
            )
