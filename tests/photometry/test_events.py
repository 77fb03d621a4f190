"""Published events are at hand by name; OGLE's photometry is fetched once, or not at all."""

import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from lensml.paths import InputError
from lensml.photometry.events import download_ogle, installed_events, load_installed
from lensml.photometry.readers import read_photometry

PHOT_DAT = "".join(f"{2457000 + k:.5f} {14 - 0.1 * k:.5f} 0.01000 5.55 800.0\n" for k in range(8))


def test_every_installed_event_loads_and_says_what_its_lens_is():
    kinds = {name: event.lens for name, event in installed_events().items()}
    assert kinds["OGLE-2003-BLG-235"] == "binary" and kinds["OGLE-2014-BLG-0939"] == "single"
    for name, event in installed_events().items():
        first = load_installed(name)
        assert len(first) >= 200 and (np.diff(first.time) > 0).all() and first.time[0] > 2.45e6
        for file in event.files:
            assert len(load_installed(name, file.name)) > 10
    with pytest.raises(InputError, match="choose from OGLE-2003-BLG-235"):
        load_installed("OGLE-1999-BLG-1")
    with pytest.raises(InputError, match="no data set 'x.dat'; choose from OB03235_OGLE"):
        load_installed("OGLE-2003-BLG-235", "x.dat")


@pytest.fixture
def survey(tmp_path, monkeypatch):
    """A server on this machine with one event and one page of words; yields its url and a stop."""
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1")
    for number in ("0001", "0002"):
        (tmp_path / "www/2025" / f"blg-{number}").mkdir(parents=True)
    (tmp_path / "www/2025/blg-0001/phot.dat").write_text(PHOT_DAT)
    (tmp_path / "www/2025/blg-0002/phot.dat").write_text("<html>moved</html>\n")

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    handler = partial(Quiet, directory=tmp_path / "www")
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()

    def stop():
        server.shutdown()
        server.server_close()

    yield f"http://127.0.0.1:{server.server_port}", stop
    stop()


def test_download_is_kept_and_found_again_without_the_server(survey, tmp_path):
    url, stop = survey
    cache = tmp_path / "cache"
    path = download_ogle("ogle-2025-blg-0001", cache=cache, base_url=url)
    assert path == cache / "OGLE-2025-BLG-0001.dat" and list(cache.iterdir()) == [path]
    np.testing.assert_allclose(read_photometry(path).mag, 14 - 0.1 * np.arange(8), atol=1e-5)
    stop()
    assert download_ogle("OGLE-2025-BLG-0001", cache=cache, base_url=url) == path
    with pytest.raises(InputError, match=r"OGLE-2025-BLG-0001: .* gave \w*(Connect|Retr)\w*;"):
        download_ogle("OGLE-2025-BLG-0001", cache=cache, base_url=url, refresh=True)
    assert len(read_photometry(path)) == 8, "a failed refresh must leave what was there"


@pytest.mark.parametrize("number, why", [("9999", "404"), ("0002", "no photometry")])
def test_failed_download_leaves_nothing(number, why, survey, tmp_path):
    cache = tmp_path / "cache"
    with pytest.raises(InputError, match=f"blg-{number}/phot.dat gave {why}; expected") as caught:
        download_ogle(f"OGLE-2025-BLG-{number}", cache=cache, base_url=survey[0])
    assert "\n" not in str(caught.value) and list(cache.iterdir()) == []


@pytest.mark.parametrize("name", ["OGLE-2025-BLG-1", "OB250001", "OGLE-2008-BLG-0092", "../etc"])
def test_name_of_no_event_is_refused_before_the_network(name, tmp_path):
    with pytest.raises(InputError, match="such as OGLE-2025-BLG-0001"):
        download_ogle(name, cache=tmp_path / "cache", base_url="http://127.0.0.1:9")
    assert not (tmp_path / "cache").exists()
