"""What this machine has, what is missing, what will be slow."""

import os
import platform
import shutil
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from lensml.network import bf16_supported, find_device
from lensml.paths import WEIGHTS, available_cores

__all__ = ["preflight"]

NEEDED = ("torch", "VBMicrolensing", "numpy", "scipy", "matplotlib", "seaborn", "scikit-learn")
NEEDED_FOR_THE_BOOK = ("jupyterlab", "papermill", "jupyter-book", "ipywidgets", "MulensModel")
FULL_SET_GB = 25  # 500,000 pairs of 1500 epochs, observed and clean, in float32


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _memory_gb() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9


def preflight(folder: Path | str = ".") -> dict:
    """Look at hardware, versions, disk and memory.

    Args:
        folder: Where results would be written.

    Returns:
        `facts` (name to value), `slow` (what to expect), `missing` (what must be installed).
    """
    device = find_device()
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    backend = "ROCm" if torch.version.hip else "CUDA" if torch.version.cuda else "CPU build"
    versions = {p: _version(p) for p in (*NEEDED, *NEEDED_FOR_THE_BOOK)}
    cores = available_cores()
    disk = shutil.disk_usage(folder).free / 1e9
    facts = {
        "python": platform.python_version(),
        "device": ", ".join(gpus) or f"CPU ({platform.machine()})",
        "torch backend": backend,
        "cores": cores,
        "memory [GB]": round(_memory_gb(), 1),
        "free disk [GB]": round(disk, 1),
        "bfloat16": "yes" if bf16_supported(device) else "emulated",
        "shipped weights": "yes" if (WEIGHTS / "model.safetensors").exists() else "none",
    } | {p: v or "MISSING" for p, v in versions.items()}
    slow = []
    if not gpus:
        slow.append("no GPU: size `desk` is meant for this machine, `full` would take weeks")
    if cores < 8:
        slow.append(f"{cores} cores: simulation at full size takes {20 // cores} minutes or more")
    if disk < FULL_SET_GB:
        slow.append(f"{disk:.0f} GB of disk: a full set needs {FULL_SET_GB} GB")
    missing = [f"{p}: pip install {p}" for p, v in versions.items() if v is None]
    return {"facts": facts, "slow": slow, "missing": missing}
