"""The loop's schedules, and what it says when memory runs out."""

import pytest
import torch

from lensml import train as training
from lensml.loop import TrainingConfig, _learning_rate, _loss, _survey_now
from lensml.paths import InputError
from lensml.simulate import Simulation, simulate
from lensml.survey import Survey


def test_the_learning_rate_warms_up_and_falls_to_a_hundredth():
    config = TrainingConfig(learning_rate=1.0, warmup=0.1)
    rates = [_learning_rate(config, k / 1000) for k in range(1001)]
    assert max(rates) == pytest.approx(1.0) and rates.index(max(rates)) == 100
    assert rates[0] < 0.01 and rates[-1] == pytest.approx(0.01)


def test_errors_rise_to_the_surveys_own_and_stay_there():
    config, survey = TrainingConfig(curriculum=0.5), Survey(sigma=0.1)
    ceilings = [_survey_now(survey, config, p).sigma[1] for p in (0.0, 0.2, 0.4)]
    assert ceilings == sorted(ceilings) and ceilings[0] == pytest.approx(config.sigma_start)
    assert _survey_now(survey, config, 0.5) == survey


def test_padding_has_no_part_in_the_loss():
    logits, labels = torch.randn(2, 6), torch.tensor([0.0, 1.0])
    valid = torch.tensor([[True] * 4 + [False] * 2, [True] * 6])
    changed = logits.clone()
    changed[0, 4:] += 9
    assert _loss(logits, labels, valid) == _loss(changed, labels, valid)


def test_out_of_memory_names_the_batch_size_to_try(tmp_path, monkeypatch):
    simulate(tmp_path / "a.npz", Simulation(num_pairs=8), workers=1, progress=False)

    def explode(*_):
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(training, "load_resident", explode)
    with pytest.raises(InputError, match="--batch_size 64 does not fit.*try --batch_size 32"):
        training.train(tmp_path / "a.npz", tmp_path / "run", TrainingConfig(batch_size=64))
