"""Samples made by kernels: those that a CPU cuts from the same rows at the same epochs."""

import numpy as np
import pytest
import torch
from sets import data_sets

from lensml.network import DataSetEpochs, joint_epochs
from lensml.simulation import Survey, observe
from lensml.training.device_samples import (
    DevicePairs,
    device_samples,
    draw_batch,
    draw_epochs,
    joined_draws,
    joined_rows,
    observe_pairs,
    observed_rows,
    rows_samples,
    samples_at,
)
from lensml.training.event_samples import make_observations, make_rows, make_samples
from lensml.training.samples import Observation, cut_samples, log_ratio_terms

pytest.importorskip("triton")
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
NUM, SIGMA = 32, 0.05
SURVEY = Survey(num_epochs=NUM, window=(-40.0, 40.0), sigma=SIGMA, missing_fraction=0.3)
TIMES = torch.linspace(-40, 40, NUM, dtype=torch.float64)
SECOND, FREE, BEGINS = (2, 1, 0), (True, False, False), -30.0  # the last is a contaminant


def noise_free(num=3):
    """Pairs (num, 2, T): a lens, and the same with a bump."""
    u = torch.hypot(torch.linspace(0.2, 0.6, num)[:, None], TIMES / 15)
    lens = -2.5 * torch.log10((u**2 + 2) / (u * torch.sqrt(u**2 + 4)))
    bump = -0.3 * torch.exp(-(((TIMES - 10) / 4) ** 2))
    return torch.stack([lens, lens + bump], dim=1).float()


def pairs_of(values=None, sigma=None):
    values = noise_free() if values is None else values
    blended, begins = torch.tensor(FREE), torch.full((3,), BEGINS)
    return DevicePairs(values, sigma, torch.tensor(SECOND), blended, begins)


def drawn(seed=0, per_curve=4, survey=SURVEY):
    generator = torch.Generator(DEVICE).manual_seed(seed)
    return draw_batch(3, NUM, per_curve, generator, survey)


def observed(seed=0, **options):
    pairs = pairs_of(**options).of(np.arange(3), DEVICE)
    return observe_pairs(pairs, TIMES.to(DEVICE), SURVEY, drawn(seed).survey, pairs.blended)


@pytest.fixture(scope="module")
def rows():
    return observed()


class Drawn:
    """In place of a generator: draws that lead to given epochs after the first refit."""

    def __init__(self, epochs, total):
        self.values = iter([np.ones(len(epochs)), (np.array(epochs) - 7 + 0.5) / (total - 7)])

    def random(self, count):
        return next(self.values)


def test_a_contaminant_counts_without_its_single_lens(rows):
    assert rows.labels.tolist() == [0, 2, 0, 1, 0] and rows.of_pair.tolist() == [2, 2, 1, 1, 0]
    assert rows.exact.all() and rows.events.free.tolist() == [1, 1, 0, 0, 0]


