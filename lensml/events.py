"""Real photometry: read any survey's table, name the events at hand, fetch OGLE's, fit one lens."""

import gzip
import os
import re
import tempfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from lensml.paths import InputError
from lensml.pspl import MAG, fit_pspl, pspl_delta_mag

__all__ = [
    "InstalledEvent",
    "ObservedFit",
    "Photometry",
    "baseline_magnitude",
    "download_ogle",
    "from_table",
    "installed_events",
    "load_installed",
    "pspl_fit_observed",
    "read_photometry",
    "seasons",
]

FLUX_ZERO_POINT = 22.0  # magnitude of unit flux; only differences of magnitude matter to us
REFERENCE_FLUX = 10 ** (0.4 * (28 - 20))  # KMTNet's pysis: a reference image of 20 mag, zero at 28
OGLE_EWS = "https://www.astrouw.edu.pl/ogle/ogle4/ews"
WANTED = (
    "expected time (time, hjd, bjd, jd or mjd), mag and mag_err, or flux and flux_err, under a "
    "header line, or an OGLE, MOA or KMTNet table"
)
INSTALLED = (
    ("OGLE-2003-BLG-235", "binary", "Bond et al. 2004", "OB03235/OB03235_OGLE.tbl.txt"),
    ("MOA-2008-BLG-310", "binary", "Janczak et al. 2010", "MB08310/MOA_0300089_PLC_007.tbl"),
    ("OGLE-2016-BLG-1195", "binary", "Shvartzvald et al. 2017", "OB161195/KCT01I.dat"),
    ("OGLE-2008-BLG-092", "binary", "Poleski et al. 2014", "OB08092/phot_ob08092_O4.dat"),
    ("OGLE-2014-BLG-0939", "single", "Yee et al. 2015", "OB140939/ob140939_OGLE.dat"),
    ("OGLE-2005-BLG-086", "single", "Wyrzykowski et al. 2015", "OB05086/starBLG234.6.I.218982.dat"),
)


@dataclass(frozen=True)
class Photometry:
    """Usable epochs of one light curve, in time order, with a count of what was left out."""

    name: str
    time: NDArray  # (n,) float64, strictly increasing [day]
    mag: NDArray  # (n,) float64, finite [mag]
    mag_err: NDArray  # (n,) float64, finite and positive, as published [mag]
    m_base: float | None = None  # baseline magnitude if the user knows it [mag]
    dropped: Mapping[str, int] = field(default_factory=dict)  # reason -> number of rows
    remarks: tuple[str, ...] = ()  # what was assumed on the way: time zero, reference flux

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
    first 50 epochs not positive) has no zero of its own: `reference_flux` is added, by default
    the 1585 counts by which KMTNet's tables do the same. A reference above the source's flux
    makes a blended event, so the choice changes the apparent blend and no signal-to-noise.

    Time is given as full HJD where the offset is told by the column's name (`mjd`,
    `HJD-2457000`) or is plain: a (H, B)JD, or a first column without a name, that starts
    between 400 and 20000 is JD - 2450000. A column called `time` stays as it is.

    Args:
        path: The file.
        m_base: Baseline magnitude, passed on [mag].
        reference_flux: Flux of the reference image, in the units of the table.

    Raises:
        InputError: In one line, if the file is missing, unreadable or without one usable row.
    """
    label = str(path)
    names, rows = _parse(_text(Path(path), label), label)
    name = re.sub(r"(\.(csv|dat|txt|tbl|gz|pysis))+$", "", Path(path).name)
    return _photometry(names, rows, label, name, m_base, reference_flux)


def from_table(
    table,
    *,
    name: str = "table",
    m_base: float | None = None,
    reference_flux: float | None = None,
) -> Photometry:
    """Read an astropy `Table` by the rules of `read_photometry`; masked values are not usable."""

    def numbers(column) -> NDArray:
        values = getattr(column, "jd", getattr(column, "value", column))
        if not np.issubdtype(np.asarray(values).dtype, np.number):
            return np.full(len(table), np.nan)
        return np.ma.filled(np.ma.asarray(values).astype(float), np.nan)

    names = list(table.colnames)
    rows = np.array([numbers(table[column]) for column in names]).reshape(len(names), -1).T
    if not len(rows):
        raise InputError(f"table `{name}` is empty; {WANTED}")
    return _photometry(names, rows, f"table `{name}`", name, m_base, reference_flux)


def _text(path: Path, label: str) -> str:
    """The file's text, or one line about why there is none."""
    if path.is_dir():
        raise InputError(f"{label} is a folder; expected one light curve, give a file inside it")
    try:
        raw = path.read_bytes()
        if raw[:2] == b"\x1f\x8b":
            raw = gzip.decompress(raw)
    except FileNotFoundError:
        raise InputError(f"{label} does not exist; give the path of a light curve file") from None
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{label} cannot be read ({error}); {WANTED}") from None
    if b"\0" in raw:
        raise InputError(f"{label} holds binary data, not text; {WANTED}; export it as CSV")
    text = raw.decode("utf-8-sig", errors="replace")
    if not text.strip():
        raise InputError(f"{label} is empty; {WANTED}")
    return text


