"""Which column is time, brightness and error, in which units, and which divides a table."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from lensml.limits import LONGEST_NAME
from lensml.paths import InputError

WAY_OUT = "say which, as in --columns time=NAME,mag=NAME,err=NAME (names or numbers from 1)"
DAYS = {"s": 1 / 86400, "sec": 1 / 86400, "second": 1 / 86400, "min": 1 / 1440, "minute": 1 / 1440,
        "h": 1 / 24, "hr": 1 / 24, "hour": 1 / 24, "d": 1.0, "day": 1.0}  # fmt: skip
MAGS = {"mag": 1.0, "mmag": 1e-3, "millimag": 1e-3, "mag(ab)": 1.0, "mag(st)": 1.0, "abmag": 1.0}
JANSKYS = {"jy": 1.0, "mjy": 1e-3, "ujy": 1e-6, "microjy": 1e-6, "njy": 1e-9}
OTHERS = {"adu", "count", "ct", "electron", "e-", "deg", "arcsec", "pixel", "pix", "tcb", "tdb"}
JULIAN = r"(?:[bh]?m?jd|bm?jd|mjd|rjd|bt?jd|bkjd)"
ZEROS = {"btjd": 2457000.0, "bkjd": 2454833.0, "rjd": 2400000.0, "mjd": 2400000.5}  # by name [day]
LAST_TIME, LONGEST = 3e6, 40_000  # a later time, or a longer span, are no days
FIRST_JD, LAST_JD = 2.43e6, 2.48e6  # from 1941 to 2077
FLUX = r"flux(?:es)?|[munµμ]?jy(?![a-z])|counts?(?![a-z])"
MAGNITUDE = r"(?:milli|m)?mag(?:nitudes?)?"
ERROR = (
    r"uncertainty|uncert|unc|errors?|err|sigma(?!g)|sig|std|rms|^e_|^d_?(?=(?:m|mag|[munµμ]?jy)$)"
)
PLAIN = r"relative|rel|delta|difference|differential|diff|del|instrumental|inst|average|mean"
# Magnitudes that are no measurement of the star: limits, references, other stars, the sky.
FOREIGN = (
    r"lim|mag\d+sig|ref|zp|zero|sky|bkg|comp|check|cat|near|nr(?![a-z])|base|gaia|star|chi|hq|"
    r"start|end|hist|template|model|fit|resid"
)
DATASET = (  # names of what keeps data sets apart, and of what keeps stars apart
    r"filt(er)?s?($|[ _]?(code|id|name))|(pass)?band|fid$|f$|site|observ|obs[ _]?code|camera|cam$|"
    r"tel(escope)?($|[ _])|inst(rument)?($|_id|_name)|detector|ccd|chip($|_)|field|survey|facility|"
    r"data[ _]?set|series|group|oid$|rcid|quadrant"
)
EVENT = r"(event|star|object|obj|source|target|lens|id|name)[ _]?(id|name|no|num(ber)?)?$"
UNITS = {*DAYS, *MAGS, *JANSKYS, *OTHERS}
ATLAS = {"m", "dm", "ujy", "dujy"}  # forced photometry, whose magnitudes lose what is not positive


@dataclass(frozen=True)
class Columns:
    """Positions of what makes a light curve, and what it is measured in."""

    time: int
    value: int
    error: int
    kind: str  # "mag", "flux" or "difference"
    divide: tuple[int, ...] | None = None  # columns of data sets; None: those named like one


def split_unit(cell: str) -> tuple[str, str]:
    """Name and unit of a header's cell: `time [d]` or `flux_uJy`; "" if none is stated."""
    cell = cell.strip(" \t\"'")[:LONGEST_NAME]
    if found := re.search(r"\s*[\[(]([^\])]*)[\])]", cell):
        return (cell[: found.start()] + cell[found.end() :]).strip(), found[1].strip()
    found = re.search(r"[_ ](mmag|millimag|[mun]?jy|sec|seconds|days|hours)$", cell, re.IGNORECASE)
    return cell, found[1] if found else "uJy" if cell.lower() in ("ujy", "dujy") else ""


def _unit(text: str) -> str:
    """A unit's text as the tables above have it."""
    text = re.sub(r"^[µμ]|^micro(?=j)", "u", re.sub(r"\s", "", text.lower()))
    return text[:-1] if text.endswith("s") and text[:-1] in UNITS else text


def is_unit(cell: str) -> bool:
    """Whether a cell of a row below the header is a unit."""
    return len(cell) <= LONGEST_NAME and _unit(cell.strip("[]()")) in UNITS


def _plain(name: str) -> str:
    """A name in small letters, without a prefix such as `i:` and without images."""
    name = re.sub(r"^[a-z]{1,3}:", "", name.strip().lower().lstrip("\\"))
    return re.sub(r"image|magnif|[\s.]+$", "", name)


def divides(name: str) -> str | None:
    """Whether a column so named keeps "data sets" or "events" apart."""
    name = _plain(name)
    return "data sets" if re.match(DATASET, name) else "events" if re.match(EVENT, name) else None


