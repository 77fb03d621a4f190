"""Any survey's table becomes the same light curve, and what cannot is refused in one line."""

import gzip
import os
import time
from pathlib import Path

import numpy as np
import pytest
from astropy.table import MaskedColumn, Table
from astropy.time import Time
from sets import blended_photometry

from lensml.paths import InputError
from lensml.photometry import tables
from lensml.photometry.events import installed_events, load_installed
from lensml.photometry.readers import (
    Photometry,
    baseline_magnitude,
    from_table,
    read_photometry,
    seasons,
)

MAG = 2.5 / np.log(10)  # magnitudes per natural logarithm
TIME = 2457000.5 + np.arange(8.0)
MAGNITUDE = 14 - 0.1 * np.arange(8)


def write(path: Path, lines: list[str]) -> Path:
    path.write_text("\n".join(lines) + "\n")
    return path


def rows(*columns, mark=" ") -> list[str]:
    return [mark.join(f"{x:.5f}" for x in row) for row in zip(*columns, strict=True)]


def installed_file(name: str, end: str) -> Path:
    return next(path for path in installed_events()[name].files if path.name.endswith(end))


# ---------------------------------------------------------------- real files


@pytest.mark.parametrize(
    "event, end, zero",
    [
        ("OGLE-2003-BLG-235", "OGLE.tbl.txt", 0.0),
        ("MOA-2008-BLG-310", "MOA_0300089_PLC_007.tbl", 0.0),
        ("MOA-2008-BLG-310", "CTIO_H_0300089_PLC_004.tbl", 0.0),
        ("OGLE-2016-BLG-1195", "KCT01I.dat", 2450000.0),
        ("OGLE-2016-BLG-1195", "KSS41I.dat", 2450000.0),
        ("OGLE-2008-BLG-092", "O4.dat", 2450000.0),
        ("OGLE-2014-BLG-0939", "OGLE.dat", 0.0),
        ("OGLE-2005-BLG-086", "218982.dat", 2450000.0),
    ],
)
def test_installed_files_hold_the_numbers_numpy_reads(event, end, zero):
    path = installed_file(event, end)
    expected = np.loadtxt(path, comments=("\\", "|"), usecols=(0, 1, 2))
    expected = expected[np.argsort(expected[:, 0], kind="stable")]
    got = read_photometry(path)
    assert len(got) == len(expected) and got.dropped == {}
    np.testing.assert_allclose(got.time, expected[:, 0] + zero, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(got.mag, expected[:, 1])
    np.testing.assert_array_equal(got.mag_err, expected[:, 2])


def test_kmtnet_table_gives_its_own_magnitudes_and_no_flux():
    path = installed_file("OGLE-2003-BLG-235", "OGLE.tbl.txt").parents[1] / "KB180003"
    for file in path.glob("*.pysis"):
        expected = np.loadtxt(file)
        expected = expected[np.argsort(expected[:, 0], kind="stable")]
        got = read_photometry(file)
        assert got.name == file.stem and len(got) == len(expected)
        np.testing.assert_array_equal(got.mag, expected[:, 3])
        np.testing.assert_array_equal(got.mag_err, expected[:, 4])


def test_moa_difference_flux_keeps_its_signal_to_noise_for_any_reference():
    path = installed_file("OGLE-2003-BLG-235", "MOA.tbl.txt")
    table = np.loadtxt(path, comments=("\\", "|"))
    for reference in (None, 5000.0):
        got = read_photometry(path, reference_flux=reference)
        flux = 10 ** (0.4 * (22 - got.mag))
        added = 10**3.2 if reference is None else reference
        np.testing.assert_allclose(flux - added, table[:, 1], atol=1e-6)
        np.testing.assert_allclose(got.mag_err * flux / MAG, table[:, 2], rtol=1e-9)
        assert f"reference flux {added:.5g} added" in got.summary()


# ---------------------------------------------------------------- every format, written here


def ogle(path):
    sky = np.full(8, 450.0)
    return write(path, rows(TIME, MAGNITUDE, 0 * TIME + 0.01, 0 * TIME + 5.1, sky))


def kmtnet(path):
    flux = 1585 - 10 ** (0.4 * (28 - MAGNITUDE))  # its magnitudes are made of its flux
    lines = rows(TIME - 2450000, flux, 0 * TIME + 200, MAGNITUDE, 0 * TIME + 0.01)
    return write(path, [line + " 3.1 800.0 1.2" for line in lines])


def kmtnet_with_header(path):
    lines = kmtnet(path).read_text().splitlines()
    return write(path, ["# HJD \\Delta_flux flux_err mag mag_err fwhm sky secz", *lines])


def csv(path):
    return write(path, ["Time,MAG,Mag_Err", *rows(TIME, MAGNITUDE, 0 * TIME + 0.01, mark=",")])


def csv_in_another_order_of_columns(path):
    lines = rows(0 * TIME + 0.01, 0 * TIME + 3, MAGNITUDE, TIME - 2457000, mark=", ")
    return write(path, ["mag_err, seeing, mag, HJD - 2457000 [d]", *lines])


def flux_csv(path):
    flux = 10 ** (0.4 * (22 - MAGNITUDE))
    return write(path, ["bjd;flux;flux_err", *rows(TIME, flux, flux * 0.01 / MAG, mark=";")])


def moa(path):
    flux = 10 ** (0.4 * (22 - MAGNITUDE))
    return write(path, ["# JD delta_flux flux_err", *rows(TIME, flux - 10**3.2, flux * 0.01 / MAG)])


def archive_table_with_blank_magnitudes(path):
    flux = 10 ** (0.4 * (22 - MAGNITUDE))
    head = ["|        JD|     REL_MAG|   MAG_UNCERT|           FLUX|     FLUX_ERR|"]
    body = [
        f" {t:10.1f}{'':12} {'':13} {f:15.6f} {f * 0.01 / MAG:13.8f}"
        for t, f in zip(TIME, flux, strict=True)
    ]
    return write(path, ['\\STAR_ID = "x"', *head, *body])


FORMATS = [
    ogle,
    kmtnet,
    kmtnet_with_header,
    csv,
    csv_in_another_order_of_columns,
    flux_csv,
    moa,
    archive_table_with_blank_magnitudes,
]


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzipped"])
@pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.__name__)
def test_same_curve_from_every_format(form, packed, tmp_path):
    path = form(tmp_path / "curve.dat")
    if packed:
        data, path = path.read_bytes(), tmp_path / "curve.dat.gz"
        path.write_bytes(gzip.compress(data))
    got = read_photometry(path, m_base=18.0)
    assert got.name == "curve" and got.m_base == 18.0 and got.dropped == {}
    np.testing.assert_allclose(got.time, TIME, rtol=0, atol=1e-6)
    np.testing.assert_allclose(got.mag, MAGNITUDE, atol=2e-6)
    np.testing.assert_allclose(got.mag_err, 0.01, rtol=1e-3)


