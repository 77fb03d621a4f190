"""Metrics, the ideal observer, early detection, alerts, baseline methods."""

from lensml._exports import exports

__getattr__, __dir__, __all__ = exports(
    __name__,
    metrics=(
        "average_precision balanced_accuracy bin_label bin_thresholds bootstrap dchi2_50 ece "
        "fraction pr_curve recall_at_fpr recall_by_dchi2 reliability roc_auc roc_curve "
        "threshold_at_fpr"
    ),
    ideal_observer=(
        "completeness excess_over_ideal expected_ideal ideal_log_ratio ideal_probability "
        "ideal_recall partner_rows until_fraction"
    ),
    baselines="pspl_residuals residual_scan_score shortcut_probe summary_statistics",
    anomaly_finder="score_at_fixed_thresholds search",
    classical="bins_where_worse classical_scores compare",
    early_detection="PHASE_EDGES first_alert",
    calibration="calibration_table fit_calibrator prior_shift resample_to_prevalence",
    prefixes="add_reachable alerts_by_peak onsets proportion wilson_interval",
    profile_ratio="",
    alerts=(
        "alert_rate_and_purity compare_with_ideal counted detected_by_phase false_alarm_report "
        "latency_summary season_peaks set_threshold"
    ),
    evaluate="check_unseen predict",
    assess="headline",
    report=(
        "assert_below_ideal assert_falling dchi2_retained detected gap_to_ideal loss_by_cause "
        "score share_beyond summary under_surveys undetectable_by_group worst"
    ),
)
