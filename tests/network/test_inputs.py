"""Inputs from joint fits: as they are defined, causal, and of bounded memory."""

import numpy as np
import pytest
from sets import blended_magnitude, toy_set

from lensml.network import PHASE_BINS
from lensml.network.inputs import (
    MOST_EPOCHS,
    DataSetEpochs,
    JointInputs,
    _all_inputs,
    event_inputs,
    joint_epochs,
    new_histories,
)

BASES = (18.3, 17.1, 19.0)
ROUNDING = 1e-9  # compiled loops may take a reciprocal where an address allows it


def data_sets(num=(150, 120, 90), sigma=0.01, first=(-100, -80, -15), known=False, seed=0):
    """Three data sets of one event, which begin one after the other; f_s 0.6, peak at 0."""
    rng, found = np.random.default_rng(seed), []
    for n, start, base in zip(num, first, BASES, strict=True):
        times = np.sort(rng.uniform(start, 60, n))
        mag = blended_magnitude(0.0, 0.2, 25.0, 0.6, base, times) + sigma * rng.standard_normal(n)
        given = (base, True) if known else (None, False)
        found.append(DataSetEpochs(times, mag, np.full(n, sigma), *given))
    return found


def until(datasets, end):
    """Epochs before `end`; of a data set that has not begun there are none."""
    kept = [np.searchsorted(d.times, end) for d in datasets]
    return [
        d._replace(times=d.times[:n], mag=d.mag[:n], sigma=d.sigma[:n])
        for d, n in zip(datasets, kept, strict=True)
    ]


def assert_same_beginning(short: JointInputs, whole: JointInputs):
    """All that `short` holds is the same in `whole`."""
    for name in ("epochs", "maps", "summaries", "states", "active", "counts"):
        a, b = getattr(short, name), getattr(whole, name)
        assert len(a) and a.any()
        np.testing.assert_allclose(a, b[: len(a)], rtol=0, atol=ROUNDING, err_msg=name)


