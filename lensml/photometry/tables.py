"""Files as tables of names, units and numbers: delimited text or a format of astropy."""

import csv
import gzip
import io
import lzma
import re
import warnings
import zipfile
from array import array
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from math import inf, isfinite, isinf, nan
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from lensml.limits import (
    MAX_ASTROPY,
    MAX_BYTES,
    MAX_COLUMNS,
    MAX_HEADER,
    MAX_LINE,
    MAX_LINES,
    MAX_VALUES,
)
from lensml.paths import InputError
from lensml.photometry.columns import divides, is_header, is_unit, split_unit

if TYPE_CHECKING:
    from astropy.table import Table

SAMPLE, UNEVEN = 500, 0.2  # rows that decide on the delimiter; fraction that may have other widths
WANTED = "expected a header time,mag,mag_err (or flux,flux_err) or an OGLE, MOA or KMTNet table"
NULLS = {"", "-", "--", "---", "...", "null", "none", "na", "n/a", "masked", "<na>"}
COMMENT = re.compile(r"\s*(?:[#%!\\]+|//+|;(?=[^;]*$))\s*")
PACKED = {b"\x1f\x8b": gzip.open, b"\xfd7zXZ\0": lzma.open, b"PK\3\4": zipfile.ZipFile}
SIGNATURES = {  # of a format that astropy reads, in the first bytes
    "fits": rb"SIMPLE  =",
    "votable": rb"\s*<(VOTABLE\b|.{0,5000}?<VOTABLE\b)",
    "ascii.ecsv": rb"# %ECSV ",
    "ascii.latex": rb"([ \t\r]*(%[^\n]*)?\n)*\s*\\(begin|documentclass)[{\[]",
    "ascii.mrt": rb".{0,5000}?^Byte-by-byte Description",
    "ascii.ipac": rb"([#\\][^\n]*\n|[ \t\r]*\n)*\|[^\n]*\|\s*?\n(\|[^\n]*\n)*(?=[ \t]*[^|\s])",
}


@dataclass
class RawTable:
    """Cells of one table: NaN where empty, +inf a limit such as `>17.9`, -inf other text."""

    names: list[str] | None  # of the columns; None without a header
    units: list[str]  # as stated, "" where none is
    values: NDArray  # (rows, columns) float64
    words: dict[int, list[str]]  # cells of columns of text, and of those that may divide the table
    dropped: Counter = field(default_factory=Counter)  # reason -> rows left out


def read_table(path: Path, wanted: Collection[str] = ()) -> RawTable:
    """The table in a file, plain or packed; an InputError in one line where there is none.

    A line with the name of a `wanted` column is a header; columns by number need none.
    """
    raw = _unpacked(path).removeprefix(b"\xef\xbb\xbf")
    for kind, signature in SIGNATURES.items():
        if re.match(signature, raw[:20_000], re.MULTILINE | re.DOTALL):
            return _from_astropy(raw, kind, path)
    wide = raw[:2] in (b"\xff\xfe", b"\xfe\xff") and len(raw) % 2 == 0
    text = raw.decode("utf-16" if wide else "utf-8", errors="replace")
    if "\0" in text or not text.strip() or "\ufffd" in text[:1000]:
        what = "holds binary data, not text" if text.strip() else "is empty"
        raise InputError(f"{path} {what}; {WANTED}; export the light curve as CSV")
    return _parse(text, str(path), wanted)


def _unpacked(path: Path) -> bytes:
    """The file's bytes, unpacked from gzip, xz or a zip of one member, up to a limit."""
    try:
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise OSError("a device or pipe, not a file")
        with open(path, "rb") as file:
            magic = file.read(6)
            file.seek(0)
            opened = next((PACKED[k](file) for k in PACKED if magic.startswith(k)), file)
            if isinstance(opened, zipfile.ZipFile):
                if len(opened.infolist()) != 1:
                    raise OSError(f"a zip of {len(opened.infolist())} members, one was expected")
                opened = opened.open(opened.infolist()[0])
            raw = opened.read(MAX_BYTES + 1)
    except Exception as error:  # whatever a damaged or protected archive makes its reader raise
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path} cannot be read ({reason}); give a text file; {WANTED}") from None
    if len(raw) > MAX_BYTES or max(raw.count(b"\n"), raw.count(b"\r")) > MAX_LINES:
        most = f"{MAX_BYTES / 1e6:.0f} MB or {MAX_LINES / 1e6:.0f} million lines"
        raise InputError(f"{path} holds more than {most} of text; give one light curve; {WANTED}")
    return raw


