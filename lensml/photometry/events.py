"""Published events of MulensModel, and download of OGLE's early-warning photometry."""

import os
import re
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from lensml.paths import InputError
from lensml.photometry.readers import Photometry, read_photometry

OGLE_EWS = "https://www.astrouw.edu.pl/ogle/ogle4/ews"
INSTALLED = (
    ("OGLE-2003-BLG-235", "binary", "Bond et al. 2004", "OB03235/OB03235_OGLE.tbl.txt"),
    ("MOA-2008-BLG-310", "binary", "Janczak et al. 2010", "MB08310/MOA_0300089_PLC_007.tbl"),
    ("OGLE-2016-BLG-1195", "binary", "Shvartzvald et al. 2017", "OB161195/KCT01I.dat"),
    ("OGLE-2008-BLG-092", "binary", "Poleski et al. 2014", "OB08092/phot_ob08092_O4.dat"),
    ("OGLE-2014-BLG-0939", "single", "Yee et al. 2015", "OB140939/ob140939_OGLE.dat"),
    ("OGLE-2005-BLG-086", "single", "Wyrzykowski et al. 2015", "OB05086/starBLG234.6.I.218982.dat"),
)


class InstalledEvent(NamedTuple):
    """A published event whose photometry comes with MulensModel (MIT licence)."""

    lens: str  # "single" or "binary", as published
    reference: str
    files: tuple[Path, ...]  # its data sets, the one to show first


def installed_events() -> dict[str, InstalledEvent]:
    """Real events on this machine, by name."""
    # Found, not imported: the import is slow, and changes matplotlib's style for every figure.
    folder = Path(find_spec("MulensModel").origin).parent / "data" / "photometry_files"
    events = {}
    for name, lens, reference, first in INSTALLED:
        tables = sorted(p for p in (folder / first).parent.iterdir() if "README" not in p.name)
        files = (folder / first, *(path for path in tables if path != folder / first))
        events[name] = InstalledEvent(lens, reference, files)
    return events


def load_installed(name: str, file: str | None = None) -> Photometry:
    """Photometry of one of `installed_events`; `file` names a data set other than the first."""
    if name not in (events := installed_events()):
        raise InputError(f"no installed event is called {name!r}; choose from {', '.join(events)}")
    files = {path.name: path for path in events[name].files}
    if file is not None and file not in files:
        raise InputError(f"{name} has no data set {file!r}; choose from {', '.join(files)}")
    return read_photometry(files[file or next(iter(files))])


def download_ogle(
    name: str, *, cache: Path | str | None = None, base_url: str = OGLE_EWS, refresh: bool = False
) -> Path:
    """Fetch `phot.dat` of an OGLE-IV early-warning event; a second call finds it in the cache.

    `name` is as in "OGLE-2025-BLG-0001", `cache` a folder (by default the user's), `base_url` the
    survey's address up to the year; `refresh` fetches anew what is there: events in progress grow.
    A wrong name or nothing readable is an InputError, and the cache stays as it was.
    """
    import pooch  # brings the whole of requests

    known = r"OGLE-(20(?:1[1-9]|[2-9]\d))-(BLG|GD|DG|LMC|SMC)-(\d{4})"
    if not (parts := re.fullmatch(known, name.strip().upper())):
        example = "OGLE-2025-BLG-0001, from 2011 on; for others, give the path of a phot.dat"
        raise InputError(f"{name!r} is no OGLE-IV alert; expected a name such as {example}")
    folder = Path(cache) if cache is not None else Path(pooch.os_cache("lensml")) / "ogle"
    final = folder / f"{parts[0]}.dat"
    if final.exists() and not refresh:
        return final
    url = f"{base_url.rstrip('/')}/{parts[1]}/{parts[2].lower()}-{parts[3]}/phot.dat"
    pooch.get_logger().setLevel("WARNING")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            got = pooch.retrieve(url, None, final.name, scratch)  # gives up after 30 s of silence
            read_photometry(got)
            os.replace(got, final)
    except (OSError, ValueError) as error:  # requests' exceptions are OSErrors
        what = "no photometry" if isinstance(error, InputError) else type(error).__name__
        code = getattr(getattr(error, "response", None), "status_code", what)
        raise InputError(
            f"{parts[0]}: {url} gave {code}; expected OGLE's phot.dat; check the event's number "
            "and the network, or download phot.dat elsewhere and give its path"
        ) from None
    return final
