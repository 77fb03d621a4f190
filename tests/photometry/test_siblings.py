"""Tables a little unlike the documented ones: read as what they are, or refused in one line."""

import gzip
import io
import lzma
import random
import zipfile
from collections import Counter

import numpy as np
import pytest
from astropy import units as u
from astropy.table import MaskedColumn, Table
from astropy.time import Time

from lensml.paths import InputError
from lensml.photometry import from_table, read_event, read_photometry

N = 60
RNG = np.random.default_rng(11)
TIME = np.sort(2460100 + 90 * RNG.random(N)).round(5)
MAG = (18.2 - 1.3 * np.exp(-(((TIME - 2460150) / 9) ** 2)) + RNG.normal(0, 0.03, N)).round(4)
ERR = np.full(N, 0.03)
DATA = list(zip(TIME, MAG, ERR, strict=True))
FLUX = 10 ** (0.4 * (23.9 - MAG))  # [uJy]
FLUX_ERR = FLUX * ERR / 1.0857


def table(header: str, *columns, mark: str = ",") -> str:
    """A header, if any, above rows of columns; a text stands in every row."""
    columns = [[c] * N if isinstance(c, str) else c for c in columns]
    cells = [[x if isinstance(x, str) else f"{x:.6f}" for x in c] for c in columns]
    rows = [mark.join(row) for row in zip(*cells, strict=True)]
    return "\n".join([header, *rows] if header else rows) + "\n"


def alternate(*values: str) -> list[str]:
    return [values[k % len(values)] for k in range(N)]


def marked(value: float, every: int = 12) -> np.ndarray:
    return np.where(np.arange(N) % every == 3, value, MAG)


def limits() -> list[str]:
    return [f"<{m:.2f}" if k % 10 == 4 else f"{m:.4f}" for k, m in enumerate(MAG)]


COUNTER = np.arange(N)
FRAMES = [str(1200 + 3 * k + k % 2) for k in range(N)]
READ = {  # text, rows dropped
    "a count before the date": (table("epoch,hjd,mag,err", COUNTER, TIME, MAG, ERR), 0),
    "seconds before the date": (table("t,bjd_tdb,mag,err", COUNTER * 9e8, TIME, MAG, ERR), 0),
    "frame numbers before the date": (table("frame,hjd,mag,err", FRAMES, TIME, MAG, ERR), 0),
    "errors called millimag": (table("jd,mag,err_mmag", TIME, MAG, ERR * 1e3), 0),
    "marks among the dates": (table("hjd,mag,err", np.where(COUNTER % 20 == 7, 99.999,
                                    TIME - 2450000), MAG, ERR), 3),
    "marks among errors of flux": (table("mjd,flux,err", TIME - 2400000.5, FLUX,
                                   np.where(COUNTER % 20 == 7, 99.999, FLUX_ERR)), 3),
    "row numbers last": (table("", TIME - 2450000, MAG, ERR, COUNTER, mark=" "), 0),
    "limit before magnitude": (table("jd,maglim,mag,err", TIME, ERR + 21, MAG, ERR), 0),
    "another star's error": (table("jd,mag,comp_err,mag_err", TIME, MAG, ERR / 9, ERR), 0),
    "prefixed names": (table("x:jd,x:psfmag,x:psfmagerr", TIME, MAG, ERR), 0),
    "header behind dollars": (table("%% JD mag err", TIME, MAG, ERR, mark=" "), 0),
    "header behind a title": ("A star\n" + table("JD mag err", TIME, MAG, ERR, mark=" "), 0),
    "units below": (table("jd;mag;err\ndays;mag;mmag", TIME, MAG, ERR * 1e3, mark=";"), 0),
    "units in brackets": (table("MJD [d],I (mag),e_mag [mmag]", TIME - 2400000.5, MAG, ERR * 1e3)
                          .replace("I (mag)", "Imag (mag)"), 0),
    "offset in brackets":
        (table("time (HJD-2450000) mag err", TIME - 2450000, MAG, ERR, mark=" "), 0),
    "a unit of time": (table("jd [min],mag,err", TIME * 1440, MAG, ERR), 0),
    "millijansky and microjansky":
        (table("jd,flux [mJy],flux_err [uJy]", TIME, FLUX / 1e3, FLUX_ERR), 0),
    "empty cells between tabs":
        (table("jd\tfwhm\tmag\terr", TIME, alternate("", "1"), MAG, ERR, mark="\t"), 0),
    "quoted words": (table('jd "sky state" mag err', TIME, '"very dark"', MAG, ERR, mark=" "), 0),
    "a mark of 88": (table("jd,mag,err", TIME, marked(88.0), ERR), 5),
    "a mark of -99.9": (table("jd,mag,err", TIME, marked(-99.9), ERR), 5),
    "a mark of zero": (table("", TIME, marked(0.0), ERR, mark=" "), 5),
    "limits": (table("jd,mag,err", TIME, limits(), ERR), 6),
    "magnitudes of -11": (table("jd,mag,err", TIME, MAG - 29.2, ERR), 0),
    "decimal commas": (table("jd;mag;err", TIME, MAG, ERR, mark=";").replace(".", ","), 0),
    "bars": (table("| jd | mag | err |\n|---|---|---|", "", TIME, MAG, ERR, "", mark="|"), 0),
    "one filter": (table("jd,mag,err,filter", TIME, MAG, ERR, "I"), 0),
    "reduced date": (table("", TIME - 2450000, MAG, ERR, "4.2", mark="  "), 0),
    "a wrong row": (table("jd,mag,err", TIME, MAG, ERR) + "2460200.1,17.9,0.03,0.02\n", 1),
}  # fmt: skip


