"""Training of the shipped network: a run leaves what is needed, and goes on where it ended."""

import csv
import json
import math
from multiprocessing.pool import ThreadPool

import numpy as np
import pytest
import torch
from sets import data_sets

from lensml.network import (
    CONFIG,
    Network,
    joint_epochs,
    load_network,
    load_tensors,
    save_tensors,
)
from lensml.paths import InputError
from lensml.training import event_training
from lensml.training.device_samples import observed_rows
from lensml.training.event_samples import CLASS_FRACTIONS, SETS, MadeBlock, make_samples
from lensml.training.event_training import (
    HISTORY,
    SAVED,
    EventTrainingConfig,
    SampleBuffer,
    Variant,
    _learner,
    _Makers,
    train_events,
    validate,
)
from lensml.training.samples import Observation, Samples

QUICK = dict(minutes=0.05, least=100, validation_blocks=1, batch_size=32, per_curve=2,
             capacity=2000, warmup_steps=1, visits=2.0)  # fmt: skip


@pytest.fixture(autouse=True)
def settings_of_the_process():
    """One thread, as the program has; a run sets small numbers to zero for the whole process."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    torch.set_flush_denormal(False)


@pytest.fixture(scope="module")
def block():
    return make_samples(5, 0, per_curve=2, times=1)


@pytest.fixture
def places(block, monkeypatch):
    """Samples at once, from threads; the places of the blocks asked for, those of training."""
    asked = []

    def make(seed, place, **_):
        if seed == EventTrainingConfig().seed:
            asked.append(place)
        return block

    monkeypatch.setattr(event_training, "worker_pool", ThreadPool)
    monkeypatch.setattr(event_training, "make_samples", make)
    return asked


def history(run):
    with (run / HISTORY).open() as file:
        return list(csv.DictReader(file))


def test_a_run_with_processes_writes_weights_history_and_config(tmp_path):
    run = train_events(tmp_path / "run", EventTrainingConfig(**QUICK), workers=1)
    network, notes = load_network(run)
    assert network.config.class_fractions == pytest.approx(CLASS_FRACTIONS)
    assert not network.training and not (run / SAVED).exists()
    (row,) = history(run)
    assert float(row["seconds"]) >= 3 and float(row["soft_loss"]) < 2
    assert notes["training"]["batch_size"] == 32 and notes["validation"]["loss"] < 2
    assert {r["preset"] for r in notes["trained_on"]} == {name for name, *_ in SETS}
    assert notes["trained_on"][0]["seed"] + 1 == notes["validated_on"][0]["seed"]


def test_a_run_takes_its_blocks_in_order(places, tmp_path):
    run = train_events(tmp_path / "run", EventTrainingConfig(**QUICK), workers=1)
    state = json.loads((run / CONFIG).read_text())["state"]
    assert state["step"] >= 8 and state["samples"] > 100
    assert places[:3] == [0, 1, 2]


@pytest.mark.parametrize("labels", ["soft", "hard"])
def test_steps_lower_the_loss(block, labels):
    device = torch.device("cpu")
    buffer = SampleBuffer(len(block.labels), device)
    buffer.add(block)
    config = EventTrainingConfig(**QUICK)
    learner = _learner(config, Variant(pretrained=False, labels=labels), device)
    generator = torch.Generator().manual_seed(1)
    for _ in range(40):
        learner.step(buffer.rows, torch.randint(buffer.size, (64,), generator=generator), 2e-3)
    untrained = math.log(5)
    assert validate(learner.network, buffer)["soft_loss"] < untrained - 0.05
    assert learner.loss < untrained


def test_an_interrupted_run_goes_on_from_its_step(places, tmp_path):
    state = {"step": 40, "seconds": 1.0, "next": 7, "samples": 500}
    save_tensors(tmp_path / SAVED, Network().state_dict(), state)
    notes = json.loads((train_events(tmp_path, EventTrainingConfig(**QUICK)) / CONFIG).read_text())
    assert notes["state"]["step"] > 40 and notes["state"]["samples"] > 500
    assert min(places) == 7 and notes["trained_on"][0]["stop"] == 64 * notes["state"]["next"]


def test_a_run_whose_time_is_over_keeps_its_weights(places, tmp_path):
    torch.manual_seed(3)
    saved = Network().state_dict()
    state = {"step": 40, "seconds": 3.0, "next": 7, "samples": 500}
    save_tensors(tmp_path / SAVED, saved, state)
    network, notes = load_network(train_events(tmp_path, EventTrainingConfig(**QUICK)))
    assert notes["state"]["step"] == 40 and not places
    assert all(torch.equal(x, saved[name]) for name, x in network.state_dict().items())


def test_an_interrupted_run_keeps_what_the_optimizer_remembers(block):
    config = EventTrainingConfig(**QUICK | {"cuda_graph": 0})
    device = torch.device("cpu")
    buffer = SampleBuffer(len(block.labels), device)
    buffer.add(block)
    rows = [torch.arange(k, k + 32) for k in (0, 32, 64)]
    one, two = (_learner(config, Variant(pretrained=False), device) for _ in range(2))
    for index in rows[:2]:
        one.step(buffer.rows, index, 1e-3)
    two.restore(one.state())
    for learner in (one, two):
        learner.step(buffer.rows, rows[2], 1e-3)
    weights = two.network.state_dict()
    assert all(torch.equal(x, weights[name]) for name, x in one.network.state_dict().items())


def test_variants_are_trained_on_the_same_rows(places, tmp_path):
    variants = (
        Variant(name="soft", pretrained=False),
        Variant(name="again", pretrained=False),
        Variant(name="hard", labels="hard", pretrained=False),
        Variant(name="narrow", channels=16, pretrained=False),
    )
    train_events(tmp_path, EventTrainingConfig(**QUICK, variants=variants), workers=1)
    found = {v.name: load_network(tmp_path / v.name) for v in variants}
    soft, again, hard = (found[k][0].state_dict() for k in ("soft", "again", "hard"))
    assert all(torch.equal(x, again[name]) for name, x in soft.items())
    assert not torch.equal(soft["embed.weight"], hard["embed.weight"])
    assert found["narrow"][0].config.channels == 16
    assert found["hard"][1]["training"]["variants"]["labels"] == "hard"
    assert all(len(history(tmp_path / v.name)) == 1 for v in variants)


def test_labels_are_soft_or_hard():
    with pytest.raises(InputError, match="labels are 'firm'; expected soft or hard"):
        Variant(labels="firm")


def test_another_run_begins_with_the_weights_of_an_earlier_one(places, tmp_path):
    done = {"step": 0, "seconds": 3.0, "next": 0, "samples": 0}
    save_tensors(tmp_path / "one" / SAVED, Network().state_dict(), done)
    one = train_events(tmp_path / "one", EventTrainingConfig(**QUICK))
    config = EventTrainingConfig(**QUICK | {"minutes": 1e-6, "start_from": str(one)})
    two = train_events(tmp_path / "two", config)
    first, second = (load_tensors(run / "model.safetensors")[0] for run in (one, two))
    assert all(torch.equal(x, second[name]) for name, x in first.items())


def test_a_full_buffer_replaces_the_oldest():
    buffer = SampleBuffer(10, torch.device("cpu"))
    for first, num in ((0, 4), (4, 8)):
        buffer.add(
            Samples(*[np.arange(first, first + num, dtype=np.float32)] * len(Samples._fields))
        )
    assert (buffer.size, buffer.total) == (10, 12)
    assert all(sorted(x.tolist()) == list(range(2, 12)) for x in buffer.rows(slice(None)))


def test_an_untrained_network_has_the_losses_of_equal_odds(block):
    buffer = SampleBuffer(len(block.labels), torch.device("cpu"))
    buffer.add(block)
    found = validate(Network(), buffer)
    expected = [math.log(5)] * 2 + [math.log(2)] * 2  # five classes, then two
    np.testing.assert_allclose(list(found.values()), expected, atol=1e-6)


@pytest.mark.parametrize("name", ["minutes", "per_curve", "batch_size", "learning_rate", "visits",
                                  "capacity", "warmup_steps", "validation_blocks"])  # fmt: skip
@pytest.mark.parametrize("value", [0, -1, math.nan])
def test_a_setting_that_makes_no_sense_is_named_in_the_error(name, value):
    with pytest.raises(InputError, match=f"`{name}` is {value}, but more than 0"):
        EventTrainingConfig(**{name: value})


def test_a_call_that_stops_early_leaves_the_rest_to_another(places, tmp_path):
    config = EventTrainingConfig(**QUICK | {"minutes": 0.1})
    train_events(tmp_path, config, workers=1, stop_after=1.0)
    _, first = load_tensors(tmp_path / SAVED)
    assert 0 < first["seconds"] < 4 and load_network(tmp_path)[1]["state"] == first
    train_events(tmp_path, config, workers=1)
    state = load_network(tmp_path)[1]["state"]
    assert state["seconds"] >= 6 and state["step"] > first["step"]
    assert not (tmp_path / SAVED).exists()
    train_events(tmp_path, config, workers=1)  # nothing is left of its time
    assert load_network(tmp_path)[1]["state"] == state


def test_a_block_that_ends_while_others_are_collected_is_not_lost():
    class Block:
        """A worker's answer, which ends just after it was first asked for."""

        asked = 0

        def ready(self) -> bool:
            self.asked += 1
            return self.asked > 1

        def get(self) -> str:
            return "samples"

    class Pool:
        def apply_async(self, make, arguments) -> Block:
            return Block()

    makers = _Makers(Pool(), 1, EventTrainingConfig(per_curve=3), 0)
    assert makers.ready() == [] and len(makers.pending) == 2
    assert makers.ready() == ["samples", "samples"]


