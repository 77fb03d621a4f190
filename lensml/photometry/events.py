"""Published events, whose photometry comes with MulensModel."""

from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from lensml.paths import InputError, check_installed
from lensml.photometry.readers import Photometry, read_photometry

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
    check_installed("notebooks", "MulensModel")
    # Found, not imported: the import is slow, and changes matplotlib's style for every figure.
    folder = Path(find_spec("MulensModel").origin).parent / "data" / "photometry_files"
    events = {}
    for name, lens, reference, first in INSTALLED:
        tables = (p for p in (folder / first).parent.iterdir() if "README" not in p.name)
        files = sorted(tables, key=lambda path: (path != folder / first, path))
        events[name] = InstalledEvent(lens, reference, tuple(files))
    return events


def load_installed(name: str, file: str | None = None) -> Photometry:
    """Photometry of one of `installed_events`; `file` names a data set other than the first."""
    if name not in (events := installed_events()):
        raise InputError(f"no installed event is called {name!r}; choose from {', '.join(events)}")
    files = {path.name: path for path in events[name].files}
    if file is not None and file not in files:
        raise InputError(f"{name} has no data set {file!r}; choose from {', '.join(files)}")
    return read_photometry(files[file or next(iter(files))])
