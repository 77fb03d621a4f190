"""Light curves as surveys publish them: strict readers."""

from lensml._exports import exports

__getattr__, __dir__, __all__ = exports(
    __name__,
    readers="Photometry installed_events load_installed pspl_fit_observed read_photometry seasons",
)
