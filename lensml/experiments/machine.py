"""The machine: what it has, what is missing, what will be slow; where a result comes from."""

import os
import platform
import re
import shutil
import time
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from lensml.paths import CHECKOUT, ROOT, WEIGHTS, available_cores, check_size, git, git_commit

OUTPUT_VARIABLE = "LENSML_OUTPUT"  # a folder that takes the repository's place for what is written

NEEDED = ("torch", "VBMicrolensing", "numpy", "scipy", "matplotlib", "seaborn", "scikit-learn")
OF_NOTEBOOKS = ("jupyterlab", "papermill", "jupyter-book", "ipywidgets", "MulensModel")
RECORDED = ("lensml", "torch", "numpy", "VBMicrolensing", "MulensModel", "scikit-learn")
FULL_SET_GB = 25  # 500,000 pairs of 1500 epochs, observed and noise-free, in float32


def installed(package: str) -> str | None:
    """Version of an installed package, None if it is not there."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def device_name() -> str:
    """The accelerator torch would use, else the processor."""
    import torch  # late: `lensml run` starts kernels and needs no network itself

    if torch.cuda.is_available():
        kind = "ROCm" if torch.version.hip else "CUDA"
        return f"{torch.cuda.get_device_name(0)} ({kind}, {torch.cuda.device_count()} visible)"
    linux = Path("/proc/cpuinfo")  # names the model, which Python may not know
    named = re.search(r"^model name\s*: (.*)", linux.read_text() if linux.exists() else "", re.M)
    return f"CPU, {named[1].strip() if named else platform.processor() or platform.machine()}"


def modified() -> bool:
    """Whether code or project differ from their commits, but for what a run writes."""
    status = "status --porcelain -uno -- . :!data/results :!figures".split()
    return any(git(*status, folder=folder) for folder in {CHECKOUT, ROOT})


def provenance(*, size: str, seed: int | Iterable[int], started: float) -> dict[str, Any]:
    """Code, seeds, machine and time behind a run that began at `time.time()` = `started` [s]."""
    return {
        "size": check_size(size),
        "commit": git_commit(),
        "modified": modified(),
        "seeds": [int(s) for s in np.atleast_1d(np.asarray(seed))],
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "wall_time_s": round(time.time() - started, 1),
        "device": device_name(),
        "cores": available_cores(),
        "python": platform.python_version(),
        "versions": {name: found for name in RECORDED if (found := installed(name))},
    }


def events_by_set(ranges: Iterable[Mapping[str, Any]]) -> dict[str, dict[int, int]]:
    """Number of different events by parameter set or contaminant, then by seed.

    `ranges` are what `config.json` of a run has under ``trained_on`` or ``validated_on``.
    """
    found: dict[str, dict[int, set[int]]] = {}
    for part in ranges:
        by_seed = found.setdefault(part["preset"].split("_", 1)[-1].replace("_", " "), {})
        by_seed.setdefault(part["seed"], set()).update(range(part["first"], part["stop"]))
    return {name: {s: len(n) for s, n in by_seed.items()} for name, by_seed in found.items()}


def memory_limit() -> float:
    """Memory this process may use [bytes]: the machine's, or less by its job or container."""
    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    control = Path("/proc/self/cgroup")
    lines = control.read_text().splitlines() if control.exists() else []
    for line in lines:
        _, kinds, path = line.split(":", 2)
        root = Path("/sys/fs/cgroup") / ("memory" if "memory" in kinds.split(",") else "")
        name = "memory.limit_in_bytes" if kinds else "memory.max"
        for folder in (root / path.strip("/"), root):
            limit = folder / name
            if limit.is_file() and (text := limit.read_text().strip()).isdecimal():
                found.append(int(text))
    if (megabytes := os.environ.get("SLURM_MEM_PER_NODE", "")).isdecimal() and int(megabytes):
        found.append(int(megabytes) * 2**20)
    return float(min(found))


def preflight(gpu: bool = False) -> dict[str, Any]:
    """Hardware, versions, disk and memory: `facts` by name, what is `slow`, what is `missing`.

    With `gpu` a GPU that cannot be used is missing.
    """
    import torch

    from lensml.network import bf16_supported, find_device

    device = find_device()
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    backend = "ROCm" if torch.version.hip else "CUDA" if torch.version.cuda else "CPU build"
    versions = {p: installed(p) for p in NEEDED}
    shown = {p: v or "MISSING" for p, v in versions.items()}
    shown |= {p: installed(p) or "none; of lensml[notebooks]" for p in OF_NOTEBOOKS}
    cores, memory = available_cores(), memory_limit()
    disk = shutil.disk_usage(".").free / 1e9
    facts = {
        "python": platform.python_version(),
        "device": ", ".join(gpus) or f"CPU ({platform.machine()})",
        "torch backend": backend,
        "cores": cores,
        "memory [GB]": round(memory / 1e9, 1),
        "free disk [GB]": round(disk, 1),
        "bfloat16": "yes" if bf16_supported(device) else "emulated",
        "shipped weights": "yes" if (WEIGHTS / "model.safetensors").exists() else "none",
    } | shown
    minutes = f"simulating a million events takes {20 // cores} minutes or more"
    slow = {
        "no GPU: size `desk` takes hours here; `full` wants a GPU node, here weeks": not gpus,
        f"{cores} cores: {minutes}": cores < 8,
        f"{disk:.0f} GB of disk: a full set needs {FULL_SET_GB} GB": disk < FULL_SET_GB,
    }
    missing = [f"{p}: pip install {p}" for p, v in versions.items() if v is None]
    if gpu and not gpus:
        missing.append(f"a GPU: torch {versions['torch']} ({backend}) finds none on this node")
    return {"facts": facts, "slow": [line for line, so in slow.items() if so], "missing": missing}
