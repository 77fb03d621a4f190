"""Independent random streams from one seed."""

import numpy as np
import pytest

from lensml.paths import InputError
from lensml.seeds import check_seed, derived_seed, event_generator


def test_the_same_event_gives_the_same_numbers_again():
    first, again = (event_generator(3, "baseline", 7).random(5) for _ in range(2))
    assert (first == again).all()


def test_seed_and_event_are_not_added_up():
    """With seed + event, sets of neighbouring seeds would share almost all their events."""
    names = [(s, p, e, r) for s in (0, 1, 2) for p in ("baseline", "distinct") for e in (0, 1, 2)
             for r in ("event", "noise")]  # fmt: skip
    firsts = [event_generator(*name).random() for name in names]
    assert len(set(firsts)) == len(names)


def test_streams_of_neighbouring_events_are_uncorrelated():
    numbers = np.array([event_generator(0, "baseline", i).standard_normal(2000) for i in range(20)])
    off_diagonal = np.corrcoef(numbers)[np.triu_indices(20, 1)]
    assert np.abs(off_diagonal).max() < 5 / np.sqrt(2000)


def test_derived_seeds_are_63_bit_and_differ():
    seeds = {derived_seed(0, "noise", epoch, step) for epoch in range(30) for step in range(30)}
    assert len(seeds) == 900
    assert all(0 <= s < 2**63 for s in seeds)


@pytest.mark.parametrize("seed", [-1, 2**63, 1.0, True, "0", None])
def test_what_is_no_seed_is_refused(seed):
    with pytest.raises(InputError, match="`seed`"):
        check_seed(seed)
    assert check_seed(2**63 - 1) == 2**63 - 1
