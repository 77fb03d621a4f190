"""Strict readers of the photometry tables that surveys publish: one event, its data sets."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from math import log
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lensml.paths import InputError, printable
from lensml.photometry import columns as roles
from lensml.photometry.tables import WANTED, RawTable, from_columns, read_table

if TYPE_CHECKING:
    from astropy.table import Table

MAG = 2.5 / log(10.0)  # magnitudes per natural logarithm
FLUX_ZERO_POINT = 22.0  # magnitude of unit flux; only differences of magnitude matter to us
REFERENCE_FLUX = 10 ** (0.4 * (28 - 20))  # KMTNet's pysis: a reference image of 20 mag, zero at 28
FAR, UNMEASURED = 12.0, 90.0  # a magnitude so far from the first ones, such an error, is a mark
MARKS = [99.99, 99.999, 99.9999, 999.99, 999.999, 9999.99]  # not measured, in any unit
LONGEST_PAUSE = 3650  # before and behind it lie no dates of one light curve [day]
FEWEST = 8  # rows of a comparison
JUNK, REPEATED, NO_DATES = 0.25, 0.1, 0.1  # fractions of the rows that make a table doubtful
SUFFIX = r"(\.(csv|dat|txt|tbl|tsv|gz|xz|zip|pysis|ecsv|xml|vot|fits?|md|tex))+$"


@dataclass(frozen=True)
class Photometry:
    """Usable epochs of one data set, in time order, with a count of what was left out."""

    name: str
    time: NDArray  # (n,) float64, strictly increasing [day]
    mag: NDArray  # (n,) float64, finite [mag]
    mag_err: NDArray  # (n,) float64, finite and positive, as published [mag]
    m_base: float | None = None  # baseline magnitude if the user knows it [mag]
    dropped: Mapping[str, int] = field(default_factory=dict)  # reason -> number of rows
    remarks: tuple[str, ...] = ()  # columns, units and time zero; what was assumed
    time_scale: str = "time"  # "HJD", "BJD" or "JD" where the zero point of time is known
    kind: str = "mag"  # or "flux" or "difference", whose magnitudes have a zero of their own

    def __len__(self) -> int:
        return len(self.time)

    def summary(self) -> str:
        """One line: how many epochs, how many rows dropped and why, what was assumed."""
        return Event(self.name, (self,)).summary()


@dataclass(frozen=True)
class Event:
    """All data sets of one event: each with its own epochs, zero point and error scale."""

    name: str
    datasets: tuple[Photometry, ...]

    def summary(self) -> str:
        """One line: epochs by data set, rows dropped and why, columns, units and time zero."""
        dropped = sum((Counter(d.dropped) for d in self.datasets), Counter())
        rows = f"{dropped.total()} rows dropped" + (f" ({_list(dropped)})" if dropped else "")
        if len(self.datasets) > 1:
            sets = ", ".join(f"{d.name} {len(d)}" for d in self.datasets)
            rows = f"{len(self.datasets)} data sets ({sets}), {rows}"
        remarks = dict.fromkeys(remark for d in self.datasets for remark in d.remarks)
        total = sum(map(len, self.datasets))
        return "; ".join([f"{self.name}: {total} usable epochs, {rows}", *remarks])


def read_event(paths: Path | str | Sequence[Path | str], **settings: Any) -> Event:
    """Read one event: a file, several, or a folder of them; each holds one or more data sets.

    A file, plain or packed, is text with a header whose names are unambiguous; a FITS, VOTable,
    ECSV, IPAC, MRT or LaTeX table; or without a header by its numbers OGLE's (HJD, mag, error,
    ...), KMTNet's (HJD, difference flux, error, mag, error, ...) or MOA's (HJD, difference flux,
    error). What is none of them is an InputError, unless `columns` says where to look:
    `time=..,mag=..,err=..` or `flux=..,flux_err=..`, perhaps `dataset=..`, names or numbers from 1.

    A column of filters, sites or cameras divides a file into data sets; several stars are refused.
    Magnitudes win over flux. Flux becomes 22 - 2.5 log10(flux). Difference flux (so named, or with
    more than a tenth of the first 50 epochs not positive) has no zero of its own: `reference_flux`
    is added, in the units of the table, by default the 1585 counts by which KMTNet's tables do the
    same. A reference above the source's flux makes a blended event: the apparent blend changes, no
    signal-to-noise does.

    Time becomes full HJD where the column's name gives the offset (`mjd`, `HJD-2457000`) or it is
    plain: (H, B)JD, or a first column without a name, that starts between 400 and 20000 is
    JD - 2450000. A column called `time` stays as it is.
    """
    paths = [Path(p) for p in ([paths] if isinstance(paths, Path | str) else paths)]
    files, datasets = [file for path in paths for file in light_curve_files(path)], []
    for file in files:
        for label, curve in _datasets(file, str(file), **settings):
            stem = [re.sub(SUFFIX, "", file.name)] if len(files) > 1 or not label else []
            name = "/".join([*stem, *[label] * bool(label)])
            datasets.append(replace(curve, name=printable(name)))
    if len({d.name for d in datasets}) < len(datasets):
        datasets = [replace(d, name=f"{d.name} ({k})") for k, d in enumerate(datasets, 1)]
    return Event(printable(re.sub(SUFFIX, "", paths[0].resolve().name)), tuple(datasets))


def read_photometry(
    path: Path | str, *, m_base: float | None = None, **settings: Any
) -> Photometry:
    """Read a file of one data set by the rules of `read_event`; `m_base` [mag] is passed on."""
    curve = _only(_datasets(Path(path), str(path), **settings), str(path))
    return replace(curve, name=re.sub(SUFFIX, "", Path(path).name), m_base=m_base)


def from_table(table: "Table", *, name: str = "table", **settings: Any) -> Photometry:
    """Read an astropy `Table` of one data set by the rules of `read_event`, units and all.

    Masked values are not usable, `Quantity` columns have their unit, `Time` columns are JD.
    """
    label = f"table {name!r}"
    if not len(table):
        raise InputError(f"{label} is empty; {WANTED}")
    return replace(_only(_datasets(table, label, **settings), label), name=name)


def light_curve_files(path: Path) -> list[Path]:
    """The file, or a folder's files by name, without hidden ones and READMEs."""
    if not path.is_dir():
        return [path]
    found = [p for p in path.iterdir() if p.is_file() and not re.match(r"\.|\d*README", p.name)]
    if not found:
        raise InputError(f"{path} cannot be read (a folder without files); give light curves")
    return sorted(found)