def test_astropy_table_with_mask_and_time_column():
    table = Table(
        {
            "time": Time(TIME, format="jd"),
            "mag": MaskedColumn(MAGNITUDE, mask=np.arange(8) == 2),
            "mag_err": np.full(8, 0.01),
            "observer": ["a"] * 8,
        }
    )
    got = from_table(table, name="mine")
    np.testing.assert_allclose(got.time, np.delete(TIME, 2))
    assert got.name == "mine" and got.dropped == {"magnitude or flux not a number": 1}
    with pytest.raises(InputError, match="table 'table' is empty"):
        from_table(table[:0])


@pytest.mark.parametrize(
    "name, zero",
    [("mjd", 2400000.5), ("HJD-2457000", 2457000.0), ("bjd", 2450000.0), ("time", 0.0)],
)
def test_time_is_full_julian_date_where_its_zero_is_known(name, zero, tmp_path):
    first = zero or 2450000.0
    lines = rows(TIME - first, MAGNITUDE, 0 * TIME + 0.01, mark=",")
    got = read_photometry(write(tmp_path / "a.csv", [f"{name},mag,mag_err", *lines]))
    np.testing.assert_allclose(got.time, TIME - first + zero, rtol=0, atol=1e-6)


def test_rows_are_sorted_and_each_dropped_row_is_counted_once(tmp_path):
    path = write(
        tmp_path / "a.csv",
        [
            "time,mag,mag_err",
            "3,18.3,0.1",
            "1,18.1,0.1",
            "2,18.2,0.1",
            "2,17.0,0.1",  # repeated: the first stays
            "4,18.4,0",
            "5,18.5,-0.1",
            "6,18.6,nan",
            "7,nan,0.1",
            "8,99.999,0.1",  # a survey's mark for "not measured"
            "soon,18,0.1",
            "9",
        ],
    )
    got = read_photometry(path)
    np.testing.assert_array_equal(got.time, [1, 2, 3])
    np.testing.assert_array_equal(got.mag, [18.1, 18.2, 18.3])
    assert got.dropped == {
        "time not a number": 1,
        "row of another width": 1,
        "magnitude or flux not a number": 2,
        "error not positive": 3,
        "repeated time": 1,
    }
    assert got.summary().startswith("a: 3 usable epochs, 8 rows dropped (1 time not a number, 2 ")


