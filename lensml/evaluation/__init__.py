"""Metrics, the ideal observer, early detection, alerts, baseline methods."""

from lensml._exports import exports

__getattr__, __dir__, __all__ = exports(
    __name__,
    metrics=(
        "average_precision balanced_accuracy bin_label bin_thresholds bootstrap "
        "dchi2_at_half_recall ece pr_curve recall_at_fpr recall_by_dchi2 reliability roc_auc "
        "roc_curve share threshold_at_fpr"
    ),
    ideal_observer=(
        "bound_excess completeness expected_ideal ideal_log_ratio ideal_probability "
        "ideal_recall partner_rows within"
    ),
    baselines="audit_shortcuts pspl_residuals residual_scan_score shortcut_scalars",
    anomaly_finder="at_fixed_thresholds search",
    classical="classical_scores compare where_beaten",
    early_detection="PHASE_EDGES first_alert",
    calibration="at_prevalence calibration_table fit_calibrator rows_at_prevalence",
    prefixes="add_reachable alerts_by_peak onsets proportion proportion_of",
    profile_ratio="",
    alerts=(
        "against_ideal burden calibrate counted detected_by_phase lag_summary measure season_peaks"
    ),
    evaluate="predict refuse_seen_events",
    assess="headline prose",
    report=(
        "check_bound check_falling found hopeless_by information_kept kept_table key loss "
        "millimag names_of percent score share_beyond shares_table shortfall slug summary "
        "under_surveys worst"
    ),
)
