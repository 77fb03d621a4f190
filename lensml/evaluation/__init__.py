"""Metrics, the ideal observer, early detection, alerts, calibration, baseline methods."""

from lensml._exports import exports

__getattr__, __dir__, __all__ = exports(
    __name__,
    metrics=(
        "IDEAL_HALF STATISTICS average_precision balanced_accuracy bin_label binomial_interval "
        "bootstrap dchi2_50 detected fraction ideal_recall neighbour_thresholds recall_at_fpr "
        "recall_by_dchi2 reliability roc_auc score_table threshold_at_fpr wilson_interval"
    ),
    ideal_observer=(
        "assert_below_ideal excess_over_ideal expected_ideal ideal_log_ratio ideal_probability"
    ),
    early_detection=(
        "PHASE_EDGES add_refit_limited first_alert onset_times refit_prefixes scores_by_phase"
    ),
    anomaly_finder="score_at_fixed_thresholds search_prefixes",
    alerts=(
        "alert_rate_and_purity compare_observers detected_by_phase observer_scores season_policy"
    ),
    calibration=(
        "anytime_calibration at_prevalence calibration_errors calibration_table ece prior_shift"
    ),
    baselines=(
        "classical_scores compare_methods residual_scan_score shortcut_probe summary_statistics"
    ),
    comparison="Scores assert_falling completeness loss_by_cause score summary undetectable",
    report="classification_report full_report score_report scores_by_fraction",
)
