"""A light curve in, P(binary) at every epoch out."""

from lensml._exports import exports

__getattr__, __dir__, __all__ = exports(
    __name__,
    features=(
        "BIN_WIDTHS FEATURE_WINDOW NUM_BINS NUM_FEATURES PackedCurves encode encode_latest "
        "observed_epochs pack"
    ),
    sequential_fit="BIN Fits MAX_HISTORY next_refit_epoch prior_fits refit_schedule update_fits",
    residual_maps=(
        "NUM_SUMMARY PHASE_BINS ResidualInputs innovation_features one_thread refit_and_map "
        "residual_inputs"
    ),
    joint_residuals="NUM_CHANNELS NUM_INPUTS NUM_STATE",
    joint_inputs=(
        "DataSetEpochs GIVEN Histories JointEpochs JointInputs STEP UNKNOWN event_inputs "
        "joint_epochs new_histories refit_counts rounded_epochs take_epoch"
    ),
    model="CausalBlock Network NetworkConfig PATCH_SIZE causal_upsample",
    event_model="CLASSES EventNetwork EventNetworkConfig PLANETARY_Q RECEPTIVE_FIELD",
    checkpoint=(
        "CONFIG EVENTS MODEL check_unseen current_config current_tensor_name fingerprint "
        "load_event_network load_network load_tensors read_snapshot run_folder save_network "
        "save_tensors weights_hash write_snapshot"
    ),
    calibration="prior_shift",
    event_inference="EventPrediction predict_event predict_events",
    inference=(
        "BASELINE_MAX BASELINE_MIN PHASE_EDGES Predictions at_fractions bf16_supported "
        "by_phase causal_baseline classify find_device is_finite max_probability predict "
        "predict_proba"
    ),
)
