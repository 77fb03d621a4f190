"""From priors to light-curve sets."""

from lensml._exports import exports

__getattr__, __dir__, __all__ = exports(
    __name__,
    priors="PARAMETER_SETS draw_binary parameter_set",
    survey="Survey draw_torch error_bars noise_free_delta_mag observe",
    lightcurves=(
        "FRACTIONS LightCurves PARAM_NAMES iterate load num_rows partner_rows reobserve save "
        "until_fraction"
    ),
    simulator="BLOCK Simulation fit_twins make_block shard_set simulate worker_pool",
    contaminants="KINDS contaminant_set contaminant_training_set",
)