def _number(token: str) -> float:
    try:
        return float(token)
    except ValueError:
        return np.nan


def _split(line: str) -> list[str]:
    """Fields of one line: by comma or semicolon if there is one, else by blanks."""
    mark = next((c for c in ",;" if c in line), None)
    return [token.strip(" \t\"'") for token in line.split(mark)]


def _header(line: str) -> list[str]:
    """Column names of a header line; units in brackets go, `HJD - 2450000` is one name."""
    line = re.sub(r"[\[(][^\])]*[\])]", "", line.lstrip("# \t"))
    return _split(re.sub(r"\s*-\s*(?=24\d{5})", "-", line))


def _parse(text: str, label: str) -> tuple[list[str] | None, NDArray]:
    """Column names, None if there are none, and numbers (rows, columns), NaN where not a number."""
    lines = [line for line in text.splitlines() if line.strip() and line[0] != "\\"]
    bars = [line for line in lines if line[0] == "|"]
    notes = [line for line in lines if line.lstrip()[0] == "#"]
    lines = [line for line in lines if line[0] != "|" and line.lstrip()[0] != "#"]
    names: list[str] | None = None
    split: Callable[[str], list[str]] = _split
    if bars:  # IPAC table: the bars over the columns say where each field lies
        edges = [i for i, c in enumerate(bars[0]) if c == "|"]
        spans = list(zip(edges[:-1], edges[1:], strict=True))
        names = [bars[0][a + 1 : b].strip() for a, b in spans]

        def split(line: str) -> list[str]:
            return [line[a : b + 1].strip() for a, b in spans]

    elif lines and np.isnan(_number(first := _split(lines[0])[0])) and first.lower() != "nan":
        names, lines = _header(lines[0]), lines[1:]
    elif lines and notes:
        width = len(_split(lines[0]))
        behind = [header for note in notes if len(header := _header(note)) == width]
        names = next((h for h in reversed(behind) if "time" in map(_role, h)), None)
    if not lines:
        raise InputError(f"{label} has a header but no rows of data; {WANTED}")
    if names and "time" not in map(_role, names):
        _refuse_columns(names, "time", label)
    fields = [split(line) for line in lines]
    width = len(names) if names else len(fields[0])
    fields = [(row + [""] * width)[:width] for row in fields]
    return names, np.array([[_number(token) for token in row] for row in fields])


def _role(name: str) -> str | None:
    """What a column holds, by its name."""
    name = name.lower()
    value = next((kind for kind in ("mag", "flux") if kind in name), "")
    if "magnif" in name:
        return None
    if re.search(r"err|unc|sig|^e_", name):
        return f"{value}_err".lstrip("_")
    if re.match(r"(time|date|epoch|t$|[bhm]?jd)", name):
        return "time"
    if value == "flux" and re.search(r"del|diff|^d_?flux", name):
        return "difference"
    return value or None


def _refuse_columns(names: Sequence[str], missing: str, label: str) -> None:
    shown = ", ".join(repr(name[:20]) for name in names[:6]) + (", ..." if len(names) > 6 else "")
    raise InputError(f"{label} has columns {shown} and none for {missing}; {WANTED}")


