"""Numbers in, figure out."""

from lensml._exports import exports

__getattr__, __dir__, __all__ = exports(
    __name__,
    scores=(
        "BINARY SINGLE against_phase against_u0 bars canvas completeness_curve confusion "
        "early_detection growth history map_s_q recall_by_dchi2 reliability roc_and_pr styled"
    ),
    alerts="alerts_by_phase burden_and_purity lags reliability_at_fractions",
    events="contaminants gallery prior_histograms real_event",
    classical_plots="by_fraction fixed_table method_table recall_by_method verdict",
)
