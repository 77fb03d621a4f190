"""Compiled functions give the same bits wherever they run: after compiling, loaded, anywhere."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from lensml.network import DataSetEpochs, event_inputs, joint_epochs

ROOT = Path(__file__).resolve().parents[2]
CODE = """
import sys
import numpy as np
from lensml.streaming import StreamingClassifier
stream, draw = StreamingClassifier(), np.random.default_rng(0)
p = []
for k in range(60):
    time = np.arange(400) / 400 + k
    mag = 18 - 1.5 * np.exp(-(((time - 30) / 8) ** 2)) + draw.normal(0, 0.02, 400)
    names = [f"e{i // 2}" for i in range(400)]
    p.append(stream.update_many(names, time, mag, np.full(400, 0.02), None, ["a", "b"] * 200)[0])
kept = stream.cache.tensors()
np.savez(sys.argv[1], p=p, **{name: kept[name] for name in ("fits", "covariances", "sums")})
"""


def followed(path: Path, compiled: Path) -> dict[str, np.ndarray]:
    """What a process finds that keeps its compiled functions in that folder."""
    places = {"NUMBA_CACHE_DIR": str(compiled), "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", CODE, path], check=True, env=os.environ | places)
    with np.load(path) as file:
        return dict(file)


def test_a_process_that_compiles_has_the_bits_of_one_that_loads(tmp_path):
    first = followed(tmp_path / "first.npz", tmp_path / "compiled")
    made = {p: p.stat().st_mtime_ns for p in (tmp_path / "compiled").rglob("*.nb?")}
    second = followed(tmp_path / "second.npz", tmp_path / "compiled")
    assert made == {p: p.stat().st_mtime_ns for p in (tmp_path / "compiled").rglob("*.nb?")}
    assert any("_take_epochs" in path.name for path in made)
    for name, values in first.items():
        assert values.tobytes() == second[name].tobytes(), name


def test_inputs_have_the_same_bits_wherever_they_lie_in_memory():
    for num in (1, 2, 3):
        draw = np.random.default_rng(num)
        time = np.sort(draw.uniform(0, 100, (num, 200)))
        mag = 18 - np.exp(-(((time - 50) / 9) ** 2)) + draw.normal(0, 0.03, time.shape)
        epochs = joint_epochs(
            [DataSetEpochs(*x, np.full(200, 0.02)) for x in zip(time, mag, strict=True)]
        )
        expected, between = event_inputs(epochs), []
        for k in range(20):
            between.append(np.empty(37 * k + 3))  # what follows lies elsewhere
            found = event_inputs(epochs)
            for name in ("epochs", "maps", "summaries", "states", "fits", "covariance"):
                assert getattr(found, name).tobytes() == getattr(expected, name).tobytes(), name
