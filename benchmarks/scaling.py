"""Growth of a cost with size, and the peak memory of a command."""

import math
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import linregress, t

__all__ = ["growth_exponent", "peak_memory"]


def growth_exponent(sizes: ArrayLike, costs: ArrayLike) -> dict[str, float]:
    """Exponent k of cost ~ size^k, by least squares in logarithms over all measurements.

    Args:
        sizes: Sizes, shape (n,), positive; repeat a size for repeated measurements.
        costs: Seconds or bytes at each, shape (n,), positive.

    Returns:
        `value` with `low` and `high`, its 95 % interval under normal scatter (Student's t).

    Raises:
        ValueError: If there are fewer than three measurements or a single size.
    """
    x, y = np.log(np.asarray(sizes, float)), np.log(np.asarray(costs, float))
    if len(x) < 3 or np.ptp(x) == 0:
        raise ValueError(
            f"`sizes` holds {len(x)} measurements of {len(set(x))} sizes; "
            "at least three, of two sizes, are needed to see a growth"
        )
    fit = linregress(x, y)
    half = 0.0 if math.isnan(fit.stderr) else float(t.ppf(0.975, len(x) - 2) * fit.stderr)
    slope = float(fit.slope)
    return {"value": slope, "low": slope - half, "high": slope + half}


def _process_tree(pid: int) -> list[int]:
    """Ids of a process and of all its descendants."""
    found = [pid]
    for parent in found:
        try:
            for task in Path(f"/proc/{parent}/task").iterdir():
                found += map(int, (task / "children").read_text().split())
        except OSError:
            continue
    return found


def peak_memory(command: list[str], seconds: float = float("inf")) -> dict[str, float]:
    """Run a command; the peak resident memory of it and its children (Linux) [MB].

    Args:
        command: What to run.
        seconds: After this long the command is killed and the peak so far returned [s].

    Returns:
        `main_mb` of the process itself, `largest_child_mb`, `sum_mb` of all peaks (pages shared
        between processes count in each, and peaks need not coincide: an upper bound), `seconds`.

    Raises:
        RuntimeError: If the command fails.
    """
    started, peaks = time.perf_counter(), {}
    errors = tempfile.TemporaryFile()  # an unread pipe fills up and stops the command
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors)
    while process.poll() is None:
        if time.perf_counter() - started > seconds:
            process.kill()
            process.wait()
            process.returncode = 0
            break
        for pid in _process_tree(process.pid):
            try:
                status = Path(f"/proc/{pid}/status").read_text()
            except OSError:
                continue
            if "VmHWM:" in status:
                peaks[pid] = int(status.split("VmHWM:")[1].split()[0]) / 1024
        time.sleep(0.02)
    with errors:
        errors.seek(0)
        if process.returncode:
            raise RuntimeError(f"{' '.join(command)}: {errors.read().decode()[-500:]}")
    children = [peak for pid, peak in peaks.items() if pid != process.pid]
    return {
        "main_mb": round(peaks.get(process.pid, 0.0), 1),
        "largest_child_mb": round(max(children, default=0.0), 1),
        "sum_mb": round(sum(peaks.values()), 1),
        "seconds": round(time.perf_counter() - started, 1),
    }