def _only(found: list[tuple[str, Photometry]], label: str) -> Photometry:
    if len(found) > 1:
        names = ", ".join(repr(name[:20]) for name, _ in found[:4])
        what = f"{label} holds {len(found)} data sets ({names})"
        raise InputError(f"{what}; expected one; read_event reads several")
    return found[0][1]


def _list(dropped: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in dropped.items())


def _datasets(
    source: "Path | Table",
    label: str,
    columns: str | None = None,
    reference_flux: float | None = None,
) -> list[tuple[str, Photometry]]:
    """Data sets of one table by the value of the columns that divide it, "" if none does."""
    wanted = [] if columns is None else re.findall(r"=\s*([^,]*?)\s*(?:,|$)", columns)
    raw = read_table(source, wanted) if isinstance(source, Path) else from_columns(source)
    if columns is not None:
        chosen = roles.parse_columns(columns, raw.names, raw.values.shape[1], label)
    elif raw.names is None:
        chosen = roles.signature(raw.values, label)
    else:
        chosen = roles.choose(raw.names, raw.units, raw.values, label)
    dividing = chosen.divide
    if dividing is None:
        dividing = [c for c in range(len(raw.names or [])) if _divides(raw, c, chosen, label)]
    cells = [raw.words.get(c) or [f"{x:g}" for x in raw.values[:, c]] for c in dividing]
    keys = list(zip(*cells, strict=True)) or [()] * len(raw.values)
    # Columns that say the same, such as a filter's name and its number, name a data set once.
    at = {kind: k for k, kind in enumerate(sorted(set(keys)))}
    named = [i for i in range(len(cells)) if len({kind[i] for kind in at}) == len(at)][:1]
    group, found, lost = np.array([at[key] for key in keys]), [], raw.dropped
    for kind, k in at.items():
        name = "/".join(kind[i] for i in named or range(len(kind)))
        curve, dropped = _clean(raw, raw.values[group == k], chosen, label, reference_flux)
        if curve is None or kind and not name.strip("/"):
            lost = lost + (dropped if curve is None else Counter({"no data set named": len(curve)}))
        else:
            found.append((name, curve))
    if not found:
        total = f"none of its {len(raw.values) + raw.dropped.total()} rows is usable"
        raise InputError(f"{label}: {total} ({_list(lost)}); {WANTED}")
    remarks = found[0][1].remarks
    if len(found) > 1:
        by = ", ".join(repr(raw.names[c]) if raw.names else str(c + 1) for c in dividing)
        remarks += (f"data sets by column {by}",)
    dropped = dict(Counter(found[0][1].dropped) + lost)
    return [(found[0][0], replace(found[0][1], dropped=dropped, remarks=remarks)), *found[1:]]


