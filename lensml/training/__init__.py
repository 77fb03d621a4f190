"""Samples, the training loops on sets and for all events, runs."""

from lensml._exports import exports

__getattr__, __dir__, __all__ = exports(
    __name__,
    samples="Observation Samples cut_samples",
    data="TrainingData load_training_data pair_samples",
    device_samples="",
    event_samples="CLASS_FRACTIONS make_samples",
    learner="Learner logits_of tensors_of two_class_probability",
    trainer="Trainer TrainingConfig",
    run="train",
    event_training="EventTrainingConfig Variant train_events",
)
