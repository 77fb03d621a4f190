"""The exchange format: observed light-curve sets as `.npz` or folders of shards."""

import itertools
import json
import math
import os
import shutil
import tempfile
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.lib import format as npy
from numpy.typing import DTypeLike, NDArray

from lensml.limits import MAX_PACKED, MAX_UNPACKED
from lensml.paths import InputError, atomic_path, parse_json, printable, read_json, regular_file
from lensml.seeds import event_generator
from lensml.simulation.survey import Survey, draw_numpy, noise_free_delta_mag, observe, survey_of

FRACTIONS = (0.1, 0.25, 0.33, 0.5, 0.67, 0.83, 1.0)  # of the window, for early detection
PARAM_NAMES = ("t0", "u0", "tE", "rho", "s", "q", "alpha", "f_s")
SHARED = ("time", "param_names", "meta")  # members that belong to the set, not to a row
REQUIRED = ("X", "y", "time", "sigma", "m_base", "pair", "dchi2", "params")
OPTIONAL = ("magnification", "dchi2_at")
IN_MEMORY = 2e9  # bytes of an array of rows; a larger one lies in a file
META = dict.fromkeys(("num_events?", "first_event?", "num_rows?", "redrawn?", "seed?"), int)
META |= {"preset?": str, "survey?": (dict, type(None)), "blending?": (list, type(None))}
META |= {"population?": bool, "condition?": (str, dict, list)}


@dataclass(frozen=True, kw_only=True)
class LightCurves:
    """A set of n curves on T epochs; DESIGN section 5 gives the meaning of each member."""

    X: NDArray  # (n, T) float32 observed magnitude, NaN = not observed
    y: NDArray  # (n,) int8, 0 PSPL, 1 Binary
    time: NDArray  # (T,) or (n, T) float64 [day]
    sigma: NDArray  # (n,) or (n, T) float32 [mag]
    m_base: NDArray  # (n,) float32 [mag]
    pair: NDArray  # (n,) int64, -1 = none
    dchi2: NDArray  # (n,) float64, NaN = no twin
    params: NDArray  # (n, 8) float64, columns PARAM_NAMES
    meta: dict
    magnification: NDArray | None = None  # (n, T) float32, noise-free and unblended
    dchi2_at: NDArray | None = None  # (n, 7) float64 at FRACTIONS

    def __len__(self) -> int:
        return len(self.y)

    def param(self, name: str) -> NDArray:
        """One parameter of every row, shape (n,)."""
        return self.params[:, PARAM_NAMES.index(name)]

    @property
    def blended(self) -> bool:
        """Whether the lensed fraction of the flux, f_s, is free; the same for all rows.

        From `blending` in `meta` where it is there; else free unless `f_s` is 1 throughout.
        """
        if "blending" in self.meta:
            return self.meta["blending"] is not None
        return not (self.param("f_s") == 1).all()

    @property
    def exact(self) -> bool:
        """Whether baselines and quoted errors hold exactly; after `spoil` they do not."""
        return "condition" not in self.meta and survey_of(self.meta).exact

    def times(self) -> NDArray:
        """Epochs of every row, (n, T), a view [day]."""
        return np.broadcast_to(self.time, self.X.shape)

    def sigmas(self) -> NDArray:
        """Error of every epoch, (n, T), a view [mag]."""
        sigma = self.sigma if self.sigma.ndim == 2 else self.sigma[:, None]
        return np.broadcast_to(sigma, self.X.shape)

    def noise_free(self) -> NDArray:
        """Noise-free magnitudes, (n, T) float64; InputError in a set without `magnification`."""
        if self.magnification is None:
            raise InputError("the set has no `magnification`; make it with `lensml simulate`")
        f_s = torch.from_numpy(np.nan_to_num(self.param("f_s"), nan=1.0))
        delta = noise_free_delta_mag(torch.from_numpy(self.magnification.astype(np.float64)), f_s)
        return self.m_base[:, None] + delta.numpy()

    def per_row(self) -> dict[str, NDArray]:
        """Members with one entry a row: `time` only where rows have their own epochs."""
        members = {name: getattr(self, name) for name in (*REQUIRED, *OPTIONAL)}
        shared = ["time"] if self.time.ndim == 1 else []
        return {k: v for k, v in members.items() if v is not None and k not in shared}

    def rows(self, index: NDArray | slice) -> "LightCurves":
        """The rows chosen by a boolean mask, an index array or a slice."""
        return replace(self, **{k: v[index] for k, v in self.per_row().items()})

    def events(self) -> tuple[str, int, NDArray]:
        """`(preset, seed, event indices)`: identity of the events, whatever the noise or cadence.

        `("unknown", -1, [])` for a set without `preset` or `seed` in `meta`.
        """
        preset, seed = self.meta.get("preset"), self.meta.get("seed")
        if preset is None or seed is None:
            return "unknown", -1, np.empty(0, np.int64)
        index = np.unique(self.pair[self.pair >= 0])
        if not index.size and "first_event" in self.meta:
            first = int(self.meta["first_event"])
            index = np.arange(first, first + int(self.meta["num_events"]))
        return str(preset), int(seed), index


