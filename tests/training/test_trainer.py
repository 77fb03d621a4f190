"""Schedules, batches and one step of training on sets."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from sets import random_network
from sklearn.metrics import roc_auc_score

from lensml.network import NetworkConfig, save_network
from lensml.paths import InputError
from lensml.simulation import Simulation, Survey, simulate
from lensml.training import learner as learner_module
from lensml.training import run as run_module
from lensml.training import trainer as trainer_module
from lensml.training.data import UNKNOWN_MASS, Pairs, TrainingData
from lensml.training.learner import two_class_probability
from lensml.training.trainer import (
    Trainer,
    TrainingConfig,
    first_network,
    in_order,
    learning_rate,
    survey_now,
)

CPU = torch.device("cpu")
SURVEY = Survey(num_epochs=150, sigma=0.02)
SMALL = NetworkConfig(channels=8, embedding_channels=8, state_channels=4, head_channels=(8, 8))
CONFIG = TrainingConfig(batch_size=12, per_curve=4, mixed_precision=False, network=SMALL)


def test_the_learning_rate_warms_up_and_falls_to_a_hundredth():
    config = TrainingConfig(learning_rate=1.0, warmup_fraction=0.1)
    rates = [learning_rate(config, k / 1000) for k in range(1001)]
    assert max(rates) == pytest.approx(1.0) and rates.index(max(rates)) == 100
    assert rates[0] < 0.01 and rates[-1] == pytest.approx(0.01)


def test_errors_rise_to_the_surveys_own_and_stay_there():
    config, survey = TrainingConfig(curriculum=0.5), Survey(sigma=0.1)
    ceilings = [survey_now(survey, config, p).sigma[1] for p in (0.0, 0.2, 0.4)]
    assert ceilings == sorted(ceilings) and ceilings[0] == pytest.approx(
        config.curriculum_sigma_max
    )
    assert survey_now(survey, config, 0.5) == survey
    assert survey_now(survey, replace(config, start_from="shipped"), 0.0) == survey


def test_out_of_memory_names_the_batch_size_to_try(tmp_path, monkeypatch):
    simulate(tmp_path / "a.npz", Simulation(num_pairs=8), workers=1, progress=False)

    def explode(*_):
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(run_module, "load_training_data", explode)
    with pytest.raises(InputError, match="--batch_size 64 does not fit.*try --batch_size 32"):
        run_module.train(tmp_path / "a.npz", tmp_path / "run", TrainingConfig(batch_size=64))


@pytest.mark.parametrize("start", [None, "run"])
def test_a_network_begins_with_the_classes_of_its_sets(start, tmp_path):
    """From earlier weights, P(binary) of two classes is what it was."""
    fractions = (0.5, 0.1, 0.4, 0.0, 0.0)
    earlier = random_network()
    earlier.config = replace(earlier.config, class_fractions=(0.4, 0.1, 0.2, 0.2, 0.1))
    save_network(tmp_path / "run", earlier, {})
    config = replace(CONFIG, start_from=start and str(tmp_path / start))
    network = first_network(config, fractions)
    assert network.config.class_fractions == fractions
    if start:
        logits = torch.randn(20, 5)
        now = logits + network.head[-1].bias - earlier.head[-1].bias
        torch.testing.assert_close(network.binary_of_two(now), earlier.binary_of_two(logits))
    else:
        assert network.config.channels == SMALL.channels


@pytest.fixture
def run(tmp_path):
    """A run on twelve pairs; nothing is zero that could hide a dependence."""
    generator = np.random.default_rng(0)
    clean = -generator.random((12, 2, 150), dtype=np.float32)
    two = np.full(12, 2, dtype=np.uint8)
    pairs = Pairs(clean, None, two, np.zeros(12, dtype=bool), np.full(12, -50.0))
    places = np.arange(12)
    data = TrainingData(pairs, SURVEY.times, SURVEY, places, places[:3], [], [])
    run = Trainer(CONFIG, data, tmp_path, CPU)
    for parameter in run.network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return run


def gradients(run):
    samples = next(run.batches(0))
    rows = learner_module.tensors_of(samples, CPU)
    losses = run.learner.gradients(rows, len(rows.held))
    found = [losses, *(p.grad.clone() for p in run.network.parameters())]
    run.learner.optimizer.zero_grad()
    return found


@pytest.mark.parametrize("at_once", [1, 5, 12])
def test_samples_in_parts_give_the_gradient_of_the_whole(run, at_once, monkeypatch):
    whole = gradients(run)
    monkeypatch.setattr(learner_module, "AT_ONCE", at_once)
    for a, b in zip(gradients(run), whole, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5 * float(b.abs().max()) + 1e-9)


def test_classes_that_are_no_part_of_the_sets_get_no_gradient(run):
    next_to_last = [g for g, p in zip(gradients(run)[1:], run.network.named_parameters(),
                                      strict=True) if p[0] == "head.4.bias"][0]  # fmt: skip
    assert (next_to_last[3:] == 0).all() and (next_to_last[:3] != 0).all()


def test_one_step_follows_the_textbook(run):
    """AdamW's first step, fused, after clipping: each weight moves by the learning rate."""
    run.learner.optimizer.param_groups[0]["weight_decay"] = 0.0
    samples = next(run.batches(0))
    weight = run.network.embed.weight
    rows = learner_module.tensors_of(samples, CPU)
    run.learner.gradients(rows, len(rows.held))
    norm = torch.stack([p.grad.norm() for p in run.network.parameters()]).norm()
    gradient = weight.grad.clone() / max(1.0, float(norm))
    run.learner.optimizer.zero_grad()
    before = weight.detach().clone()
    run.step(samples, 1e-3)
    expected = -1e-3 * gradient / (gradient.abs() + 1e-8)
    torch.testing.assert_close(weight.detach() - before, expected, rtol=1e-2, atol=1e-6)


