"""Numbers in, figure out."""

from lensml._exports import exports

__getattr__, __dir__, __all__ = exports(
    __name__,
    style="BINARY COLOURS DOTTED IDEAL SINGLE canvas few_ticks legend_below looks styled",
    scores=(
        "bars completeness_curve confusion early_detection history recall_by_dchi2 "
        "recall_by_method recall_by_u0 recall_map roc_and_pr scores_by_phase"
    ),
    alerts=(
        "alert_latency alerts_by_phase purity_by_prevalence reliability reliability_at_fractions"
    ),
    events="gallery prior_histograms real_event",
)