@pytest.mark.parametrize("form", READ)
def test_an_unusual_table_is_read_as_what_it_is(form, tmp_path):
    text, dropped = READ[form]
    (tmp_path / "a.txt").write_text(text)
    (curve,) = read_event(tmp_path / "a.txt").datasets
    keep = np.abs(TIME[:, None] - curve.time).min(1) < 1e-3
    assert len(curve) == keep.sum() == N - dropped + (form == "a wrong row")
    assert sum(curve.dropped.values()) == dropped
    shift = np.median(curve.mag - MAG[keep])
    np.testing.assert_allclose(curve.mag - shift, MAG[keep], atol=1e-3)
    np.testing.assert_allclose(curve.mag_err, 0.03, rtol=2e-3)


REFUSED = {  # text, what the line must say
    "two dates": (table("date,time,mag,err", TIME, TIME + 1, MAG, ERR), "may each be the time"),
    "two apertures":
        (table("jd,mag1,err1,mag2,err2", TIME, MAG, ERR, MAG, ERR), "'mag1' and 'mag2'"),
    "two errors": (table("jd,mag,err,sigma", TIME, MAG, ERR, ERR), "'err' and 'sigma'"),
    "an error of another": (table("jd,mag,ref_err", TIME, MAG, ERR), "its error"),
    "no date first": (table("", COUNTER, TIME, MAG, ERR, mark=" "), "no header"),
    "frame numbers first": (table("", FRAMES, MAG, ERR, mark=" "), "no header"),
    "a quality before the error":
        (table("", TIME, MAG, np.linspace(0.6, 1.2, N)[::-1], ERR, mark=" "), "no header"),
    "a date last": (table("", FRAMES, MAG, ERR, TIME, mark=" "), "no header"),
    "zeros for flux": (table("", TIME, "0", FLUX, FLUX_ERR, mark=" "), "no header"),
    "another constant star": (table("", TIME, FLUX, FLUX_ERR, "15.1", ERR, mark=" "), "no header"),
    "rows that move by one": (table("hjd,mag,err,x", MAG, ERR, ERR * 9, TIME), "no dates"),
    "zeros for magnitudes": (table("jd,mag,err", TIME, "0.000", ERR), "usable"),
    "flux without a header": (table("", TIME, FLUX, FLUX_ERR, mark=" "), "no header"),
    "names with blanks": (table("JD V mag V err", TIME, MAG, ERR, mark=" "), "--columns"),
    "unnamed numbers": (table("JD mag err", COUNTER, TIME, MAG, ERR, mark=" "), "--columns"),
    "millimag unsaid": (table("jd,mag,err", TIME, MAG, ERR * 1e3), "mmag"),
    "two units": (table("jd,flux [adu],flux_err [Jy]", TIME, FLUX, FLUX_ERR), "adu"),
    "years": (table("jd [yr],mag,err", TIME, MAG, ERR), "yr"),
    "two offsets":
        (table("jd,mag,err", TIME - np.arange(N) % 2 * 2400000.5, MAG, ERR), "time zero"),
    "Unix seconds": (table("time,mag,err", TIME * 700, MAG, ERR), "expected days"),
    "two stars": (table("star_id,jd,mag,err", alternate("7", "8"), TIME, MAG, ERR), "'star_id'"),
    "an unknown filter":
        (table("jd,mag,err,k", TIME, MAG + COUNTER % 2, ERR, alternate("1", "2")), "'k'"),
    "another header":
        (table("jd,mag,err", TIME, MAG, ERR) + table("jd,flux,err", TIME, FLUX, ERR), "second"),
    "shifted cells":
        (table("jd fwhm mag err", TIME, alternate("", "1"), MAG, ERR, mark=" "), "columns"),
    "words for numbers":
        (table("jd,mag,err", TIME, alternate("17.3", "17.4", "bad"), ERR), "no numbers"),
}  # fmt: skip