def test_total_flux_loses_only_its_rare_rows_below_zero(tmp_path):
    flux = np.full(40, 100.0)
    flux[7] = -3.0
    lines = rows(np.arange(40.0), flux, np.full(40, 2.0), mark=",")
    got = read_photometry(write(tmp_path / "a.csv", ["time,flux,flux_err", *lines]))
    assert len(got) == 39 and got.dropped == {"flux not positive": 1}
    np.testing.assert_allclose(got.mag, 17.0)


# ---------------------------------------------------------------- what is refused

BAD = {
    "is empty": b"",
    "has a header but no rows": b"time,mag,mag_err\n",
    r"none of its 1 rows is usable \(1 time not a number\)": b"time,mag,mag_err\nsoon,a,b\n",
    "'time', 'colour' and none for time and magnitude or flux": b"time,colour\n1,2\n",
    "2 columns and no header": b"mag,mag_err\n1,2\n",
    "'time', 'mag' and none for its error": b"time,mag\n1,2\n",
    r"\(2 magnitude or flux not a number\)": b"time,mag,mag_err\n1,nan,0.1\n2,nan,0.1\n",
    r"\(2 error not positive\)": b"time,mag,mag_err\n1,18,0\n2,18,-0.1\n",
    "holds binary data": b"\x00\x01\x02PK\x03\x04",
    "cannot be read": b"\x1f\x8b\x08junk",
    "holds binary data, not text": b"\xff\xfe\xfa\x80\n\x90\x91",
    "has 2 columns and no header": b"1 18\n2 18\n",
    "in unknown units": b"time,flux,flux_err\n1,-0.1,0.1\n2,0.1,0.1\n3,-0.1,0.1\n",
}


@pytest.mark.parametrize("message", BAD)
def test_unreadable_file_gets_one_line_that_names_it(message, tmp_path):
    path = tmp_path / "bad.csv"
    path.write_bytes(BAD[message])
    with pytest.raises(InputError, match=message) as caught:
        read_photometry(path)
    line = str(caught.value)
    assert "bad.csv" in line and "\n" not in line and len(line) < 500 and "expected" in line


def test_folder_and_missing_file_are_named(tmp_path):
    with pytest.raises(InputError, match=r"nowhere.csv cannot be read \(No such file"):
        read_photometry(tmp_path / "nowhere.csv")
    with pytest.raises(InputError, match=r"cannot be read \(Is a directory\)"):
        read_photometry(tmp_path)


# ---------------------------------------------------------------- files made to do harm

TABLE = b"time,mag,mag_err\n" + b"1,18,0.1\n" * 50
HARMFUL = {
    "holds more than": gzip.compress(b"\n" * 2_100_000),
    "none for time and": b",".join([b"mag"] * 20_000) + b"\n" + b"1\n" * 20,
    "3 columns and no header": b"|" * 100_000 + b"\n1 2 3",
    "rows of 257 columns": b"1," * 300 + b"\n" + b"1," * 300,
    "a line of 1000008 characters": b"1" * 1_000_001 + b" 18 0.1",
    "none for time": b"x" + b" " * 200_000 + b"y\n1 2 3",
    "none for time and magn": b"(" * 200_000,
}


