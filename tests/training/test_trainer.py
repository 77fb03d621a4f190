"""The loop's schedules, and what it says when memory runs out."""

import logging
from dataclasses import replace

import pytest
import torch

from lensml.network import NUM_FEATURES, Network, NetworkConfig
from lensml.paths import InputError
from lensml.simulation import Simulation, Survey, simulate
from lensml.training import run as training
from lensml.training import sampler as batches
from lensml.training import trainer as loop
from lensml.training.data import TrainingData
from lensml.training.sampler import _survey_now
from lensml.training.trainer import Trainer, TrainingConfig, _learning_rate, _loss


def test_the_learning_rate_warms_up_and_falls_to_a_hundredth():
    config = TrainingConfig(learning_rate=1.0, warmup_fraction=0.1)
    rates = [_learning_rate(config, k / 1000) for k in range(1001)]
    assert max(rates) == pytest.approx(1.0) and rates.index(max(rates)) == 100
    assert rates[0] < 0.01 and rates[-1] == pytest.approx(0.01)


def test_errors_rise_to_the_surveys_own_and_stay_there():
    config, survey = TrainingConfig(curriculum=0.5), Survey(sigma=0.1)
    ceilings = [_survey_now(survey, config, p).sigma[1] for p in (0.0, 0.2, 0.4)]
    assert ceilings == sorted(ceilings) and ceilings[0] == pytest.approx(
        config.curriculum_sigma_max
    )
    assert _survey_now(survey, config, 0.5) == survey


def test_padding_has_no_part_in_the_loss():
    logits, labels = torch.randn(2, 6), torch.tensor([0.0, 1.0])
    valid = torch.tensor([[True] * 4 + [False] * 2, [True] * 6])
    changed = logits.clone()
    changed[0, 4:] += 9
    assert _loss(logits, labels, valid) == _loss(changed, labels, valid)


def test_a_row_without_a_label_has_no_part_in_the_loss():
    logits, valid = torch.randn(3, 6), torch.ones(3, 6, dtype=torch.bool)
    labels = torch.tensor([0.0, torch.nan, 1.0])
    changed = logits.clone()
    changed[1] += 9
    assert torch.isfinite(_loss(logits, labels, valid))
    assert _loss(logits, labels, valid) == _loss(changed, labels, valid)


def test_out_of_memory_names_the_batch_size_to_try(tmp_path, monkeypatch):
    simulate(tmp_path / "a.npz", Simulation(num_pairs=8), workers=1, progress=False)

    def explode(*_):
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(training, "load_training_data", explode)
    with pytest.raises(InputError, match="--batch_size 64 does not fit.*try --batch_size 32"):
        training.train(tmp_path / "a.npz", tmp_path / "run", TrainingConfig(batch_size=64))


CPU = torch.device("cpu")
SURVEY = Survey(num_epochs=150, sigma=0.02)
SHORT = replace(SURVEY, missing_fraction=0.6)
CONFIG = TrainingConfig(
    batch_size=12,
    mixed_precision=False,
    network=NetworkConfig(stem_channels=8, channels=16, num_levels=3, encoder_blocks=1),
)


@pytest.fixture
def run(tmp_path):
    """A run that has begun to learn, on six pairs."""
    clean = -torch.rand(12, 150, generator=torch.Generator().manual_seed(0))
    pairs = torch.arange(6).numpy()
    data = TrainingData(
        blended=torch.zeros(12, dtype=torch.bool),
        labels=torch.tensor([0.0, 1.0]).repeat(6),
        time=torch.from_numpy(SURVEY.times),
        survey=SURVEY,
        train_pairs=pairs,
        validation_pairs=pairs[:1],
        trained_on=[],
        validated_on=[],
        clean=clean,
    )
    run = Trainer(CONFIG, data, tmp_path, CPU)
    for parameter in run.network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return run


def gradients(run):
    batch = run.batch(torch.arange(6), 0, SURVEY)
    loss = run.gradients(*batch)
    return [loss, *(p.grad.clone() for p in run.network.parameters())]


def assert_alike(ours, theirs):
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5 * float(b.abs().max()) + 1e-9)


@pytest.mark.parametrize("rows_at_once", [1, 5, 12])
def test_rows_in_parts_give_the_gradient_of_the_whole(run, rows_at_once, monkeypatch):
    features = run.batch(torch.arange(6), 0, SURVEY)[0]
    assert run.rows_at_once(features) == len(features)
    whole = gradients(run)
    monkeypatch.setattr(loop, "EPOCHS_AT_ONCE", rows_at_once * features.shape[1] + 7)
    assert run.rows_at_once(features) == rows_at_once
    assert_alike(gradients(run), whole)


def test_batches_are_padded_to_few_lengths_and_padding_changes_no_gradient(run, monkeypatch):
    features = run.batch(torch.arange(6), 0, SURVEY)[0]
    assert features.shape == (12, 128, NUM_FEATURES)
    padded = gradients(run)
    monkeypatch.setattr(batches, "LENGTH_STEP", 1)
    assert run.batch(torch.arange(6), 0, SURVEY)[0].shape[1] < 128
    assert_alike(gradients(run), padded)


