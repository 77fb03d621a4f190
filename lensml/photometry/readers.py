"""Strict readers of the photometry tables that surveys publish."""

import gzip
import re
import zlib
from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from math import log
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lensml.paths import InputError

if TYPE_CHECKING:
    from astropy.table import Table

MAG = 2.5 / log(10.0)  # magnitudes per natural logarithm
FLUX_ZERO_POINT = 22.0  # magnitude of unit flux; only differences of magnitude matter to us
REFERENCE_FLUX = 10 ** (0.4 * (28 - 20))  # KMTNet's pysis: a reference image of 20 mag, zero at 28
MAX_BYTES, MAX_LINES, MAX_LINE = 256_000_000, 2_000_000, 1_000_000  # of the text, unpacked
MAX_COLUMNS, MAX_VALUES = 256, 30_000_000  # a value: one column of one row
WANTED = "expected a header time,mag,mag_err (or flux,flux_err) or an OGLE, MOA or KMTNet table"


@dataclass(frozen=True)
class Photometry:
    """Usable epochs of one light curve, in time order, with a count of what was left out."""

    name: str
    time: NDArray  # (n,) float64, strictly increasing [day]
    mag: NDArray  # (n,) float64, finite [mag]
    mag_err: NDArray  # (n,) float64, finite and positive, as published [mag]
    m_base: float | None = None  # baseline magnitude if the user knows it [mag]
    dropped: Mapping[str, int] = field(default_factory=dict)  # reason -> number of rows
    remarks: tuple[str, ...] = ()  # columns read; what was assumed: time zero, reference flux
    time_scale: str = "time"  # "HJD", "BJD" or "JD" where the zero point of time is known

    def __len__(self) -> int:
        return len(self.time)

    def summary(self) -> str:
        """One line: how many epochs, how many rows dropped and why, what was assumed."""
        why = ", ".join(f"{count} {reason}" for reason, count in self.dropped.items())
        rows = f"{sum(self.dropped.values())} rows dropped" + (f" ({why})" if why else "")
        return "; ".join([f"{self.name}: {len(self)} usable epochs, {rows}", *self.remarks])


def read_photometry(
    path: Path | str, *, m_base: float | None = None, reference_flux: float | None = None
) -> Photometry:
    """Read one light curve; the format is recognised by its content, plain or gzipped.

    Recognised are CSV or blank-separated text with a header (also behind `#`), NASA Exoplanet
    Archive tables, OGLE `phot.dat` (HJD, mag, error, ...), KMTNet tables (HJD, difference flux,
    error, mag, error, ...) and MOA tables (HJD, difference flux, error). Magnitudes win over flux.

    Flux becomes 22 - 2.5 log10(flux). Difference flux (so named, or with more than a tenth of the
    first 50 epochs not positive) has no zero of its own: `reference_flux` is added, in the units
    of the table, by default the 1585 counts by which KMTNet's tables do the same. A reference above
    the source's flux makes a blended event: the apparent blend changes, no signal-to-noise does.

    Time becomes full HJD where the column's name gives the offset (`mjd`, `HJD-2457000`) or it is
    plain: (H, B)JD, or a first column without a name, that starts between 400 and 20000 is
    JD - 2450000. A column called `time` stays as it is. `m_base` [mag] is passed on. A file that
    is missing, unreadable or without one usable row is an InputError.
    """
    names, rows = _parse(_text(Path(path)), str(path))
    name = re.sub(r"(\.(csv|dat|txt|tbl|gz|pysis))+$", "", Path(path).name)
    return replace(_clean(names, rows, str(path), reference_flux), name=name, m_base=m_base)


def from_table(
    table: "Table", *, name: str = "table", reference_flux: float | None = None
) -> Photometry:
    """Read an astropy `Table` by the rules of `read_photometry`; masked values are not usable."""
    if not len(table):
        raise InputError(f"table {name!r} is empty; {WANTED}")
    rows = np.full((len(table), len(table.columns)), np.nan)
    for i, column in enumerate(table.itercols()):
        values = np.ma.asarray(getattr(column, "jd", getattr(column, "value", column)))
        if np.issubdtype(values.dtype, np.number):
            rows[:, i] = values.astype(float).filled(np.nan)
    cleaned = _clean(list(table.colnames), rows, f"table {name!r}", reference_flux)
    return replace(cleaned, name=name)