def _columns(names: list[str] | None, rows: NDArray, label: str) -> tuple[int, int, int, str]:
    """Positions of time, value and error, and whether the value is mag, flux or difference."""
    if names is None:
        return _columns_without_names(rows, label)
    position: dict[str | None, int] = {}
    for i, name in enumerate(names):
        position.setdefault(_role(name), i)
    for kind in ("mag", "flux", "difference"):
        error = position.get("mag_err" if kind == "mag" else "flux_err", position.get("err"))
        if kind in position and error is not None and "time" in position:
            other = kind == "mag" and {"flux", "difference"} & position.keys()
            if not other or np.isfinite(rows[:, position[kind]]).any():
                return position["time"], position[kind], error, kind
    values = {"mag", "flux", "difference"} & position.keys()
    missing = "time" if "time" not in position else "its error" if values else "magnitude or flux"
    return _refuse_columns(names, missing, label)


def _columns_without_names(rows: NDArray, label: str) -> tuple[int, int, int, str]:
    """OGLE, KMTNet or MOA, told by which pair of columns looks like a magnitude and its error."""
    if rows.shape[1] < 3:
        raise InputError(f"{label} has {rows.shape[1]} columns and no header; {WANTED}")
    head = [c[np.isfinite(c)][:20] for c in rows.T]
    typical = [float(np.median(c)) if len(c) else np.nan for c in head]

    def is_magnitude(i: int) -> bool:
        return 3 < typical[i] < 35 and 0 < typical[i + 1] < 3

    if is_magnitude(1):
        return 0, 1, 2, "mag"
    if rows.shape[1] >= 5 and is_magnitude(3):
        return 0, 3, 4, "mag"
    return 0, 1, 2, "flux"


def _photometry(
    names: list[str] | None,
    rows: NDArray,
    label: str,
    name: str,
    m_base: float | None,
    reference_flux: float | None,
) -> Photometry:
    """Clean columns: usable rows only, in magnitudes, sorted, every dropped row counted."""
    i, j, k, kind = _columns(names, rows, label)
    time, value, error = rows[np.argsort(rows[:, i], kind="stable")][:, [i, j, k]].T
    dropped: dict[str, int] = {}

    def keep(good: NDArray, reason: str) -> None:
        nonlocal time, value, error
        if lost := int((~good).sum()):
            dropped[reason] = lost
        time, value, error = time[good], value[good], error[good]

    keep(np.isfinite(time), "time not a number")
    placeholder = (np.abs(value) > 90) & (kind == "mag")  # 99.999 means not measured
    keep(np.isfinite(value) & ~placeholder, "magnitude or flux not a number")
    keep(np.isfinite(error) & (error > 0), "error not positive")
    remarks = []
    if kind != "mag" and len(time):
        shift, remark = _flux_shift(value, error, kind, reference_flux, label)
        remarks += [remark] if remark else []
        value = value + shift
        keep(value > 0, "flux not positive")
        value, error = FLUX_ZERO_POINT - 2.5 * np.log10(value), MAG * error / value
    if not len(time):
        why = ", ".join(f"{count} {reason}" for reason, count in dropped.items())
        raise InputError(f"{label}: none of its {len(rows)} rows is usable ({why}); {WANTED}")
    keep(np.diff(time, prepend=-np.inf) > 0, "repeated time")
    zero = _time_zero(names[i] if names else "hjd", time[0])
    remarks += [f"{zero:.1f} d added to the times"] if zero else []
    return Photometry(name, time + zero, value, error, m_base, dropped, tuple(remarks))


def _flux_shift(
    flux: NDArray, error: NDArray, kind: str, reference: float | None, label: str
) -> tuple[float, str]:
    """What to add to make total flux, and the remark that says so; decided by the first epochs."""
    if reference is not None:
        return reference, f"reference flux {reference:g} added"
    if kind == "flux" and (flux[:50] <= 0).mean() <= 0.1:
        return 0.0, ""
    typical = np.median(error[:50])
    if not 1 < typical < REFERENCE_FLUX or (flux + REFERENCE_FLUX <= 0).mean() > 0.1:
        raise InputError(
            f"{label} holds difference flux (typical error {typical:.3g}) without a usable zero; "
            "expected magnitudes or total flux; add the reference image's flux to the column, or "
            "call read_photometry(path, reference_flux=...)"
        )
    return REFERENCE_FLUX, f"difference flux, reference of {REFERENCE_FLUX:.0f} counts assumed"