@pytest.mark.parametrize("form", REFUSED)
def test_what_may_be_read_wrong_is_refused_in_one_line(form, tmp_path):
    text, says = REFUSED[form]
    (tmp_path / "a.txt").write_text(text)
    with pytest.raises(InputError) as caught:
        read_event(tmp_path / "a.txt")
    line = str(caught.value)
    assert says in line and "a.txt" in line and "\n" not in line and len(line) < 600


@pytest.mark.parametrize("name", ["Filter", "passband", "site", "telescope", "camera_id", "fid"])
def test_a_column_of_filters_or_sites_divides_a_table(name, tmp_path):
    text = table(f"jd,mag,err,{name}", TIME, MAG + COUNTER % 2, ERR, alternate("1", "2"))
    (tmp_path / "a.csv").write_text(text)
    event = read_event(tmp_path / "a.csv")
    assert [(d.name, len(d)) for d in event.datasets] == [("1", N / 2), ("2", N / 2)]
    np.testing.assert_allclose(event.datasets[1].mag, MAG[1::2] + 1)
    assert (
        f"2 data sets (1 {N // 2}, 2 {N // 2})" in event.summary() and repr(name) in event.summary()
    )
    with pytest.raises(InputError, match="holds 2 data sets"):
        read_photometry(tmp_path / "a.csv")


MARKS = """99.99 98 50.0 0.000 -99.9 -9.999 NaN INDEF null **** >17.5 <17.5 inf 1e30""".split()


@pytest.mark.parametrize("hidden", [COUNTER < 9, COUNTER % 20 == 10], ids=["first", "spread"])
@pytest.mark.parametrize("mark", MARKS)
def test_a_row_that_was_not_measured_is_dropped_and_counted(mark, hidden, tmp_path):
    cells = [mark if h else f"{m:.4f}" for h, m in zip(hidden, MAG, strict=True)]
    (tmp_path / "a.csv").write_text(table("jd,mag,mag_err", TIME, cells, ERR))
    curve = read_photometry(tmp_path / "a.csv")
    np.testing.assert_array_equal(curve.mag, MAG[~hidden])
    assert f"{hidden.sum()} rows dropped" in curve.summary()


def test_columns_with_names_of_any_kind_are_taken_by_them(tmp_path):
    (tmp_path / "a.txt").write_text(table("a,b,c,d", MAG, ERR, TIME, FLUX))
    curve = read_photometry(tmp_path / "a.txt", columns="time=c, mag=a, err=b")
    np.testing.assert_array_equal(curve.time, TIME)
    np.testing.assert_array_equal(curve.mag, MAG)
    with pytest.raises(InputError, match="'e' is none of the 4 columns"):
        read_event(tmp_path / "a.txt", columns="time=c,mag=a,err=e")


def test_columns_are_taken_by_name_or_number_and_refused_where_there_are_none(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text(
        table("HJD I mag I err x", COUNTER, TIME, MAG, ERR, alternate("a", "b"), mark=" ")
    )
    event = read_event(path, columns="time=2,mag=3,err=4,dataset=5")
    assert [d.name for d in event.datasets] == ["a", "b"]
    np.testing.assert_allclose(event.datasets[0].mag, MAG[::2])
    for wrong in (
        "time=2,mag=3",
        "time=2,mag=2,err=4",
        "time=x,mag=3,err=4",
        "mag",
        "time=9,mag=3,err=4",
    ):
        with pytest.raises(InputError, match="--columns"):
            read_event(path, columns=wrong)


def test_files_and_a_folder_are_data_sets_of_one_event(tmp_path):
    for name in ("b.dat", "a.dat", "README.txt"):
        (tmp_path / name).write_text(table("", TIME, MAG, ERR, mark=" "))
    assert [d.name for d in read_event(tmp_path).datasets] == ["a", "b"]
    assert [d.name for d in read_event([tmp_path / "b.dat", tmp_path / "a.dat"]).datasets] == [
        "b",
        "a",
    ]
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="without files"):
        read_event(tmp_path / "empty")


@pytest.mark.parametrize(
    "kind", ["fits", "votable", "ascii.ecsv", "ascii.ipac", "ascii.mrt", "ascii.latex"]
)
def test_formats_of_astropy_are_read_with_their_units(kind, tmp_path):
    columns = {
        "hjd": TIME * u.day,
        "mag": MAG * u.mag,
        "mag_err": MaskedColumn(ERR * 1e3, unit="mmag"),
    }
    Table(columns).write(tmp_path / "a.dat", format=kind)
    if kind == "ascii.latex":  # it keeps units in a row below the names
        (tmp_path / "a.dat").write_text(
            (tmp_path / "a.dat").read_text().replace(" & mmag", " & mag")
        )
        return
    curve = read_photometry(tmp_path / "a.dat")
    np.testing.assert_allclose(curve.mag, MAG, atol=1e-6)
    np.testing.assert_allclose(curve.mag_err, ERR, rtol=1e-6)


