"""Batches, loss, schedules and one step of training."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from lensml.network import NUM_FEATURES, Network, NetworkConfig
from lensml.paths import InputError
from lensml.simulation import Simulation, Survey, simulate
from lensml.training import run as run_module
from lensml.training import sampler as sampler_module
from lensml.training import trainer as trainer_module
from lensml.training.data import TrainingData
from lensml.training.sampler import BatchPlan, TrainingConfig, _survey_now
from lensml.training.trainer import Trainer, _last_auc, _learning_rate, training_loss


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
    assert training_loss(logits, labels, valid) == training_loss(changed, labels, valid)


def test_a_row_without_a_label_has_no_part_in_the_loss():
    logits, valid = torch.randn(3, 6), torch.ones(3, 6, dtype=torch.bool)
    labels = torch.tensor([0.0, torch.nan, 1.0])
    changed = logits.clone()
    changed[1] += 9
    assert torch.isfinite(training_loss(logits, labels, valid))
    assert training_loss(logits, labels, valid) == training_loss(changed, labels, valid)


def test_out_of_memory_names_the_batch_size_to_try(tmp_path, monkeypatch):
    simulate(tmp_path / "a.npz", Simulation(num_pairs=8), workers=1, progress=False)

    def explode(*_):
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(run_module, "load_training_data", explode)
    with pytest.raises(InputError, match="--batch_size 64 does not fit.*try --batch_size 32"):
        run_module.train(tmp_path / "a.npz", tmp_path / "run", TrainingConfig(batch_size=64))


CPU = torch.device("cpu")
SURVEY = Survey(num_epochs=150, sigma=0.02)
SHORT = replace(SURVEY, missing_fraction=0.6)
PLAN = BatchPlan(torch.arange(6), 0, SURVEY)
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
    batch = run.sampler.batch(PLAN)
    loss = run.gradients(*batch)
    return [loss, *(p.grad.clone() for p in run.network.parameters())]


def assert_alike(ours, theirs):
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5 * float(b.abs().max()) + 1e-9)


@pytest.mark.parametrize("rows_at_once", [1, 5, 12])
def test_rows_in_parts_give_the_gradient_of_the_whole(run, rows_at_once, monkeypatch):
    features = run.sampler.batch(PLAN)[0]
    assert run.rows_at_once(features) == len(features)
    whole = gradients(run)
    monkeypatch.setattr(trainer_module, "EPOCHS_AT_ONCE", rows_at_once * features.shape[1] + 7)
    assert run.rows_at_once(features) == rows_at_once
    assert_alike(gradients(run), whole)


def test_batches_are_padded_to_few_lengths_and_padding_changes_no_gradient(run, monkeypatch):
    features = run.sampler.batch(PLAN)[0]
    assert features.shape == (12, 128, NUM_FEATURES)
    padded = gradients(run)
    monkeypatch.setattr(sampler_module, "LENGTH_STEP", 1)
    assert run.sampler.batch(PLAN)[0].shape[1] < 128
    assert_alike(gradients(run), padded)


def test_one_step_follows_the_textbook(run):
    """AdamW's first step, fused, after clipping: each weight moves by the learning rate."""
    run.optimizer.param_groups[0]["lr"] = 1e-3
    run.optimizer.param_groups[0]["weight_decay"] = 0.0
    before = run.network.downsample[0].weight.detach().clone()
    run.step(*run.sampler.batch(PLAN))
    gradient = run.network.downsample[0].weight.grad
    moved = run.network.downsample[0].weight.detach() - before
    expected = -1e-3 * gradient / (gradient.abs() + 1e-8)
    torch.testing.assert_close(moved, expected, rtol=1e-3, atol=1e-7)
    norms = [p.grad.norm() for p in run.network.parameters()]
    assert torch.stack(norms).norm() <= run.config.grad_clip_norm * 1.001


def test_f_s_is_free_for_some_unblended_pairs_in_training(run):
    sampler = run.sampler
    sampler.config = replace(CONFIG, hide_blending_fraction=0.5)
    run.network.train()
    plans = [PLAN._replace(seed=seed) for seed in range(200)]
    fixed = torch.stack([~sampler.free_blending(plan) for plan in plans]).float()
    assert 0.4 < fixed.mean() < 0.6
    assert torch.equal(fixed[:, ::2], fixed[:, 1::2])  # both rows of a pair alike
    run.network.eval()
    assert not sampler.free_blending(PLAN).any()
    uncertain = replace(SURVEY, baseline_error=0.2)
    assert sampler.free_blending(PLAN._replace(survey=uncertain)).all()


def test_batches_made_together_are_those_made_one_by_one(run):
    plans = [BatchPlan(torch.arange(3), 7, SURVEY), BatchPlan(torch.tensor([5, 1, 4]), 8, SHORT)]
    sampler = run.sampler
    sampler.network = Network(replace(run.config.network, embedding_channels=8)).eval()
    for got, plan in zip(sampler.batches(plans), plans, strict=True):
        features, labels, valid, refits = sampler.batch(plan)
        length, num = features.shape[1], refits.maps.shape[1]
        assert torch.equal(got[0][:, :length], features) and not got[0][:, length:].any()
        assert torch.equal(got[1], labels)
        assert torch.equal(got[2][:, :length], valid) and not got[2][:, length:].any()
        torch.testing.assert_close(got[3].innovations[:, :length], refits.innovations)
        torch.testing.assert_close(got[3].maps[:, :num], refits.maps)
        torch.testing.assert_close(got[3].fit_summary[:, :num], refits.fit_summary)
        assert torch.equal(got[3].active_refit[:, :length][valid], refits.active_refit[valid])


def test_an_epoch_of_batches_made_together_takes_every_pair_once(run, monkeypatch):
    run.config = run.sampler.config = replace(CONFIG, curriculum=0.0)
    sampler, taken, made = run.sampler, [], []
    sampler.batches_at_once, sampler.pairs_per_batch, sampler.steps = 2, 2, 3
    together = sampler.batches
    monkeypatch.setattr(sampler, "batches", lambda plans: made.append(plans) or together(plans))
    monkeypatch.setattr(run, "step", lambda *batch: taken.append(batch) or torch.zeros(()))
    run.train_epoch(0)
    assert len(taken) == sampler.steps == sum(map(len, made)) and len(made) == 2
    pairs = torch.cat([plan.pairs for plans in made for plan in plans])
    assert len(pairs.unique()) == len(pairs) == sampler.steps * sampler.pairs_per_batch


@pytest.mark.parametrize("rank", [0, 1])
def test_each_of_two_processes_takes_its_half_of_a_batch_and_validates_all_of_it(run, rank):
    sampler = run.sampler
    features, labels, valid, _ = sampler.batch(PLAN)
    sampler.rank, sampler.world = rank, 2
    half = sampler.batch(PLAN)
    own = slice(6 * rank, 6 * rank + 6)
    assert torch.equal(half[1], labels[own])
    width = min(half[0].shape[1], features.shape[1])
    assert torch.equal(half[0][:, :width], features[own, :width])
    assert torch.equal(sampler.batch(PLAN, whole=True)[0], features)


def test_the_validation_auc_is_that_of_the_library_also_with_ties():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 300).astype(np.float32)
    scores = np.round(rng.normal(labels, 1.0), 1).astype(np.float32)
    assert _last_auc(labels, scores) == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
    assert np.isnan(_last_auc(labels[labels == 1], scores[labels == 1]))
