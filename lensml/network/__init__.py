"""A light curve in, P(binary) at every epoch out."""

from lensml._exports import exports

__getattr__, __dir__, __all__ = exports(
    __name__,
    features=(
        "BIN_WIDTHS FEATURE_WINDOW NUM_BINS NUM_FEATURES PackedCurves encode encode_latest "
        "observed_epochs pack"
    ),
    sequential_fit="BIN Fits MAX_HISTORY next_refit_epoch prior_fits refit_schedule update_fits",
    residual_maps="ResidualInputs innovation_features one_thread refit_and_map residual_inputs",
    model="CausalBlock Network NetworkConfig PATCH_SIZE causal_upsample",
    checkpoint=(
        "CONFIG MODEL check_unseen current_config current_tensor_name fingerprint load_network "
        "load_tensors read_snapshot run_folder save_network save_tensors weights_hash "
        "write_snapshot"
    ),
    calibration="prior_shift",
    inference=(
        "BASELINE_MAX BASELINE_MIN PHASE_EDGES Predictions at_fractions bf16_supported "
        "by_phase causal_baseline classify find_device is_finite max_probability predict "
        "predict_proba"
    ),
)