def test_an_astropy_table_is_read_by_its_units_masks_and_times():
    columns = {
        "when": Time(TIME, format="jd"),
        "flux": FLUX * u.uJy,
        "flux_err": FLUX_ERR / 1e3 * u.mJy,
    }
    curve = from_table(Table(columns))
    np.testing.assert_allclose(curve.time, TIME)
    np.testing.assert_allclose(curve.mag_err, 0.03, rtol=1e-3)
    assert curve.kind == "flux"


def zipped(text: bytes, names: int) -> bytes:
    with zipfile.ZipFile(found := io.BytesIO(), "w") as archive:
        for k in range(names):
            archive.writestr(f"{k}.dat", text)
    return found.getvalue()


def test_a_packed_file_is_read_and_a_damaged_or_larger_one_refused(tmp_path):
    text = table("", TIME, MAG, ERR, mark=" ").encode()
    for packed in (
        gzip.compress(text),
        lzma.compress(text),
        zipped(text, 1),
        text.decode().encode("utf-16"),
    ):
        (tmp_path / "a").write_bytes(packed)
        assert len(read_photometry(tmp_path / "a")) == N
        (tmp_path / "a").write_bytes(packed[: len(packed) // 2 + 1 - len(packed) // 2 % 2])
        if packed[:2] not in (b"\xff\xfe", b"\xfe\xff"):
            with pytest.raises(InputError, match="cannot be read"):
                read_photometry(tmp_path / "a")
    (tmp_path / "a").write_bytes(zipped(text, 2))
    with pytest.raises(InputError, match="2 members"):
        read_photometry(tmp_path / "a")


def test_a_votable_whose_rows_lie_elsewhere_is_not_fetched(tmp_path):
    text = '<VOTABLE><RESOURCE><TABLE><DATA><BINARY><STREAM href="file:///etc/hosts"/></BINARY>'
    (tmp_path / "a.xml").write_text(text)
    with pytest.raises(InputError, match="in another file"):
        read_photometry(tmp_path / "a.xml")


# ---------------------------------------------------------------- random damage


def damage(rows: list[list[str]], rng: random.Random) -> None:
    """One change to a header and rows of cells, as careless hands make them."""
    kind, width = rng.randrange(7), len(rows[0])
    some = [k for k in range(1, len(rows)) if rng.random() < rng.choice((0.02, 0.5, 1))]
    column = rng.randrange(width)
    for k in some:
        if kind == 0:  # a cell is lost, and those behind it move
            del rows[k][min(column, len(rows[k]) - 1) :][:1]
            rows[k].pop(min(column, len(rows[k]) - 1))
        elif kind == 1:  # a cell too many
            rows[k].insert(column, f"{rng.random():.3f}")
        elif kind == 2:  # an empty cell
            rows[k][column] = ""
        elif kind == 3:  # cells move by one
            rows[k].append(rows[k].pop(0))
    if kind == 4:  # a column too many, without a name
        for row in rows[1:]:
            row.insert(column, "1.5")
    elif kind == 5:  # a name is lost
        rows[0].pop(column)
    elif kind == 6:  # another order of columns, names and all
        order = rng.sample(range(width), width)
        rows[:] = [[row[c] for c in order] for row in rows]


def test_a_damaged_table_is_refused_or_its_epochs_are_right(tmp_path):
    rng, found, path = random.Random(5), Counter(), tmp_path / "a.csv"
    truth = {f"{t:.5f}": (m, e) for t, m, e in DATA}
    for _ in range(300):
        mark = rng.choice(",;\t ")
        rows = [["hjd", "fwhm", "mag", "mag_err", "sky"]]
        rows += [
            [f"{t:.5f}", "1.21", f"{m:.4f}", f"{e:.3f}", "812.5"]
            for t, m, e in zip(TIME, MAG, ERR, strict=True)
        ]
        damage(rows, rng)
        path.write_text("\n".join(mark.join(row) for row in rows))
        try:
            curve = read_photometry(path)
        except InputError:
            found["refused"] += 1
            continue
        for t, m, e in zip(curve.time, curve.mag, curve.mag_err, strict=True):
            assert truth[f"{t:.5f}"] == (pytest.approx(m), pytest.approx(e)), path.read_text()[:200]
        found["right"] += 1
    assert min(found["right"], found["refused"]) > 50