def _text(path: Path) -> str:
    """The file's text, or one line about why there is none."""
    try:
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise OSError("a device or pipe, not a file")
        with open(path, "rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            raw = (gzip.GzipFile(fileobj=file) if packed else file).read(MAX_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path} cannot be read ({reason}); give a text file; {WANTED}") from None
    if len(raw) > MAX_BYTES or max(raw.count(b"\n"), raw.count(b"\r")) > MAX_LINES:
        most = f"{MAX_BYTES / 1e6:.0f} MB or {MAX_LINES / 1e6:.0f} million lines"
        raise InputError(f"{path} holds more than {most} of text; give one light curve; {WANTED}")
    text = raw.decode("utf-8-sig", errors="replace")
    if b"\0" in raw or not text.strip():
        what = "holds binary data, not text" if raw.strip() else "is empty"
        raise InputError(f"{path} {what}; {WANTED}; export the light curve as CSV")
    return text


def _number(token: str) -> float:
    try:
        return float(token)
    except ValueError:
        return np.nan


def _split(line: str) -> list[str]:
    """Fields of one line: by comma or semicolon if there is one, else by blanks."""
    mark = "," if "," in line else ";" if ";" in line else None
    return [token.strip(" \t\"'") for token in line.split(mark, MAX_COLUMNS)]


def _header(line: str) -> list[str]:
    """Column names of a header line; units in brackets go, `HJD - 2450000` is one name."""
    line = line.lstrip("# \t")
    closed = 1 + max(line.rfind("]"), line.rfind(")"))  # beyond it the search would be quadratic
    line = re.sub(r"[\[(][^\])]*[\])]", "", line[:closed]) + line[closed:]
    return _split(re.sub(r"(?<!\s)\s*-\s*(?=24\d{5})", "-", line))


def _parse(text: str, label: str) -> tuple[list[str] | None, NDArray]:
    """Column names or None, and numbers (rows, columns), NaN where not a number."""
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    lines = [line for line in lines if line.strip() and line[0] != "\\"]
    if (longest := max(map(len, lines), default=0)) > MAX_LINE:
        raise InputError(f"{label} has a line of {longest} characters; {WANTED}")
    notes = [line for line in lines if line.lstrip()[0] in "#|"]
    lines = [line for line in lines if line.lstrip()[0] not in "#|"]
    names, split, first = None, _split, _split(lines[0]) if lines else []
    if notes and notes[0][0] == "|":  # IPAC table: its bars say where each field lies
        edges = [i for i, c in enumerate(notes[0]) if c == "|"]
        names = [notes[0][a + 1 : b].strip() for a, b in pairwise(edges)]
        split = lambda line: [line[a : b + 1].strip() for a, b in pairwise(edges)]  # noqa: E731
    elif first and first[0].lower() != "nan" and np.isnan(_number(first[0])):
        names = _header(lines.pop(0))
    elif first:
        headers = (h for h in map(_header, reversed(notes)) if len(h) == len(first))
        names = next((h for h in headers if "time" in map(_role, h)), None)
    if not lines:
        raise InputError(f"{label} has a header but no rows of data; {WANTED}")
    width = len(names or split(lines[0]))
    if width > MAX_COLUMNS or width * len(lines) > MAX_VALUES:
        most = f"at most {MAX_COLUMNS} columns and {MAX_VALUES / 1e6:.0f} million values"
        raise InputError(f"{label} has {len(lines)} rows of {width} columns, but {most} are read")
    values = array("d")
    for line in lines:
        row = split(line)[:width]
        values.extend(map(_number, row + [""] * (width - len(row))))
    return names, np.array(values).reshape(len(lines), width)


def _role(name: str) -> str | None:
    """What a column holds, by its name."""
    name = name.lower().replace("image", "").replace("magnif", "")
    value = next((kind for kind in ("mag", "flux") if kind in name), "")
    if re.search(r"err|unc|sig|^e_", name):
        return f"{value}_err".lstrip("_")
    if re.match(r"(time|date|epoch|t$|[bhm]?jd)", name):
        return "time"
    if value == "flux" and re.search(r"del|diff|^d_?flux", name):
        return "difference"
    return value or None


def _columns(names: list[str] | None, rows: NDArray, label: str) -> tuple[int, int, int, str]:
    """Positions of time, value and error, and whether the value is mag, flux or difference."""
    if names is None:
        return _columns_without_names(rows, label)
    at = {_role(name): i for i, name in reversed(list(enumerate(names)))}  # the first of a kind
    values = at.keys() & {"mag", "flux", "difference"}
    for kind, error in (("mag", "mag_err"), ("flux", "flux_err"), ("difference", "flux_err")):
        found = [at.get("time"), at.get(kind), at.get(error, at.get("err"))]
        # An archive table may have a column for either and leave the magnitudes blank.
        if None not in found and not (len(values - {"mag"}) and np.isnan(rows[:, found[1]]).all()):
            return *found, kind
    missing = "time" if "time" not in at else "its error" if values else "magnitude or flux"
    shown = ", ".join(repr(name[:20]) for name in names[:6]) + (", ..." if len(names) > 6 else "")
    raise InputError(f"{label} has columns {shown} and none for {missing}; {WANTED}")