def reference_map(tau, residual):
    """Map (5, PHASE_BINS) of residuals in errors, by their definition."""
    residual = np.clip(residual, -50, 50)
    terms = [residual, residual**2 - 1]
    for width in (4, 16):
        squares = np.zeros(len(residual))
        for first in range(len(residual) - width + 1):  # counts where its middle lies
            total = residual[first : first + width].sum()
            squares[first + width // 2] = total**2 / width - 1
        terms.append(squares)
    far = np.arcsinh(8.0 / 0.03)
    edges = 0.03 * np.sinh(np.linspace(-far, far, PHASE_BINS + 1)[1:-1])
    place = np.digitize(tau, edges)
    held = np.bincount(place, minlength=PHASE_BINS)
    scatter = np.sqrt(np.maximum(held, 1))
    rows = [
        np.arcsinh(np.bincount(place, term, PHASE_BINS) / (scatter * np.sqrt(norm)))
        for term, norm in zip(terms, (1, 2, 8, 32), strict=True)
    ]
    return np.stack([*rows, np.log1p(held) / 4])


@pytest.mark.parametrize("free", [False, True])
@pytest.mark.parametrize("row", range(6))
def test_maps_and_innovations_of_one_exact_data_set_are_those_of_their_definition(row, free):
    curves = toy_set(3, 300, shuffle=False, sigma=0.02, f_s=0.7 if free else 1.0)
    on = np.isfinite(curves.X[row])
    sigma, mag = curves.sigmas()[row, on], curves.X[row, on].astype(float)
    times, base = curves.times()[row, on], float(curves.m_base[row])
    found = event_inputs(joint_epochs([DataSetEpochs(times, mag, sigma, base, True)]), free)
    assert list(found.counts[:16]) == list(range(8, 129, 8))
    for model in range(2):
        t0, ln_u0, ln_tE, ln_f_s, offset = found.fits[:, model].T
        assert (offset == 0).all() and (free and model or (ln_f_s == 0).all())
        for j in (0, 4, 15, len(found.counts) - 1):
            tau = (times - t0[j]) * np.exp(-ln_tE[j])
            x = np.exp(2 * ln_u0[j]) + tau**2
            excess = (x + 2) / np.sqrt(x * (x + 4)) - 1
            curve = base - 2.5 * np.log10(1 + np.exp(ln_f_s[j]) * excess)
            residual, n = (curve - mag) / sigma, found.counts[j]  # brighter > 0
            expected = reference_map(tau[:n], residual[:n])
            maps = found.maps[j, 5 * model : 5 * model + 5]
            np.testing.assert_allclose(maps, expected, rtol=0, atol=1e-3)
            # Until the next refit this one predicts; innovations are no larger than residuals.
            if n < len(times):
                own = found.epochs[n, 5 * model : 5 * model + 2]
                np.testing.assert_allclose(own[0], np.arcsinh(residual[n]) / 2, atol=1e-3)
                assert abs(own[1]) <= abs(own[0]) + 1e-6


@pytest.mark.parametrize("known", [False, True])
def test_the_order_of_data_sets_does_not_matter(known):
    datasets = data_sets(known=known)
    found = [event_inputs(joint_epochs([datasets[k] for k in order]))
             for order in ((0, 1, 2), (2, 0, 1))]  # fmt: skip
    for a, b in zip(*found, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("end", [-70, -10, 5, 30])
def test_later_epochs_change_nothing_earlier(end):
    datasets = data_sets()
    whole = event_inputs(joint_epochs(datasets))
    assert_same_beginning(event_inputs(joint_epochs(until(datasets, end))), whole)
    # Nor do they where the later epochs are others, in one data set alone.
    for k in range(3):
        late = datasets[k].times >= end
        changed = [d._replace(mag=d.mag + 0.01 * late * d.times) if d is datasets[k] else d
                   for d in datasets]  # fmt: skip
        other, n = event_inputs(joint_epochs(changed)), sum(sum(d.times < end) for d in datasets)
        for a, b, same in ((other.epochs, whole.epochs, n), (other.maps, whole.maps, n // 8)):
            np.testing.assert_allclose(a[:same], b[:same], rtol=0, atol=ROUNDING)
            assert abs(a[same:] - b[same:]).max() > 0.5


def test_later_epochs_change_nothing_earlier_where_epochs_are_merged():
    datasets = data_sets((1500, 1200, 600))
    whole = event_inputs(joint_epochs(datasets))
    short = event_inputs(joint_epochs(until(datasets, 25)))
    assert MOST_EPOCHS < len(short.epochs) < len(whole.epochs)
    assert_same_beginning(short, whole)


def test_stop_and_wanted_leave_the_rest_as_it_is():
    joint = joint_epochs(data_sets())
    whole, wanted = event_inputs(joint), np.arange(45) % 2 == 0
    part = event_inputs(joint, wanted=wanted, stop=301)
    assert len(part.epochs) == 301 and len(part.maps) == 301 // 8
    np.testing.assert_allclose(part.epochs, whole.epochs[:301], rtol=0, atol=ROUNDING)
    np.testing.assert_allclose(part.maps[::2], whole.maps[:37:2], rtol=0, atol=ROUNDING)
    assert not part.maps[1::2].any()


def test_a_long_event_keeps_a_bounded_history_and_finds_its_far_baseline():
    datasets = data_sets((3000, 2000, 1000), first=(-900, -400, -30), seed=2)
    joint = joint_epochs(datasets)
    found = event_inputs(joint)
    assert all(np.isfinite(x).all() for x in found)
    base = joint.zero - found.fits[-1, 1, 4::2]  # zero points less their offsets
    np.testing.assert_allclose(base, BASES, atol=0.02)
    np.testing.assert_allclose(found.fits[-1, 1, 0], 0.0, atol=0.1)  # the peak
    h = new_histories(1, 3)
    h.width[0] = joint.width
    out = [np.zeros_like(x) for x in found[:7]]
    _all_inputs(h, *joint[:5], True, np.ones(len(found.counts), bool), found.counts, *out)
    assert h.count[0] == 6000 and 1000 < h.used[0] <= MOST_EPOCHS == h.times.shape[1]
    np.testing.assert_allclose(out[0], found.epochs, rtol=0, atol=ROUNDING)
    assert (np.diff(found.counts) % 8 == 0).all() and len(found.counts) < 400


@pytest.mark.parametrize("start", [-10, -1, 1, 5])
def test_a_new_data_set_begins_on_the_curve(start):
    joint = joint_epochs(data_sets(first=(-100, -80, start)))
    found = event_inputs(joint)
    first = int(np.flatnonzero(joint.owner == 2)[0])
    assert first > 100 and (first + 1) % 8  # no refit has seen it
    assert abs(np.sinh(2 * found.epochs[first, [0, 5]])).max() < 0.01  # of its error
    assert (found.epochs[first, [2, 7]] > 0.9).all()  # predictions are uncertain by the baseline


def test_models_are_equal_where_all_flux_is_lensed():
    found = event_inputs(joint_epochs(data_sets()), free=False)
    for a, b in ((found.epochs[:, :5], found.epochs[:, 5:10]),
                 (found.maps[:, :5], found.maps[:, 5:10]),
                 (found.summaries[:, :8], found.summaries[:, 8:16]),
                 (found.fits[:, 0], found.fits[:, 1])):  # fmt: skip
        assert a.any() and np.array_equal(a, b)


def test_an_event_of_very_many_data_sets_keeps_its_history_in_bounds():
    sets, rng = [], np.random.default_rng(4)
    for _ in range(40):
        times = np.sort(rng.uniform(-60, 60, 80))
        sets.append(DataSetEpochs(times, 18 + 0.01 * rng.standard_normal(80), np.full(80, 0.01)))
    inputs = event_inputs(joint_epochs(sets))
    assert np.isfinite(inputs.fits).all() and len(inputs.epochs) == 3200
