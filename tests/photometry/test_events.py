"""Published events are at hand by name."""

import numpy as np
import pytest

from lensml.paths import InputError
from lensml.photometry.events import installed_events, load_installed


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