def _from_astropy(raw: bytes, kind: str, path: Path) -> RawTable:
    """The one table of a format that astropy reads; a remote part of it is never fetched."""
    from astropy.io import fits
    from astropy.table import Table

    try:
        if len(raw) > MAX_ASTROPY or kind == "votable" and re.search(rb"<STREAM[^>]*href", raw):
            raise ValueError(f"over {MAX_ASTROPY / 1e6:.0f} MB, or with rows in another file")
        source = io.BytesIO(raw)
        if kind.startswith("ascii"):
            source = raw.decode().splitlines()
            source = [x for x in source if kind != "ascii.ipac" or x.strip() and x[0] != "#"]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if kind == "fits":
                with fits.open(source, memmap=False) as hdus:
                    if sum(isinstance(h, fits.BinTableHDU | fits.TableHDU) for h in hdus) != 1:
                        raise ValueError("one table was expected")
                source = io.BytesIO(raw)
            found = from_columns(Table.read(source, format=kind))
    except Exception as error:  # whatever a damaged table makes astropy raise
        why = f"no valid {kind.split('.')[-1].upper()} table ({' '.join(str(error).split())[:120]})"
        raise InputError(f"{path} is {why}; {WANTED}; export the light curve as CSV") from None
    if not len(found.values):
        raise InputError(f"{path} has a header but no rows of data; {WANTED}")
    return found


def from_columns(table: "Table") -> RawTable:
    """An astropy table: masked cells are NaN, a `Time` column is JD, a unit stays beside."""
    if len(table) * len(table.columns) > MAX_VALUES:
        raise InputError(f"a table of {len(table)} rows has more than {MAX_VALUES} values")
    values, units, words = np.full((len(table), len(table.columns)), nan), [], {}
    for i, column in enumerate(table.itercols()):
        is_time = hasattr(column, "jd") and hasattr(column, "scale")
        units.append("JD" if is_time else str(getattr(column, "unit", None) or ""))
        cells = np.ma.asarray(column.jd if is_time else getattr(column, "value", column))
        if cells.ndim != 1:
            continue
        text = np.where(np.ma.getmaskarray(cells), "", cells.data.astype(str)).tolist()
        words[i] = [cell.strip() for cell in text]
        numeric = np.issubdtype(cells.dtype, np.number)
        values[:, i] = cells.astype(float).filled(nan) if numeric else [*map(_number, words[i])]
    return RawTable(list(table.colnames), units, values, words)


def _number(token: str) -> float:
    """A cell as RawTable holds it: Fortran's D and thousands separators are numbers too."""
    try:
        value = float(token)
        return -inf if isinf(value) or "_" in token else value
    except ValueError:
        if token.lower() in NULLS:
            return nan
    if re.fullmatch(r"[-+]?\d+\.?\d*[dD][-+]?\d{1,2}|[-+]?\d{1,3}(,\d{3})+\.\d*", token):
        return float(token.lower().replace("d", "e").replace(",", ""))
    return inf if re.match(r"[<>]=?\s*[-+]?[\d.]", token) else -inf


def _split(line: str, mark: str | None) -> list[str]:
    """Cells of a line; quotes hold a cell together, bars around a row are no cells."""
    if mark is None:
        found = re.findall(r'"[^"]*"|\S+', line) if '"' in line else line.split(None, MAX_COLUMNS)
    elif '"' in line:
        found = next(csv.reader([line], delimiter=mark, skipinitialspace=True), [])
    else:
        line = re.sub(r"^\s*\||\|\s*$", "", line) if mark == "|" else line
        found = line.split(mark, MAX_COLUMNS)
    return [cell.strip(" \t\"'") for cell in found]


