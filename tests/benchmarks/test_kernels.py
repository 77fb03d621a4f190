"""The GPU kernels compile for NVIDIA and AMD, and keep their values in registers."""

import json
import os
import subprocess
import sys

import pytest

pytest.importorskip("triton")
PROGRAM = """
import json
from benchmarks.performance.kernels import TARGETS, VARIANTS, compiled
names = list(VARIANTS)[:4]
print(json.dumps({f"{n} {t}": compiled(n, t) for n in names for t in TARGETS}))
"""


def test_kernels_compile_for_two_makers_without_spills(tmp_path):
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)  # so that they are compiled
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr[-3000:]
    found = json.loads(run.stdout.splitlines()[-1])
    assert len(found) == 8
    for name, used in found.items():
        assert used["spilled"] == 0 and 8 <= used["registers"] <= 255, (name, used)
        assert used["shared"] <= 48 * 1024, (name, used)