def _divides(raw: RawTable, column: int, chosen: roles.Columns, label: str) -> bool:
    """Whether a column so named has several values, fewer than would number the rows."""
    name, used = raw.names[column], [chosen.time, chosen.value, chosen.error]
    if column in used or not roles.divides(name):
        return False
    usable = np.isfinite(raw.values[:, used]).all(1)
    cells = raw.words.get(column) or raw.values[:, column].tolist()
    found = {cell for cell, good in zip(cells, usable.tolist(), strict=True) if good}
    several = 1 < len(found) <= max(usable.sum() / 2, 8)
    if several and roles.divides(name) == "events":
        raise InputError(
            f"{label}: its column {name!r} has {len(found)} values, so it holds several events; "
            f"expected one; give a file to each, or --columns ...,dataset={name} for one event"
        )
    return several


def _clean(raw: RawTable, rows: NDArray, chosen: roles.Columns, label: str, shift: float | None):
    """Usable rows only, in magnitudes, sorted: a `Photometry` or None, and what was dropped."""
    at, kind = [chosen.time, chosen.value, chosen.error], chosen.kind
    shown = [repr(raw.names[c][:20]) if raw.names else f"{c + 1}" for c in at]
    junk = (rows[:, at] == -np.inf).sum(0)
    if max(FEWEST, JUNK * len(rows)) < junk.max() < len(rows):
        worst = f"{junk.max()} of {len(rows)} cells of column {shown[int(junk.argmax())]}"
        raise InputError(f"{label}: {worst} are no numbers; {WANTED}; or {roles.WAY_OUT}")
    rows = rows[np.argsort(rows[:, at[0]], kind="stable")]
    time, value, error = (rows[:, at] * roles.scales(chosen, raw.units, shown, label)).T
    dropped, what = Counter(), "difference flux" if kind == "difference" else kind
    remarks = [f"time, {what} and error from columns {', '.join(shown)}"]
    if any(units := [raw.units[c] for c in at]):
        remarks += [f"units {', '.join(unit or '-' for unit in units)}"]

    def keep(good: NDArray, reason: str) -> None:
        nonlocal time, value, error, rows
        if lost := int((~good).sum()):
            dropped[reason] += lost
        time, value, error, rows = time[good], value[good], error[good], rows[good]

    keep(np.isfinite(time), "time not a number")
    called, unit = raw.names[at[0]] if raw.names else "hjd", raw.units[at[0]]
    zero, dated = roles.time_zero(called, unit, np.median(time) if len(time) else 0.0)
    jumps, middle = np.flatnonzero(np.diff(time) > LONGEST_PAUSE) + 1, len(time) // 2
    first, last = max([0, *jumps[jumps <= middle]]), min([*jumps[jumps > middle], len(time)])
    dates = (time + zero > roles.FIRST_JD) & (time + zero < roles.LAST_JD)
    dates[:first] = dates[last:] = False
    dated &= raw.names is not None or zero > 0  # without a header, MJD stays as it is
    if dated and dates.sum() >= (1 - NO_DATES) * len(time):
        keep(dates, "time no date")
        dated = False
    keep(~np.isposinf(value), "a limit")
    mark = _not_measured(value) & (kind == "mag") | np.isin(np.abs(rows[:, at[1]]), MARKS)
    keep(np.isfinite(value) & ~mark, "magnitude or flux not a number")
    unmeasured = (error >= UNMEASURED) & (kind == "mag") | np.isin(rows[:, at[2]], MARKS)
    keep(np.isfinite(error) & (error > 0) & ~unmeasured, "error not positive")
    if kind != "mag" and len(time):
        shift = _reference_flux(value, error, kind, label) if shift is None else shift
        remarks += [f"reference flux {shift:.5g} added"] if shift else []
        value = value + shift
        keep(value > 0, "flux not positive")
        value, error = FLUX_ZERO_POINT - 2.5 * np.log10(value), MAG * error / value
    if not len(time):
        return None, dropped
    problem = None
    if time[-1] > roles.LAST_TIME or time[-1] - time[0] > roles.LONGEST:
        problem = f"times {shown[0]} from {time[0]:.10g} to {time[-1]:.10g}; expected days of one "
        problem += f"time zero, at most {roles.LONGEST} d long"
    elif dated:
        problem = f"times {shown[0]} from {time[0]:.10g}, which are no dates of one light "
        problem += f"curve; expected days from JD {zero:.1f}"
    elif kind == "mag" and np.median(error) > 1:
        problem = f"errors {shown[2]} of {np.median(error):.3g} in the median; expected "
        problem += "magnitudes; if they are millimag, call them err [mmag]"
    if problem := problem or _several_curves(raw, rows, time, value, error, at, chosen.divide):
        raise InputError(f"{label} has {problem}; {roles.WAY_OUT}")
    keep(np.diff(time, prepend=-np.inf) > 0, "repeated time")
    scale = "time" if time[0] + zero < 2e6 else (re.search("[hb]jd", called.lower()) or ["jd"])[0]
    remarks += [f"{zero:.1f} d added to the times" if zero else "times as they are"]
    scale = scale if scale == "time" else scale.upper()
    found = (time + zero, value, error, None, dict(dropped), tuple(remarks), scale, kind)
    return Photometry(label, *found), dropped