def test_an_epoch_takes_every_pair_once_and_each_in_another_order(run, monkeypatch):
    taken = []

    def seen(places, survey, *names):
        taken.append((names, places.tolist()))
        return run.data.pairs.some(places), run.data.time, survey, [0] * len(places), 1

    monkeypatch.setattr(run, "task", seen)
    for epoch in (0, 1):
        assert len(list(run.batches(epoch))) == run.steps == 2
    orders = [[k for names, part in taken if names[1] == e for k in part] for e in (0, 1)]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(12)) and orders[0] != orders[1]


def test_two_processes_take_the_halves_of_each_batch(run, monkeypatch):
    def order():
        found = []
        monkeypatch.setattr(run, "task", lambda places, survey, *names: found.append(places) or (
            run.data.pairs.some(places), run.data.time, survey, [0] * len(places), 1))  # fmt: skip
        list(run.batches(0))
        return [part.tolist() for part in found]

    whole = order()
    halves = []
    for rank in (0, 1):
        run.rank, run.world = rank, 2
        halves.append(order())
    assert [a + b for a, b in zip(*halves, strict=True)] == whole


def test_noise_is_fresh_in_every_epoch_and_the_same_in_a_rerun(run):
    first, again = (next(run.batches(0)) for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    place = np.array([4])
    one, two = (run.task(place, SURVEY, "noise", epoch)[3] for epoch in (0, 1))
    assert one != two and run.task(place, SURVEY, "validation")[3] not in (one, two)


def test_validation_scores_the_last_epoch_of_each_row(run):
    loss, auc = run.validate()
    rows = run.validation_samples()
    p = two_class_probability(run.network, rows).numpy()
    y = (rows.labels > 0).numpy()
    assert len(y) == 3 * 2 * CONFIG.per_curve
    expected = -np.log(np.where(y, p, 1 - p)).mean()
    assert loss == pytest.approx(expected, rel=1e-5)
    assert auc == pytest.approx(roc_auc_score(y[3::4], p[3::4]), abs=1e-9)
    run.data = replace(run.data, validation_pairs=np.empty(0, dtype=int))
    assert np.isnan(run.validate()).all()


def test_results_come_in_order_with_few_tasks_ahead():
    given, done = [], []

    class Slow:
        def __init__(self, value):
            self.value = value

        def get(self):
            done.append(self.value)
            return self.value

    class Pool:
        def apply_async(self, function, task):
            given.append(task)
            assert len(given) - len(done) <= 3
            return Slow(function(*task))

    found = list(in_order(Pool(), lambda x: x * x, ((k,) for k in range(10)), 3))
    assert found == [k * k for k in range(10)]
    assert list(in_order(None, lambda x: x, ((k,) for k in range(3)), 1)) == [0, 1, 2]


def test_kernels_make_the_batches_of_a_device(tmp_path, monkeypatch):
    """Two processes have the parts of what one has; each step is on as many pairs."""
    pytest.importorskip("triton")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    monkeypatch.setattr(trainer_module, "kernels_agree", lambda device: True)
    survey = Survey(num_epochs=16, sigma=0.02, missing_fraction=0.1)
    clean = -np.random.default_rng(0).random((5, 2, 16), dtype=np.float32)
    second = np.array([2, 1, 2, UNKNOWN_MASS, UNKNOWN_MASS], dtype=np.uint8)
    pairs = Pairs(clean, None, second, np.zeros(5, dtype=bool), np.full(5, -50.0))
    data = TrainingData(pairs, survey.times, survey, np.arange(4), np.arange(4, 5), [], [])
    config = replace(CONFIG, batch_size=4, per_curve=2)
    run = Trainer(config, data, tmp_path, device)
    assert run.on_device and run.steps == 2
    whole = list(run.batches(0))
    assert [len(x.held) for x in whole] == [8] * 2
    labels = torch.cat([x.labels for x in whole]).cpu()
    assert sorted(labels[::2].tolist()) == [0] * 4 + [1, 2, 2, 2]
    unknown = torch.cat([x.targets for x in whole])
    assert int((unknown[:, 1] == unknown[:, 2]).sum()) == 4  # a pair of unknown q, two samples each
    run.world, parts = 2, []
    for run.rank in (0, 1):
        parts.append(list(run.batches(0)))
    for one, *halves in zip(whole, *parts, strict=True):
        for values, *of in zip(one, *halves, strict=True):
            torch.testing.assert_close(torch.cat(of).float(), values.float(), rtol=0, atol=1e-3)
    run.world, run.rank = 1, 0
    assert np.isfinite(run.train_epoch(0)[0]) and np.isfinite(run.validate()[0])
    targets = run.validation_samples().targets
    assert len(targets) == 4 and torch.allclose(targets[:, 1], targets[:, 2])


def test_a_step_on_rows_is_gradients_and_an_update(run):
    rows = learner_module.tensors_of(next(run.batches(0)), CPU)
    before = {k: x.clone() for k, x in run.network.state_dict().items()}
    losses = run.learner.step_on(rows)
    after = {k: x.clone() for k, x in run.network.state_dict().items()}
    run.network.load_state_dict(before)
    run.learner.optimizer.state.clear()
    expected = run.learner.gradients(rows, len(rows.held))
    run.learner.update()
    assert torch.equal(losses, expected)
    assert all(torch.equal(x, after[k]) for k, x in run.network.state_dict().items())