def _parse(text: str, label: str, wanted: Collection[str]) -> RawTable:
    """Text with or without a header: its delimiter, names, units, and rows of even width."""
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    lines = [line for line in lines if line.strip() and line.strip("-=+|: \t")]
    if (longest := max(map(len, lines), default=0)) > MAX_LINE:
        raise InputError(f"{label} has a line of {longest} characters; {WANTED}")
    bare = [line.split("#")[0] for line in lines[: 2 * SAMPLE] if not COMMENT.match(line)]
    sample = bare[-SAMPLE:]
    counts = {m: sum(m in line for line in sample) for m in "\t|;,"}
    mark = next((m for m in "\t|;," if counts[m] > 0.9 * (len(sample) - 1)), None)
    # The width of most rows, and whether commas are decimal points.
    cells = [_split(line, mark) for line in sample]
    width = Counter(map(len, cells)).most_common(1)[0][0] if cells else 0
    if width > MAX_COLUMNS or width * len(lines) > MAX_VALUES:
        most = f"at most {MAX_COLUMNS} columns and {MAX_VALUES / 1e6:.0f} million values"
        raise InputError(f"{label} has {len(lines)} rows of {width} columns, but {most} are read")
    numbers = [c for row in cells for c in row if re.fullmatch(r"[-+]?\d+[.,]\d+", c)]
    decimal = mark not in (",", None) and bool(numbers) and all("," in c for c in numbers)

    def number(cell: str) -> float:
        return _number(cell.replace(",", ".", 1) if decimal else cell)

    def is_row(line: str) -> bool:
        row = [] if COMMENT.match(line) else _split(line.split("#")[0], mark)
        return len(row) == width and any(isfinite(number(c)) for c in row) and not is_header(row)

    # Without a row of numbers, all but the first line of words are rows.
    start = next((i for i, line in enumerate(lines) if is_row(line)), None)
    if start is None:
        start = next((i + 1 for i, x in enumerate(lines) if not COMMENT.match(x)), len(lines))
    names, units = None, [""] * width
    try:
        names, units = _heading(lines[:start], mark, width, label, wanted)
    except InputError:
        if not wanted:
            raise
    if start == len(lines):
        raise InputError(f"{label} has a header but no rows of data; {WANTED}")
    # Text is kept of columns that hold some, and of those whose name may divide the table.
    texts = {
        c for row in cells if len(row) == width for c in range(width) if number(row[c]) == -inf
    }
    words = {c: [] for c in texts | {c for c, name in enumerate(names or []) if divides(name)}}
    values, dropped, total, known = array("d"), Counter(), 0, {}
    for line in (line for line in lines[start:] if not COMMENT.match(line)):
        row, total = _split(line.split("#")[0] if "#" in line else line, mark), total + 1
        while len(row) > width and not row[-1]:
            row.pop()
        if len(row) != width:
            dropped["row of another width"] += 1
            continue
        found = list(map(number, row))
        if not any(map(isfinite, found)) and is_header(row):
            if names != [split_unit(c)[0] for c in row]:
                raise InputError(f"{label} holds a second header, {line.strip()[:60]!r}; {WANTED}")
            continue
        values.extend(found)
        for c, kept in words.items():
            kept.append(known.setdefault(row[c], row[c]) if len(known) < 100_000 else row[c])
    if dropped.total() > UNEVEN * total:
        raise InputError(f"{label} has {dropped.total()} of {total} rows with another number of "
                         f"cells than {width}; fill empty cells, quote text; {WANTED}")  # fmt: skip
    return RawTable(names, units, np.array(values).reshape(-1, width), words, dropped)


def _heading(above: list[str], mark: str | None, width: int, label: str, wanted):
    """Names (or None) and units of the columns, from the lines above the first row."""
    units = None
    for line in reversed(above):
        text = line[COMMENT.match(line).end() :] if COMMENT.match(line) else line
        if mark is None and len(text) < MAX_HEADER:  # `HJD - 2450000` and `time [d]` are one name
            text = re.sub(r"\s*-\s*(?=24\d{5})", "-", text)
            text = re.sub(r"\s*[\[(][^\])]*[\])]", lambda m: m[0].replace(" ", ""), text)
        cells = _split(text.rstrip(), mark) if len(text) < MAX_HEADER else [text]
        while len(cells) > width and not cells[-1]:
            cells.pop()
        named = len(cells) == width and any(split_unit(c)[0] in wanted for c in cells)
        if named or is_header(cells):
            if len(cells) == width:
                names, stated = zip(*map(split_unit, cells), strict=True)
                return list(names), [a or b for a, b in zip(units or stated, stated, strict=True)]
            raise InputError(
                f"{label} has a header of {len(cells)} names, {text[:60]!r}, above rows of {width} "
                "cells; give each column one name without blanks, or say --columns "
                "time=1,mag=2,err=3 with the numbers that they have"
            )
        if units is None and len(cells) == width and 2 * sum(map(is_unit, cells)) >= width:
            units = cells
        elif not COMMENT.match(line) and not (len(cells) == 1 < width and cells[0].isdigit()):
            shown = ", ".join(repr(c[:20]) for c in cells[:6]) + ", ..." * (len(cells) > 6)
            raise InputError(f"{label} has columns {shown} and none for time and magnitude or "
                             f"flux; {WANTED}; or say --columns time=1,mag=2,err=3")  # fmt: skip
    return None, [""] * width
