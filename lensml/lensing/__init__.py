"""What a lens does to light: lenses, magnification, caustics, point-lens fits."""

from lensml._exports import exports

__getattr__, __dir__, __all__ = exports(
    __name__,
    lenses="BinaryLens PointLens magnification_centre to_centre_of_mass track",
    caustics="caustic_curves crosses_caustic topology topology_borders",
    interpolation="",
    magnification=("binary_magnification finite_source_magnification point_lens_magnification"),
    _triton="",
    normal_equations="MAG",
    pspl="excess_magnification fit_prefixes fit_pspl pspl_delta_mag starting_points",
    joint_fits="FIT_CENTRE QUICK brightness error_factors log_ratio put refit",
    _triton_fits="",
)