def shard_paths(path: Path | str) -> list[Path]:
    """The file itself, or the shards of a finished folder in order."""
    path = Path(path)
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise InputError(f"{path}: no such set; `lensml simulate --output {path}` makes one")
    manifest = path / "manifest.json"
    shards = sorted(path.glob("part-*.npz"))
    if not manifest.exists() or not shards:
        raise InputError(f"{path}: a folder of part-*.npz and manifest.json was expected")
    expected = read_json(manifest, {"num_shards": int})["num_shards"]
    if len(shards) != expected:
        raise InputError(
            f"{path}: {len(shards)} of {expected} shards are there; "
            "run the same `lensml simulate` command again to finish it"
        )
    return shards


def _header(archive: zipfile.ZipFile, name: str) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and type of an array in an archive, which is as large as they say or refused."""
    with archive.open(f"{name}.npy") as member:
        version = npy.read_magic(member)
        read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, _, dtype = read(member)
        size = math.prod(shape) * dtype.itemsize + member.tell()
    if dtype.hasobject or size != (found := archive.getinfo(f"{name}.npy").file_size):
        raise ValueError(f"{name} {shape} {dtype} takes {size} bytes, not {found}")
    return shape, dtype


def read_members(
    path: Path, names: Iterable[str], *, shapes: bool = False
) -> dict[str, NDArray | tuple[int, ...]]:
    """Those of some arrays that an `.npz` has, or their `shapes` alone, read without pickle.

    InputError where a member is damaged, or unpacks to far more than the file holds.
    """
    found = {}
    try:
        with zipfile.ZipFile(regular_file(path)) as archive:
            total = sum(info.file_size for info in archive.infolist())
            if total > max(MAX_UNPACKED, MAX_PACKED * path.stat().st_size):
                raise ValueError(f"{path.stat().st_size} bytes that unpack to {total}")
            for name in names:
                if f"{name}.npy" in archive.namelist():
                    shape, _ = _header(archive, name)
                    with archive.open(f"{name}.npy") as member:
                        found[name] = shape if shapes else npy.read_array(member)
    except InputError:
        raise
    except Exception as error:  # whatever a damaged or protected archive makes its reader raise
        why = printable(error)[:200] or type(error).__name__
        raise InputError(f"{path}: not a readable .npz light-curve set ({why})") from None
    return found


def _read(path: Path) -> LightCurves:
    members = read_members(path, (*REQUIRED, *OPTIONAL, "meta"))
    meta = members.pop("meta", None)
    meta = {} if meta is None else parse_json(str(meta), META, f"{path}: meta")
    if missing := [key for key in REQUIRED if key not in members]:
        raise InputError(
            f"{path}: members {', '.join(missing)} are missing; a set needs {', '.join(REQUIRED)}"
        )
    try:
        survey_of(meta)
    except InputError as error:
        raise InputError(f"{path}: survey of meta: {error}") from None
    _check_shapes(path, members)
    _check_values(path, members)
    return LightCurves(**members, meta=meta)


def _check_values(path: Path, members: dict[str, NDArray]) -> None:
    """Refuse what no survey measures and no simulation gives."""
    kinds = dict.fromkeys(("y", "pair"), "biu") | {"time": "fiu"}
    for name, values in members.items():
        if values.dtype.kind not in kinds.get(name, "f"):
            raise InputError(f"{path}: {name} is of type {values.dtype}, numbers were expected")
    X, time, sigma, base = (members[k] for k in ("X", "time", "sigma", "m_base"))
    f_s = members["params"][:, PARAM_NAMES.index("f_s")]
    # Each is written so that NaN fails it, but where NaN means that nothing is known.
    holds = {
        "at least a row and an epoch": X.size > 0,
        "`time` finite and rising": np.isfinite(time).all() and (np.diff(time) > 0).all(),
        "`X` without infinite values": not np.isinf(X).any(),
        "`X` with a measured epoch in each row": (~np.isnan(X)).any(-1).all(),
        "`sigma` positive and finite": ((sigma > 0) & (sigma < np.inf)).all(),
        "`m_base` finite": np.isfinite(base).all(),
        "`params` without infinite values": not np.isinf(members["params"]).any(),
        "f_s of `params` above 0, at most 1": (np.isnan(f_s) | (f_s > 0) & (f_s <= 1)).all(),
    }
    if "magnification" in members:
        clean = members["magnification"]
        holds["`magnification` positive and finite"] = ((clean > 0) & (clean < np.inf)).all()
    if broken := [what for what, good in holds.items() if not good]:
        raise InputError(f"{path}: expected {broken[0]}; look at what made the set")


def _check_shapes(path: Path, members: dict[str, NDArray]) -> None:
    shape = members["X"].shape
    if len(shape) != 2:
        raise InputError(f"{path}: X has shape {shape}, but (curves, epochs) was expected")
    n, T = shape
    row, epoch = {(n,)}, {(n, T)}
    expected = dict.fromkeys(("y", "m_base", "pair", "dchi2"), row)
    expected |= {"time": {(T,)} | epoch, "sigma": row | epoch, "magnification": epoch}
    expected |= {"params": {(n, len(PARAM_NAMES))}, "dchi2_at": {(n, len(FRACTIONS))}}
    for name, wanted in expected.items():
        if name in members and members[name].shape not in wanted:
            raise InputError(
                f"{path}: {name} has shape {members[name].shape}, but "
                f"{' or '.join(map(str, sorted(wanted)))} was expected beside X of {shape}"
            )


def iterate(path: Path | str) -> Iterator[LightCurves]:
    """Shard by shard, so that a set larger than memory can be read."""
    for shard in shard_paths(path):
        yield _read(shard)


def num_rows(path: Path | str) -> tuple[int, int]:
    """`(n, T)` of a set, read from the headers alone."""
    shapes = []
    for shard in shard_paths(path):
        shape = read_members(shard, ("X",), shapes=True).get("X", ())
        if len(shape) != 2:
            raise InputError(f"{shard}: X of shape {shape}, but (curves, epochs) was expected")
        shapes.append(shape)
    return sum(s[0] for s in shapes), shapes[0][1]


def large_array(shape: tuple[int, ...], dtype: DTypeLike = np.float32) -> NDArray:
    """An array of this shape; above 2 GB it lies in a nameless file of the process.

    InputError if the system's folder for temporary files has no room for it.
    """
    size = np.dtype(dtype).itemsize * math.prod(shape)
    if size <= IN_MEMORY:
        return np.empty(shape, dtype)
    folder = tempfile.gettempdir()
    if size > (free := shutil.disk_usage(folder).free):
        raise InputError(
            f"{folder}: the sets take {size / 1e9:.0f} GB there, but {free / 1e9:.0f} GB are free; "
            "set TMPDIR to a folder with room, or give fewer events"
        )
    with tempfile.TemporaryFile(dir=folder) as file:
        os.truncate(file.fileno(), size)
        return np.memmap(file, dtype, "r+", shape=shape)


def load(path: Path | str) -> LightCurves:
    """A whole set, its largest members as `large_array`; one shard in memory beside them.

    InputError if missing, unfinished or not in the exchange format.
    """
    shards = iterate(path)
    first = next(shards)
    rows, num_epochs = num_rows(path)
    if len(first) == rows:
        return first
    joined = {
        name: large_array((rows, *part.shape[1:]), part.dtype)
        for name, part in first.per_row().items()
    }
    num_events, place = 0, 0
    for shard in itertools.chain([first], shards):
        parts = shard.per_row()
        if parts.keys() != joined.keys() or shard.X.shape[1] != num_epochs:
            raise InputError(f"{path}: its shards have other members or numbers of epochs")
        for name, part in parts.items():
            joined[name][place : place + len(shard)] = part
        num_events += shard.meta.get("num_events", 0)
        place += len(shard)
    meta = {**first.meta, "num_events": num_events}
    return replace(first, **joined, meta=meta)


def save(path: Path | str, curves: LightCurves) -> Path:
    """Write a set atomically as one `.npz`."""
    members = {k: v for k in (*REQUIRED, *OPTIONAL) if (v := getattr(curves, k)) is not None}
    members["param_names"] = np.array(PARAM_NAMES)
    members["meta"] = np.array(json.dumps(curves.meta, sort_keys=True))
    with atomic_path(path) as temporary:
        np.savez(temporary, **members)
    return Path(path)


def merge_shards(shards: list[Path], output: Path, meta: dict) -> None:
    """One `.npz` from consecutive shards, member by member, one shard in memory at a time."""
    shared = read_members(shards[0], SHARED)
    names = read_members(shards[0], (*REQUIRED, *OPTIONAL), shapes=True).keys() - shared.keys()
    names = [k for k in (*REQUIRED, *OPTIONAL) if k in names]
    shared["meta"] = np.array(json.dumps(meta, sort_keys=True))
    with atomic_path(output) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for name in names:
            parts = (read_members(s, (name,))[name] for s in shards)
            _append_member(archive, name, parts, meta["num_rows"])
        for name, value in shared.items():
            _append_member(archive, name, iter([value]), None)


def _append_member(archive, name: str, parts: Iterator[NDArray], rows: int | None) -> None:
    array = next(parts)
    shape = array.shape if rows is None else (rows, *array.shape[1:])
    header = {"descr": npy.dtype_to_descr(array.dtype), "fortran_order": False, "shape": shape}
    with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
        npy.write_array_header_1_0(member, header)
        while array is not None:
            member.write(np.ascontiguousarray(array).tobytes())
            array = next(parts, None)


def until_fraction(times: NDArray, fraction: float) -> NDArray:
    """Epochs (n, T) no later than `fraction` of each row's window, first + f (last - first)."""
    first, last = times[..., :1], times[..., -1:]
    if fraction >= 1:  # first + (last - first) may round to less than last
        return np.ones(times.shape, dtype=bool)
    return times <= first + fraction * (last - first)


