"""Data on the device, batches, the training loop, runs and recipes."""

from lensml._exports import exports

__getattr__, __dir__, __all__ = exports(
    __name__,
    data="TrainingData load_training_data",
    sampler="BatchPlan BatchSampler TrainingConfig padded_length",
    trainer="Trainer training_loss",
    run="train",
    recipes="TrainingRecipe recipe_sets run_recipe shipped_recipe",
    event_samples="Samples make_samples",
    event_training="EventTrainingConfig Variant train_events",
)
