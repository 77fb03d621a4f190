"""The same photometry in ten formats, and through a stream, has the same answers."""

import gzip
import json
import lzma
import zipfile

import numpy as np
import pytest
from astropy.table import Table

from lensml.network import load_network
from lensml.photometry import read_event
from lensml.streaming import StreamingClassifier, classify_event

NETWORK = load_network()[0]
FORMATS = "csv tsv semicolon ogle gzip xz zip fits votable ecsv ipac".split()


def photometry(seed: int) -> np.ndarray:
    """Epochs [day], magnitudes and errors (60, 3), as a file with five decimals holds them."""
    draw = np.random.default_rng(seed)
    time = 2457000 + np.sort(draw.uniform(0, 120, 60)).round(5)
    u = np.hypot(draw.uniform(0.05, 0.8), (time - 2457060) / draw.uniform(8, 30))
    mag = draw.uniform(15, 20) - 2.5 * np.log10((u**2 + 2) / (u * np.sqrt(u**2 + 4)))
    return np.stack([time, (mag + draw.normal(0, 0.03, 60)).round(5), np.full(60, 0.03)], axis=1)


def written(rows: np.ndarray, kind: str, folder) -> object:
    """The path of a file of that format."""
    text = {
        mark: f"time{mark}mag{mark}mag_err\n"
        + "\n".join(mark.join(f"{x:.5f}" for x in row) for row in rows)
        for mark in ",\t; "
    }
    path = folder / f"curve.{kind}"
    table = Table(rows, names=("time", "mag", "mag_err"))
    if kind in ("fits", "votable", "ecsv", "ipac"):
        kind = kind if kind in ("fits", "votable") else f"ascii.{kind}"
        table.write(path, format=kind, overwrite=True)
    elif kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("curve.csv", text[","])
    else:
        plain = text[{"tsv": "\t", "semicolon": ";", "ogle": " "}.get(kind, ",")]
        plain = plain.partition("\n")[2] if kind == "ogle" else plain
        pack = {"gzip": gzip.compress, "xz": lzma.compress}.get(kind, bytes)
        path.write_bytes(pack(plain.encode()))
    return path


@pytest.mark.parametrize("seed", range(3))
def test_ten_formats_and_the_stream_give_the_same_answers(tried, tmp_path, seed):
    rows, expected = photometry(seed), None
    for kind in FORMATS:
        found = classify_event(read_event(written(rows, kind, tmp_path)), NETWORK)
        expected = found.p if expected is None else expected
        np.testing.assert_array_equal(found.p, expected, err_msg=kind)
        json.dumps(found.answer, allow_nan=False)
        tried.answered += 1
    stream = StreamingClassifier(NETWORK)
    p = [stream.update("a", *row) for row in rows.tolist()]
    np.testing.assert_allclose(p, expected, atol=1e-5)
    tried.answered += 1