@pytest.mark.parametrize("message", HARMFUL)
def test_a_small_file_costs_little_whatever_it_unpacks_to(message, tmp_path):
    path = tmp_path / "bomb.csv"
    path.write_bytes(HARMFUL[message])
    started = time.process_time()
    with pytest.raises(InputError, match=message) as caught:
        read_photometry(path)
    assert time.process_time() - started < 2 and len(str(caught.value)) < 400


@pytest.mark.parametrize(
    "limit, value", [("MAX_BYTES", 400), ("MAX_LINES", 49), ("MAX_VALUES", 149)]
)
def test_a_file_is_read_up_to_each_limit_and_not_beyond(limit, value, tmp_path, monkeypatch):
    path = tmp_path / "a.csv.gz"
    path.write_bytes(gzip.compress(TABLE))
    assert len(read_photometry(path)) == 1
    monkeypatch.setattr(tables, limit, value)
    with pytest.raises(InputError, match="a.csv.gz h"):
        read_photometry(path)


def test_a_long_comment_takes_no_time(tmp_path):
    body = rows(TIME, MAGNITUDE, 0 * TIME + 0.01)
    path = write(tmp_path / "a.dat", ["#" + "(" * 100_000, *body])
    started = time.process_time()
    assert len(read_photometry(path)) == 8 and time.process_time() - started < 1


def test_a_device_or_a_pipe_is_no_light_curve(tmp_path):
    os.mkfifo(tmp_path / "pipe")  # opened, it would wait for a writer for ever
    for path in ("/dev/zero", tmp_path / "pipe"):
        with pytest.raises(InputError, match="a device or pipe, not a file"):
            read_photometry(path)


# ---------------------------------------------------------------- what was understood


@pytest.mark.parametrize(
    "head, first, scale",
    [
        ("hjd,mag,mag_err", 2457000, "HJD"),
        ("BJD - 2450000,mag,mag_err", 7000, "BJD"),
        ("mjd,mag,mag_err", 57000, "JD"),
        ("time,mag,mag_err", 2457000, "JD"),
        ("time,mag,mag_err", 12, "time"),
        ("", 2457000, "HJD"),
    ],
)
def test_the_zero_point_of_time_is_given_where_it_is_known(head, first, scale, tmp_path):
    body = rows(first + np.arange(8.0), MAGNITUDE, 0 * TIME + 0.01, mark="," if head else " ")
    got = read_photometry(write(tmp_path / "a.csv", [head, *body]))
    assert got.time_scale == scale
    shown = "'" if head else "1, 2, 3"
    assert f"time, mag and error from columns {shown}" in got.summary()


# ---------------------------------------------------------------- seasons and baseline


def test_seasons_split_at_long_pauses_only():
    time = np.array([0.0, 1.0, 30.0, 200.0, 201.0, 500.0])
    assert seasons(time) == [slice(0, 3), slice(3, 5), slice(5, 6)]
    assert seasons(time, gap=1000) == [slice(0, 6)]


def test_baseline_is_given_or_what_most_seasons_show():
    curve = load_installed("OGLE-2014-BLG-0939")
    assert baseline_magnitude(curve) == pytest.approx(15.396, abs=0.01)
    assert baseline_magnitude(Photometry("x", *blended_photometry())) == pytest.approx(
        18.3, abs=0.05
    )
    assert baseline_magnitude(Photometry("x", *np.ones((3, 1)), m_base=20.0)) == 20.0


def test_a_limit_is_counted_as_a_limit(tmp_path):
    rows = [f"{2460000 + k},{'>17.9' if k == 3 else 18 + 0.01 * k},0.02" for k in range(30)]
    (tmp_path / "a.csv").write_text("\n".join(["hjd,mag,mag_err", *rows]))
    assert dict(read_photometry(tmp_path / "a.csv").dropped) == {"a limit": 1}