def _not_measured(mag: NDArray) -> NDArray:
    """Marks for that, such as 99.999, 50, 0 or -9.99: far from the first values, (n,) bool."""
    first = np.unique(mag[np.isfinite(mag) & (np.abs(mag) < 50) & (mag != 0)][:200])
    typical = np.median(first) if len(first) else 0.0
    zero = (mag == 0) & (abs(typical) > 3 or not len(first))
    return (np.abs(mag) >= 50) | (np.abs(mag - typical) > FAR) | zero


def _several_curves(raw, rows, time, mag, error, used, divide) -> str | None:
    """What shows that curves are merged: magnitudes jump at a time, or with a column's value."""
    steps, same = np.abs(np.diff(mag)), np.diff(time) == 0
    noise = np.hypot(error[1:], error[:-1])
    if same.sum() > max(FEWEST, REPEATED * len(time)) and np.median((steps / noise)[same]) > 5:
        return f"{same.sum()} repeated times with other magnitudes; expected one star, one filter"
    for column in set(range(rows.shape[1])) - {*used, *(divide or ())}:
        kinds, code = np.unique(rows[:, column], return_inverse=True)
        cross = np.diff(code) != 0
        if not 1 < len(kinds) <= FEWEST or cross.sum() < FEWEST:
            continue
        within = np.concatenate([np.abs(np.diff(mag[code == k])) for k in range(len(kinds))])
        if len(within) >= FEWEST and np.median(steps[cross]) > 3 * np.median(within):
            name = repr(raw.names[column]) if raw.names else column + 1
            return f"magnitudes that jump between the {len(kinds)} values of column {name}; " \
                   "expected one data set, or dataset=NAME in --columns"  # fmt: skip
    return None


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