def _time_zero(name: str, first: float) -> float:
    """What to add to a column of times that starts at `first` to make it full (H)JD [day]."""
    name = name.lower()
    if first > 2e6:
        return 0.0
    if told := re.search(r"24\d{5}(\.\d+)?", name):
        return float(told[0])
    if "mjd" in name:
        return 2400000.5
    return 2450000.0 if "jd" in name and 400 < first < 20000 else 0.0


def seasons(time: ArrayLike, gap: float = 60.0) -> list[slice]:
    """Stretches of sorted epochs (n,) [day] without a pause longer than `gap` [day]."""
    cuts = np.flatnonzero(np.diff(time) > gap) + 1
    edges = [0, *cuts.tolist(), len(np.asarray(time))]
    return [slice(a, b) for a, b in zip(edges[:-1], edges[1:], strict=True)]


def baseline_magnitude(photometry: Photometry) -> float:
    """Baseline for a figure's axis [mag]: given, or the median season's, or the first fifth's.

    It looks at the whole curve, so no network may see it; `stream` has the causal estimate.
    """
    if photometry.m_base is not None:
        return photometry.m_base
    medians = [np.median(photometry.mag[s]) for s in seasons(photometry.time)]
    if len(medians) >= 3:
        return float(np.median(medians))
    return float(np.median(photometry.mag[: max(5, len(photometry) // 5)]))


@dataclass(frozen=True)
class InstalledEvent:
    """A published event whose photometry comes with MulensModel."""

    name: str
    lens: str  # "single" or "binary", as published
    reference: str
    files: tuple[str, ...]  # data sets in MulensModel's photometry folder, the one to show first


def installed_events() -> dict[str, InstalledEvent]:
    """Real events on this machine, by name (MulensModel's data folder, MIT licence)."""
    folder = _installed_folder()
    events = {}
    for name, lens, reference, first in INSTALLED:
        tables = [path for path in (folder / first).parent.iterdir() if "README" not in path.name]
        rest = sorted(f"{path.parent.name}/{path.name}" for path in tables)
        files = (first, *(file for file in rest if file != first))
        events[name] = InstalledEvent(name, lens, reference, files)
    return events


def _installed_folder() -> Path:
    import MulensModel  # slow to import, and needed here alone

    return Path(MulensModel.DATA_PATH) / "photometry_files"


def load_installed(name: str, file: str | None = None) -> Photometry:
    """Photometry of one of `installed_events`; `file` picks a data set other than the first.

    Raises:
        InputError: If the event or the data set is unknown.
    """
    events = installed_events()
    if name not in events:
        raise InputError(f"no installed event is called {name!r}; choose from {', '.join(events)}")
    files = events[name].files
    if file not in (None, *files):
        raise InputError(f"{name} has no data set {file!r}; choose from {', '.join(files)}")
    return read_photometry(_installed_folder() / (file or files[0]))


def download_ogle(
    name: str, *, cache: Path | str | None = None, base_url: str = OGLE_EWS, refresh: bool = False
) -> Path:
    """Fetch `phot.dat` of an OGLE-IV early-warning event; a second call finds it in the cache.

    Args:
        name: For example "OGLE-2025-BLG-0001".
        cache: Folder to keep the files in; the user's cache folder by default.
        base_url: Where the survey publishes, up to the year.
        refresh: Whether to fetch anew what is already there; events in progress grow.

    Raises:
        InputError: If the name is no event's or nothing readable came; the cache stays as it was.
    """
    import pooch  # brings the whole of requests

    parts = re.fullmatch(r"OGLE-(20\d\d)-(BLG|GD|DG|LMC|SMC)-(\d{4})", name.strip().upper())
    if parts is None or int(parts[1]) < 2011:
        raise InputError(
            f"{name!r} is no OGLE-IV early-warning event; expected a name such as "
            "OGLE-2025-BLG-0001, from 2011 on; for others, download phot.dat and give its path"
        )
    folder = Path(cache) if cache is not None else Path(pooch.os_cache("lensml")) / "ogle"
    final = folder / f"{parts[0]}.dat"
    if final.exists() and not refresh:
        return final
    url = f"{base_url.rstrip('/')}/{parts[1]}/{parts[2].lower()}-{parts[3]}/phot.dat"
    pooch.get_logger().setLevel("WARNING")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            fetch = pooch.HTTPDownloader(timeout=30)
            got = pooch.retrieve(url, None, final.name, scratch, downloader=fetch)
            read_photometry(got)
            os.replace(got, final)
    except InputError:
        raise InputError(
            f"{parts[0]}: {url} sent something that is not photometry; expected OGLE's phot.dat; "
            "look at the address in a browser"
        ) from None
    except (OSError, ValueError) as error:  # requests' exceptions are OSErrors
        code = getattr(getattr(error, "response", None), "status_code", type(error).__name__)
        raise InputError(
            f"{parts[0]}: nothing came from {url} ({code}); expected photometry; check the event's "
            "number and the network, or download phot.dat elsewhere and give its path"
        ) from None
    return final


@dataclass(frozen=True)
class ObservedFit:
    """Best blended single lens of one observed curve, with its baseline free."""

    t0: float  # [day]
    u0: float  # [theta_E]
    tE: float  # [day]
    f_s: float  # share of the baseline flux that is lensed
    m_base: float  # fitted baseline [mag]
    residuals: NDArray  # (observed - model) / mag_err, shape (n,) [sigma]

    @property
    def chi2(self) -> float:
        """Weighted sum of squares."""
        return float((self.residuals**2).sum())

    @property
    def chi2_per_dof(self) -> float:
        """chi2 over epochs less the five free parameters; published errors are often too small."""
        return self.chi2 / max(1, len(self.residuals) - 5)

    def magnitude(self, time: ArrayLike) -> NDArray:
        """Fitted magnitude at `time`, shape (m,) [mag]."""
        one = (
            torch.tensor([x], dtype=torch.float64) for x in (self.t0, self.u0, self.tE, self.f_s)
        )
        epochs = torch.as_tensor(np.asarray(time, dtype=float))
        return self.m_base + pspl_delta_mag(epochs, *one)[0].numpy()


def pspl_fit_observed(photometry: Photometry) -> ObservedFit:
    """Fit t0, u0, tE, f_s and the baseline by least squares weighted with 1 / mag_err^2.

    Nine baselines at a time go through the batched fit of `pspl`, from its own starts and some at
    the brightest stretch of a running median; each round closes in on the best of them.

    Raises:
        InputError: If fewer than six epochs are left for five parameters.
    """
    if len(photometry) < 6:
        raise InputError(
            f"{photometry.name} has {len(photometry)} usable epochs; expected at least 6 for five "
            "parameters; use a longer light curve"
        )
    zero = photometry.time[0]
    times = torch.as_tensor(photometry.time - zero)
    weight = torch.as_tensor(photometry.mag_err**-2.0).expand(9, -1)
    centre, step = baseline_magnitude(photometry), 0.02 + 0.25 * float(np.std(photometry.mag))
    starts = _starts(photometry, centre)
    for _ in range(12):
        trial = centre + step * np.linspace(-1, 1, 9)
        data = torch.as_tensor(photometry.mag - trial[:, None])
        begin = torch.as_tensor(starts).expand(9, -1, -1)
        fit = fit_pspl(times, data, weight=weight, starts=begin, blended=True, num_polished=3)
        best = int(fit.chi2.argmin())
        t0, u0, tE, f_s = (float(x[best]) for x in (fit.t0, fit.u0, fit.tE, fit.f_s))
        starts = np.concatenate([starts[:6], [(t0, u0, tE)]])
        centre, step = float(trial[best]), step * (2.0 if best in (0, 8) else 0.25)
        if step < 1e-4:
            break
    model = ObservedFit(t0 + zero, u0, tE, f_s, centre, np.empty(0))
    residuals = (photometry.mag - model.magnitude(photometry.time)) / photometry.mag_err
    return replace(model, residuals=residuals)


def _starts(photometry: Photometry, baseline: float) -> NDArray:
    """Starting t0, u0, tE, shape (6, 3): at the peak of a running median, safe from one outlier."""
    padded = np.pad(photometry.mag, 2, mode="edge")
    smooth = np.median(np.lib.stride_tricks.sliding_window_view(padded, 5), axis=1)
    t0 = photometry.time[smooth.argmin()] - photometry.time[0]
    u0 = 1 / max(10 ** (0.4 * (baseline - smooth.min())), 1.05)
    return np.array([(t0, u0 * share, tE) for share in (1.0, 0.3) for tE in (5.0, 20.0, 80.0)])