def _time_rank(name: str, unit: str) -> int | None:
    """How surely a column is the time: first a Julian date, then what holds one, then others."""
    name = re.sub(r"[-+_ ]*24\d{5}(\.\d+)?|[-_ .']+", "", _plain(name))
    name = re.sub(r"(tdb|utc|tai|tt|mid)$", "", name)
    if re.search(r"err|sig|unc|start|end|hist|ref|id$", name):
        return None
    exact = ("bjd", "hjd", "jd", "bmjd", "hmjd", "mjd")
    if name in exact:
        return exact.index(name)
    if re.match(JULIAN, name) or re.search(f"{JULIAN}$", name) or re.match(JULIAN, unit.lower()):
        return 6
    return 7 if re.match(r"(time|date|epoch|obsdate|dateobs|obstime|t$)", name) else None


def _role(name: str) -> tuple[str, bool, str] | None:
    """Kind ("mag", "flux", "difference", "" for a bare error), whether an error, and of what."""
    name = _plain(name)
    error = bool(re.search(ERROR, name))
    rest = re.sub(ERROR, "", name) if error else name
    flux = bool(re.search(FLUX, rest))
    if not (flux or error or re.search(MAGNITUDE, rest) or rest == "m"):
        return None
    if re.search(FOREIGN, name):
        return None
    kind = "flux" if flux else "mag" if re.search(MAGNITUDE, rest) or rest == "m" else ""
    if flux and not error and re.search(r"del|diff|^d_?flux", name):
        kind = "difference"
    rest = re.sub(f"{FLUX}|{MAGNITUDE}|{PLAIN}|^m$|[^a-z0-9]", "", rest)
    return kind, error, rest


def is_header(cells: Sequence[str]) -> bool:
    """Whether cells are names, of a time and of a magnitude or flux among them."""
    if max(map(len, cells), default=0) > LONGEST_NAME:  # the patterns would take long
        return False
    named = [split_unit(cell) for cell in cells]
    roles = [_role(name) for name, _ in named]
    return any(r and not r[1] for r in roles) and any(_time_rank(*c) is not None for c in named)


def choose(names: list[str], units: list[str], values: NDArray, label: str) -> Columns:
    """The columns that the names leave no doubt about; otherwise an InputError in one line."""
    shown = ", ".join(repr(name[:20]) for name in names[:6]) + ", ..." * (len(names) > 6)

    def refuse(problem: str) -> NoReturn:
        raise InputError(f"{label} has columns {shown} and {problem}; {WAY_OUT}")

    # The time: of several Julian dates, which are one moment, the more exact.
    ranks = [_time_rank(n, u) for n, u in zip(names, units, strict=True)]
    best = min((rank for rank in ranks if rank is not None), default=None)
    if best is None:
        refuse("none for time; expected hjd, bjd, jd, mjd or time")
    times = [i for i, rank in enumerate(ranks) if rank == best]
    if len(times) > 1:
        refuse(f"{' and '.join(repr(names[i]) for i in times)} may each be the time")
    # Each value with the error that belongs to it by kind and name.
    roles = {i: r for i, name in enumerate(names) if i != times[0] and (r := _role(name))}
    errors = {i: (kind, stem) for i, (kind, error, stem) in roles.items() if error}
    candidates = {i: (kind, stem) for i, (kind, error, stem) in roles.items() if not error}
    atlas = {_plain(name) for name in names} >= ATLAS
    for kind in ("mag", "flux", "difference")[atlas:]:
        same = [i for i, (k, _) in candidates.items() if k == kind]
        # An archive may leave one of two kinds blank.
        same = [i for i in same if len(candidates) == 1 or not np.isnan(values[:, i]).all()]
        base, pairs = "flux" if kind == "difference" else kind, {}
        for i in same:
            stem = candidates[i][1]
            plain = [(base, ""), ("", "")] if len(same) == 1 else []
            for wanted in ((base, stem), ("", stem), *plain):
                if found := [k for k, role in errors.items() if role == wanted]:
                    pairs[i] = found
                    break
        if len(pairs) > 1:
            pairs = {i: found for i, found in pairs.items() if not candidates[i][1]} or pairs
        if len(pairs) > 1:
            refuse(f"{' and '.join(repr(names[i]) for i in pairs)} may each be the {kind}")
        for i, found in pairs.items():
            if len(found) > 1:
                both = " and ".join(repr(names[k]) for k in found)
                refuse(f"{both} may each be the error of {names[i]!r}")
            return Columns(times[0], i, found[0], kind)
    lonely = next((f"its error, that of {names[i]!r}" for i in candidates), "magnitude or flux")
    refuse(f"none for {lonely}; expected mag,mag_err or flux,flux_err")