def partner_rows(curves: LightCurves) -> NDArray:
    """Row of the other member of each row's pair, (n,); -1 where there is none.

    InputError if two rows of one pair and class are not the same event.
    """
    rows = np.flatnonzero(curves.pair >= 0)
    pair, y = curves.pair[rows], curves.y[rows]
    event, first, place = np.unique(2 * pair + y, return_index=True, return_inverse=True)
    # Rows of one pair and class have the same parameters as the first of them.
    a, b = curves.params[rows], curves.params[rows[first[place]]]
    same = ((a == b) | (np.isnan(a) & np.isnan(b))).all(axis=1)
    if not same.all():
        raise InputError(
            f"`pair` {pair[~same][0]} names two different events of class {y[~same][0]}; "
            "sets of different seeds must be evaluated one by one"
        )
    # The partner is the first row of the same pair and the other class.
    other = 2 * pair + 1 - y
    found = np.isin(other, event)
    partner = np.full(len(curves), -1)
    partner[rows[found]] = rows[first[np.searchsorted(event, other[found])]]
    return partner


def dchi2_at_fractions(
    noise_free: NDArray, observed: NDArray, sigma: NDArray, time: NDArray
) -> NDArray[np.float64]:
    """Delta-chi2 of P pairs up to each of FRACTIONS of the window, shape (P, 7).

    Noise-free magnitudes, which epochs were observed and 1-sigma errors are (2 P, T), rows twin,
    binary, twin, ...; the binary's epochs count. `time` is the grid (T,) [day].
    """
    difference = noise_free[1::2] - noise_free[::2]
    terms = np.where(observed[1::2], (difference / sigma[1::2]) ** 2, 0.0)
    total = np.cumsum(terms, axis=1, dtype=np.float64)
    edges = time[0] + np.array(FRACTIONS) * (time[-1] - time[0])
    return total[:, np.searchsorted(time, edges, side="right") - 1]