def test_blocks_wait_until_they_fill_a_device(monkeypatch):
    """Kernels fit the events of several blocks together; those of too many epochs come along."""
    pytest.importorskip("triton")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    long = make_samples(5, 0, per_curve=1, times=1)

    def make(seed, place, per_curve, times):
        groups = []
        for sets in (1, 2):
            joint = joint_epochs(data := data_sets(sets, 12 + place, seed=place))
            times_ = joint.times[joint.place]
            seen = Observation(data, False, times_, np.zeros(len(times_)), times_[0])
            groups.append(observed_rows([(seen, 0, 2), (seen, 2, 2)]))
        return MadeBlock(groups, long if place == 0 else None, 7)

    monkeypatch.setattr(event_training, "make_rows", make)
    monkeypatch.setattr(event_training, "ROWS_AT_ONCE", 8)
    with ThreadPool(1) as pool:
        makers = _Makers(pool, 1, EventTrainingConfig(per_curve=3), 0, device)
        found = []
        while not found:
            found = makers.ready()
    assert len(found) == 3 and found[0] is long and not makers.waiting
    of_rows = torch.cat([x.labels for x in found[1:]]).tolist()
    assert len(of_rows) >= 8 * 3 and of_rows.count(0) == of_rows.count(2)
    buffer = SampleBuffer(5000, device)
    for samples in found:
        buffer.add(samples)
    assert buffer.size == len(long.labels) + len(of_rows)