def parse_columns(text: str, names: list[str] | None, width: int, label: str) -> Columns:
    """Columns as the user names or numbers them: `time=1,mag=2,err=3,dataset=filter`."""
    at = {}
    for part in text.split(","):
        key, _, name = (x.strip() for x in part.partition("="))
        found = [i for i, n in enumerate(names or []) if name == n]
        if not found and name.isdigit() and 1 <= int(name) <= width:
            found = [int(name) - 1]
        if len(found) != 1:
            known = ", ".join(map(repr, (names or [])[:12])) or "no names"
            what = f"{name!r} is none of the {width} columns of {label}, which have {known}"
            raise InputError(f"--columns {text}: {what}; give a name or a number from 1")
        at["err" if key in ("mag_err", "flux_err") else key] = found[0]
    kind = "mag" if "mag" in at else "flux"
    if at.keys() - {"dataset"} != {"time", kind, "err"} or len(set(at.values())) < len(at):
        raise InputError(f"--columns {text}: expected time=, mag= and err=, or time=, flux= and "
                         "flux_err=, perhaps dataset=, each another column")  # fmt: skip
    divide = (at["dataset"],) if "dataset" in at else None
    return Columns(at["time"], at[kind], at["err"], kind, divide)


def signature(values: NDArray, label: str) -> Columns:
    """OGLE, KMTNet or MOA by their numbers alone: what fits none of them is refused."""
    usable, width = values[np.isfinite(values).all(1)], values.shape[1]
    if width >= 3 and len(usable):
        time, value, error = usable[:, :3].T
        full, short = (time > FIRST_JD) & (time < LAST_JD), (time > 400) & (time < 20_000)
        # Whole numbers, or what rises with another column of fractions, may count the rows.
        rest = usable[np.argsort(time), 1:]
        rising = (np.diff(rest, axis=0) > 0).all(0) & (rest % 1 > 0).any(0)
        rising |= ((rest > FIRST_JD) & (rest < LAST_JD)).mean(0) > 0.5
        counter = len(time) > 5 and (rising.any() or short.all() and (time % 1 == 0).all())
        if ((full | short).all() or ((time > 40_000) & (time < 80_000)).all()) and not counter:
            if _is_magnitude(value, error):
                return Columns(0, 1, 2, "mag")
            if width >= 5 and _is_magnitude(*usable[:, 3:5].T):  # KMTNet's is made of its flux
                with np.errstate(all="ignore"):
                    good = np.abs(usable[:, 3]) < 50
                    flux = 10 ** (-0.4 * usable[good, 3])
                    related = abs(np.corrcoef(flux, value[good])[0, 1])
                if related > 0.95:
                    return Columns(0, 3, 4, "mag")
            fractions = (value[:50] % 1 != 0).mean() > 0.5
            if fractions and (value[:50] <= 0).mean() > 0.1 and (error[:50] > 0).mean() > 0.9:
                return Columns(0, 1, 2, "difference")
    raise InputError(f"{label} has {width} columns and no header; expected a table of OGLE (HJD, "
                     "mag, error), KMTNet or MOA (HJD, difference flux, error); add a header, or "
                     f"{WAY_OUT}")  # fmt: skip


def _is_magnitude(value: NDArray, error: NDArray) -> bool:
    """Whether columns are apparent magnitudes: 8-26, brighter in peaks as lenses make them."""
    good = (np.abs(value) < 50) & (value != 0) & (error > 0) & (error < 9)
    if good.sum() < 0.3 * len(value) or not good.any():
        return False
    low, middle, high = np.percentile(value[good], (1, 50, 99))
    rises = high - middle > max(1.0, 3 * (middle - low))  # a flux that rises, taken for mag
    return 8 < middle < 26 and np.median(error[good]) < 0.5 and high < 35 and not rises


def time_zero(name: str, unit: str, middle: float) -> tuple[float, bool]:
    """What makes full (H)JD of times of this median [day], and whether they must be dates."""
    text = f"{name} {unit}".lower().replace(",", "")
    stated = re.search(r"24\d{5}(\.\d+)?", text)
    plain = 2450000.0 if "jd" in text and 400 < middle < 20000 else 0.0
    named = next((zero for key, zero in ZEROS.items() if key in text), plain)
    zero = 0.0 if middle >= 2e6 else float(stated[0]) if stated else named
    return zero, bool(zero) or _time_rank(name, unit) in range(7)


def scales(columns: Columns, units: list[str], shown: list[str], label: str) -> list[float]:
    """Factors to days, and of value and error to magnitudes or to one unit of flux."""
    time, value, error = found = [
        _unit(units[c]) for c in (columns.time, columns.value, columns.error)
    ]
    known = {"": 1.0} | (MAGS if columns.kind == "mag" else {value or error: 1.0})
    if columns.kind != "mag" and {value, error} <= JANSKYS.keys():
        known = {unit: JANSKYS[unit] / JANSKYS[value] for unit in (value, error)}
    dated = not time or re.search(r"jd|t[cd]b|ut|tt|tai|24\d{5}", time)
    if (time in DAYS or dated) and value in known and error in known:
        return [DAYS.get(time, 1.0), known[value], known[error]]
    stated = ", ".join(f"{name} in {unit or '-'}" for name, unit in zip(shown, found, strict=True))
    raise InputError(f"{label} has {stated}; expected d or s, and mag or mmag, or one unit of flux "
                     "for value and error")  # fmt: skip