def test_compiled_steps_are_the_plain_ones(run, monkeypatch):
    """Traced and differentiated ahead of time; without inductor's minutes of C++."""
    plain, compiler = gradients(run), torch.compile
    monkeypatch.setattr(torch, "compile", lambda f: compiler(f, backend="aot_eager"))
    run.compiling = True
    assert_alike(gradients(run), plain)
    assert run.compiling and len(run.compiled) == 2  # features and network


def test_a_compiler_that_fails_costs_one_line_and_nothing_else(run, monkeypatch, caplog):
    plain = gradients(run)

    def broken(_):
        def fail(*_):
            raise RuntimeError("no compiler here\nand much more")

        return fail

    monkeypatch.setattr(torch, "compile", broken)
    run.compiling = True
    with caplog.at_level(logging.WARNING):
        ours = gradients(run)
    assert all(torch.equal(a, b) for a, b in zip(ours, plain, strict=True))
    assert [r.message for r in caplog.records] == [
        "torch.compile failed (no compiler here); training goes on without it"
    ]


def test_a_compiler_that_fails_half_way_leaves_no_half_gradient(run, monkeypatch):
    length = run.batch(torch.arange(6), 0, SURVEY)[0].shape[1]
    monkeypatch.setattr(loop, "EPOCHS_AT_ONCE", 4 * length)
    plain, taken = gradients(run), []

    def compiler(model):
        def once(*arguments):
            taken.append(model)
            if taken.count(run.model) > 1:
                raise RuntimeError("no memory for a second graph")
            return model(*arguments)

        return once

    monkeypatch.setattr(torch, "compile", compiler)
    run.compiling = True
    assert all(torch.equal(a, b) for a, b in zip(gradients(run), plain, strict=True))
    assert taken.count(run.model) == 2 and not run.compiling


def test_a_cpu_compiles_only_when_told_to(run):
    assert not run.compiling
    assert Trainer(replace(CONFIG, compile=True), run.data, run.run, CPU).compiling


def test_one_step_follows_the_textbook(run):
    """AdamW's first step, fused, after clipping: each weight moves by the learning rate."""
    run.optimizer.param_groups[0]["lr"] = 1e-3
    run.optimizer.param_groups[0]["weight_decay"] = 0.0
    before = run.network.downsample[0].weight.detach().clone()
    run.step(*run.batch(torch.arange(6), 0, SURVEY))
    gradient = run.network.downsample[0].weight.grad
    moved = run.network.downsample[0].weight.detach() - before
    expected = -1e-3 * gradient / (gradient.abs() + 1e-8)
    torch.testing.assert_close(moved, expected, rtol=1e-3, atol=1e-7)
    norms = [p.grad.norm() for p in run.network.parameters()]
    assert torch.stack(norms).norm() <= run.config.grad_clip_norm * 1.001


def test_some_unblended_pairs_are_not_told_that_they_are(run):
    pairs = torch.arange(6)
    run.config = replace(CONFIG, hide_blending_fraction=0.5)
    run.network.train()
    told = torch.stack([~run.blended(pairs, seed, SURVEY) for seed in range(200)]).float()
    assert 0.4 < told.mean() < 0.6
    assert torch.equal(told[:, ::2], told[:, 1::2])  # a pair is told alike
    run.network.eval()
    assert not run.blended(pairs, 0, SURVEY).any()
    assert run.blended(pairs, 0, replace(SURVEY, baseline_error=0.2)).all()


def test_batches_made_together_are_those_made_one_by_one(run):
    wanted = [(torch.arange(3), 7, SURVEY), (torch.tensor([5, 1, 4]), 8, SHORT)]
    run.network = Network(replace(run.config.network, embedding_channels=8)).eval()
    for got, one in zip(run.batches(wanted), wanted, strict=True):
        features, labels, valid, refits = run.batch(*one)
        length, num = features.shape[1], refits.maps.shape[1]
        assert torch.equal(got[0][:, :length], features) and not got[0][:, length:].any()
        assert torch.equal(got[1], labels)
        assert torch.equal(got[2][:, :length], valid) and not got[2][:, length:].any()
        torch.testing.assert_close(got[3].innovations[:, :length], refits.innovations)
        torch.testing.assert_close(got[3].maps[:, :num], refits.maps)
        torch.testing.assert_close(got[3].fit_summary[:, :num], refits.fit_summary)
        assert torch.equal(got[3].active_refit[:, :length][valid], refits.active_refit[valid])


def test_an_epoch_of_batches_made_together_sees_every_pair_once(run, monkeypatch):
    run.config, taken, made = replace(CONFIG, curriculum=0.0), [], []
    run.batches_at_once, run.pairs_per_batch, run.steps = 2, 2, 3
    together = run.batches
    monkeypatch.setattr(run, "batches", lambda wanted: made.append(wanted) or together(wanted))
    monkeypatch.setattr(run, "step", lambda *batch: taken.append(batch) or torch.zeros(()))
    run.train_epoch(0)
    assert len(taken) == run.steps == sum(map(len, made)) and len(made) == -(-run.steps // 2)
    pairs = torch.cat([pairs for wanted in made for pairs, *_ in wanted])
    assert len(pairs.unique()) == len(pairs) == run.steps * run.pairs_per_batch
