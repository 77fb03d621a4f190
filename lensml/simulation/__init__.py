"""From priors to light-curve sets."""

from lensml._exports import exports

__getattr__, __dir__, __all__ = exports(
    __name__,
    noise=(
        "NoiseLevels SkyNoise bright_factor draw_noise_levels nights noise_third "
        "ornstein_uhlenbeck sky_noise"
    ),
    schedules=("SURVEYS DataSet Observed noise_levels observe_event quoted_sigma schedule"),
    priors="PARAMETER_SETS draw_binary draw_single parameter_set",
    populations="VARIABLES Variable draw_variable",
    survey="Survey draw_numpy Draws draw_torch error_bars noise_free_delta_mag observe survey_of",
    lightcurves=(
        "FRACTIONS LightCurves PARAM_NAMES concatenate iterate large_array load num_rows "
        "partner_rows reobserve save until_fraction"
    ),
    simulator=(
        "BLOCK Simulation finish_shards fit_twins make_block shard_set simulate simulate_shards "
        "worker_pool"
    ),
    contaminants="CONDITIONS KINDS contaminant_set contaminant_training_set spoil",
)