def _columns_without_names(rows: NDArray, label: str) -> tuple[int, int, int, str]:
    """OGLE, KMTNet or MOA, by which pair of columns looks like a magnitude and its error."""
    if rows.shape[1] < 3:
        raise InputError(f"{label} has {rows.shape[1]} columns and no header; {WANTED}")
    for value in (1, 3)[: 1 + (rows.shape[1] >= 5)]:
        pair = rows[:, value : value + 2]
        head = pair[np.isfinite(pair).all(axis=1)][:20]
        mag, error = np.median(head, axis=0) if len(head) else (np.nan, np.nan)
        if 3 < mag < 35 and 0 < error < 3:
            return 0, value, value + 1, "mag"
    return 0, 1, 2, "flux"


def _clean(names: list[str] | None, rows: NDArray, label: str, reference: float | None):
    """Usable rows only, in magnitudes, sorted, every dropped row counted: a `Photometry`."""
    i, j, k, kind = _columns(names, rows, label)
    time, value, error = rows[np.argsort(rows[:, i], kind="stable")][:, [i, j, k]].T
    shown = [repr(names[c][:20]) if names else f"{c + 1}" for c in (i, j, k)]
    what = "difference flux" if kind == "difference" else kind
    dropped, remarks = {}, [f"time, {what} and error from columns {', '.join(shown)}"]

    def keep(good: NDArray, reason: str) -> None:
        nonlocal time, value, error
        if lost := int((~good).sum()):
            dropped[reason] = lost
        time, value, error = time[good], value[good], error[good]

    keep(np.isfinite(time), "time not a number")
    placeholder = (np.abs(value) > 90) & (kind == "mag")  # 99.999 means not measured
    keep(np.isfinite(value) & ~placeholder, "magnitude or flux not a number")
    keep(np.isfinite(error) & (error > 0), "error not positive")
    if kind != "mag" and len(time):
        shift = _reference_flux(value, error, kind, label) if reference is None else reference
        remarks += [f"reference flux {shift:.5g} added"] if shift else []
        value = value + shift
        keep(value > 0, "flux not positive")
        value, error = FLUX_ZERO_POINT - 2.5 * np.log10(value), MAG * error / value
    if not len(time):
        why = ", ".join(f"{count} {reason}" for reason, count in dropped.items())
        raise InputError(f"{label}: none of its {len(rows)} rows is usable ({why}); {WANTED}")
    keep(np.diff(time, prepend=-np.inf) > 0, "repeated time")
    called = names[i].lower() if names else "hjd"
    zero = _time_zero(called, time[0])
    remarks += [f"{zero:.1f} d added to the times"] if zero else []
    scale = "time" if time[0] + zero < 2e6 else (re.search("[hb]jd", called) or ["jd"])[0].upper()
    return Photometry(label, time + zero, value, error, None, dropped, tuple(remarks), scale)


def _reference_flux(flux: NDArray, error: NDArray, kind: str, label: str) -> float:
    """What to add to make total flux, decided by the first epochs."""
    if kind == "flux" and (flux[:50] <= 0).mean() <= 0.1:
        return 0.0
    typical = np.median(error[:50])
    if 1 < typical < REFERENCE_FLUX and (flux + REFERENCE_FLUX <= 0).mean() <= 0.1:
        return REFERENCE_FLUX
    raise InputError(
        f"{label} holds difference flux (typical error {typical:.3g}) in unknown units; expected "
        "mag or total flux; add the reference image's flux, or pass reference_flux=... in Python"
    )


def _time_zero(name: str, first: float) -> float:
    """What makes full (H)JD of a column of this name whose times start at `first` [day]."""
    stated = re.search(r"24\d{5}(\.\d+)?", name)
    plain = 2450000.0 if "jd" in name and 400 < first < 20000 else 0.0
    zero = float(stated[0]) if stated else 2400000.5 if "mjd" in name else plain
    return zero if first < 2e6 else 0.0


def seasons(time: ArrayLike, gap: float = 60.0) -> list[slice]:
    """Stretches of sorted epochs (n,) [day] without a pause longer than `gap` [day]."""
    cuts = (np.flatnonzero(np.diff(time) > gap) + 1).tolist()
    return [slice(a, b) for a, b in pairwise([0, *cuts, len(np.asarray(time))])]


def baseline_magnitude(photometry: Photometry) -> float:
    """Baseline for a figure's axis [mag]: given, or the median season's, or the first fifth's.

    It uses the whole curve, so it is no input of the network, whose baseline is causal.
    """
    if photometry.m_base is not None:
        return photometry.m_base
    medians = [np.median(photometry.mag[s]) for s in seasons(photometry.time)]
    early = photometry.mag[: max(5, len(photometry) // 5)]
    return float(np.median(medians if len(medians) >= 3 else early))