def test_samples_are_those_of_a_cpu(rows):
    clean = noise_free().flatten(0, 1)
    columns = observe(clean.to(DEVICE), drawn().survey, SURVEY, TIMES.to(DEVICE))
    delta, sigma, seen = (x.cpu().numpy() for x in columns)
    total = rows.events.total.tolist()
    epochs = [[7, 9, n - 4, n - 1] for n in total]
    samples = samples_at(rows, torch.arange(5, device=DEVICE), torch.tensor(epochs, device=DEVICE))
    for place, row in enumerate((0, 1, 2, 3, 5)):
        on = np.flatnonzero(seen[row])
        assert len(on) == total[place]
        assert int(rows.begins[place]) == (TIMES.numpy()[on] < BEGINS).sum()
        mag, noise = delta[row, on].astype(float), sigma[row, on].astype(float)
        one, two = (clean[row - row % 2 + k].numpy()[on].astype(float) for k in (0, 1))
        ratio = np.cumsum(log_ratio_terms(mag, one, two, noise, noise))
        data = DataSetEpochs(TIMES.numpy()[on], mag, noise, 0.0, True)
        label, of_pair = int(rows.labels[place]), int(rows.of_pair[place])
        event = Observation([data], FREE[row // 2], data.times, ratio, -np.inf)
        expected = cut_samples(event, label, of_pair, 4, Drawn(epochs[place], len(on)))
        for name, mine, theirs in zip(samples._fields, samples, expected, strict=True):
            mine = mine[4 * place : 4 * place + 4].float().cpu().numpy()
            np.testing.assert_allclose(mine, theirs.astype(float), atol=0.02, err_msg=name)


def test_epochs_are_drawn_where_a_cpu_draws_them(rows):
    begins = 15  # later than the first refit
    rows = rows._replace(begins=torch.full_like(rows.begins, begins))
    kept, epochs = draw_epochs(rows, drawn(1, 4000).epochs, last=True)
    total = rows.events.total[kept]
    assert kept.tolist() == list(range(5)) and (epochs[:, -1] == total - 1).all()
    assert (epochs >= 7).all() and (epochs < total[:, None]).all()
    early = (epochs < begins).float().mean(1)
    assert torch.allclose(early, 0.25 * (begins - 7) / (total - 7), atol=0.03)


def test_a_part_of_a_batch_has_its_draws(rows):
    """Processes that share a batch see what one process would."""
    whole, place = drawn(), np.arange(1, 3)
    joint = joined_draws([whole.part(0, 1), whole.part(1, 3)])
    for one, other in zip((*joint.survey, *joint[1:]), (*whole.survey, *whole[1:]), strict=True):
        assert one is other is None or torch.equal(one, other)
    pairs, times = pairs_of().of(place, DEVICE), TIMES.to(DEVICE)
    part = observe_pairs(pairs, times, SURVEY, whole.part(1, 3).survey, pairs.blended)
    most = part.events.bright.shape[1]
    assert torch.equal(part.events.bright, rows.events.bright[2:, :most])
    assert torch.equal(part.ratio, rows.ratio[2:, :most])
    assert not torch.equal(observed(seed=5).events.bright[:, :5], rows.events.bright[:, :5])


def test_what_was_observed_before_stays_and_its_target_is_the_label():
    values = noise_free()
    values[:, :, 20:] = torch.nan
    pairs = pairs_of(values, torch.full_like(values, SIGMA)).of(np.arange(3), DEVICE)
    samples, of = device_samples(pairs, TIMES.to(DEVICE), SURVEY, drawn(per_curve=1), last=True)
    assert samples.labels.tolist() == [0, 2, 0, 1, 0]
    assert torch.equal(samples.targets.argmax(1), samples.labels.long())
    assert samples.held.tolist() == [4] * 5 and of.tolist() == [0, 0, 1, 1, 2]


def test_events_of_the_sky_are_cut_as_on_a_cpu():
    """Of blocks that differ in epochs, data sets and refits; some events have none."""
    generator = np.random.default_rng(3)
    seen = []
    for datasets, label, second in (
        (data_sets(2, 34, seed=1), 0, 2),
        (data_sets(1, 7, seed=2), 4, 0),
        (data_sets(3, 24, seed=3, given=(1,)), 1, 1),
        (data_sets(1, 25, seed=4), 3, 3),
    ):
        joint = joint_epochs(datasets)
        times = joint.times[joint.place]
        ratio = np.cumsum(generator.standard_normal(len(times)))
        seen.append((Observation(datasets, label != 1, times, ratio, times[3]), label, second))
    rows = joined_rows([observed_rows(seen[:2]), observed_rows(seen[2:])], DEVICE)
    assert rows.events.refits.tolist()[1] == 0 and rows.begins.tolist() == [3] * 4
    kept = [0, 2, 3]
    total = rows.events.total.tolist()
    epochs = [[7, total[k] - 3, total[k] - 1] for k in kept]
    samples = samples_at(rows, *(torch.tensor(x, device=DEVICE) for x in (kept, epochs)))
    for place, k in enumerate(kept):
        expected = cut_samples(seen[k][0]._replace(begins=-np.inf), *seen[k][1:], 3,
                               Drawn(epochs[place], total[k]))  # fmt: skip
        for name, mine, theirs in zip(samples._fields, samples, expected, strict=True):
            mine = mine[3 * place : 3 * place + 3].float().cpu().numpy()
            # Fits of a few epochs have hardly converged; float32 takes other steps.
            np.testing.assert_allclose(mine, theirs.astype(float), atol=0.2, err_msg=name)
            assert np.abs(mine - theirs).mean() < 3e-3, name
    drawn = rows_samples(rows, 5, torch.Generator(DEVICE).manual_seed(0))
    assert drawn.labels.tolist() == [0] * 5 + [1] * 5 + [3] * 5


def test_long_events_are_cut_where_they_are_made():
    block = make_rows(5, 0, per_curve=1, times=1)
    made = list(make_observations(5, 0))
    sizes = [len(one.times) for one, *_ in made]
    in_rows = sum(len(rows.labels) for rows in block.rows)
    assert in_rows + (len(block.samples.held) if block.samples else 0) <= len(made)
    assert max(int(rows.events.total.max()) for rows in block.rows) <= 2048
    assert len(sizes) == len(make_samples(5, 0, per_curve=1, times=1).held) + sum(
        n < 8 for n in sizes
    )
    one, many = block.rows
    assert one.events.low.shape[1] == 1 < many.events.low.shape[1]
    for rows in block.rows:
        assert np.isin(rows.labels, range(5)).all() and not isinstance(rows.ratio, torch.Tensor)
