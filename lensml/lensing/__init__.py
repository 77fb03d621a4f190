"""What a lens does to light: lenses, magnification, caustics, point-lens fits."""

from lensml._exports import exports

__getattr__, __dir__, __all__ = exports(
    __name__,
    critical="",
    interpolation="",
    magnification=(
        "BinaryLens PointLens binary_magnification finite_source_magnification "
        "magnification_centre point_lens_magnification to_centre_of_mass"
    ),
    caustics="caustic_curves crosses_caustic topology track",
    _triton="",
    normal_equations="CACHE_ELEMENTS MAG gauss_newton_terms marquardt_step",
    pspl="fit_prefixes fit_pspl pspl_delta_mag starting_points",
)
