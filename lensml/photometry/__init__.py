"""Light curves as surveys publish them: strict readers, published events."""

from lensml._exports import exports

__getattr__, __dir__, __all__ = exports(
    __name__,
    columns="",
    tables="",
    readers="""Event Photometry baseline_magnitude from_table light_curve_files read_event
        read_photometry seasons""",
    events="installed_events load_installed",
)
