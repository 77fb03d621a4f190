"""Numbers in, figure out."""

from lensml._exports import exports

__getattr__, __dir__, __all__ = exports(
    __name__,
    scores=(
        "BINARY SINGLE scores_by_phase recall_by_u0 bars canvas completeness_curve confusion "
        "early_detection growth history recall_map recall_by_dchi2 reliability roc_and_pr styled"
    ),
    alerts="alerts_by_phase purity_by_prevalence alert_latency reliability_at_fractions",
    events="contaminants gallery prior_histograms real_event",
    classical_plots="scores_by_fraction fixed_table method_table recall_by_method verdict",
)