def observe_pairs(
    noise_free: NDArray,
    m_base: NDArray,
    generators: list[np.random.Generator],
    survey: Survey,
    time: NDArray,
    *,
    matched: bool = True,
) -> dict[str, NDArray]:
    """Members `X`, `sigma`, `dchi2` and `dchi2_at` of P pairs seen through a survey.

    `noise_free` (2 P, T) is magnitude minus the baseline `m_base` (2 P,) [mag], rows single,
    binary, single, ..., on the grid `time` (T,) [day]; each pair has its own generator of noise and
    gaps. Delta-chi2 is NaN unless `matched`: each single lens is its binary's twin.
    """
    draws = draw_numpy(generators, len(time))
    rows = observe(torch.from_numpy(noise_free).float(), draws, survey, torch.from_numpy(time))
    delta, sigma, observed = (x.numpy() for x in rows)
    dchi2_at = np.full((len(noise_free), len(FRACTIONS)), np.nan)
    if matched:
        dchi2_at[:] = dchi2_at_fractions(noise_free, observed, sigma, time).repeat(2, axis=0)
    return {
        "X": np.where(observed, m_base[:, None] + delta, np.nan).astype(np.float32),
        "sigma": sigma if survey.photon_noise else sigma[:, 0].copy(),
        "dchi2": dchi2_at[:, -1].copy(),
        "dchi2_at": dchi2_at,
    }


def concatenate(parts: list[dict[str, NDArray]]) -> dict[str, NDArray]:
    """Members of consecutive parts of a set, joined along their rows."""
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def reobserve(curves: LightCurves, survey: Survey, seed: int) -> LightCurves:
    """A set through another survey of its grid: new `X`, `sigma`, `dchi2` and `dchi2_at`.

    A matched one with `magnification`, in simulated order; `seed` of noise is not the events' own.
    """
    preset, event_seed, events = curves.events()
    generators = [event_generator(seed, f"{preset}/{event_seed}", i, "observe") for i in events]
    noise_free = curves.noise_free() - curves.m_base[:, None]
    parts = []
    for first in range(0, len(events), 512):  # bounded memory for the raw draws
        rows = slice(2 * first, 2 * (first + 512))
        pairs = noise_free[rows], curves.m_base[rows], generators[first : first + 512]
        parts.append(observe_pairs(*pairs, survey, curves.time))
    meta = {**curves.meta, "survey": survey.describe(), "observed_with_seed": seed}
    return replace(curves, **concatenate(parts), meta=meta)
