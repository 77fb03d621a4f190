"""From priors to light-curve sets."""

from lensml._exports import exports

__getattr__, __dir__, __all__ = exports(
    __name__,
    priors="PARAMETER_SETS draw_binary parameter_set",
    survey="Survey clean_delta_mag draw_torch error_bars observe",
    lightcurves="FRACTIONS LightCurves PARAM_NAMES iterate load num_rows reobserve save",
    simulator="BLOCK CHUNK Simulation simulate worker_pool",
    null="null_pairs",
    contaminants="KINDS contaminant_set contaminant_training_set",
)
