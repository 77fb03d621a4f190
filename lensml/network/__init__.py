"""Light curves in, class probabilities at every epoch out."""

from lensml._exports import exports

__getattr__, __dir__, __all__ = exports(
    __name__,
    residuals="NUM_CHANNELS NUM_INPUTS NUM_STATE NUM_SUMMARY PHASE_BINS",
    inputs=(
        "DataSetEpochs GIVEN Histories JointEpochs JointInputs MOST_EPOCHS STEP UNKNOWN "
        "event_inputs joint_epochs new_histories refit_counts rounded_epochs take_epoch"
    ),
    model="CLASSES Network NetworkConfig PLANETARY_Q RECEPTIVE_FIELD",
    checkpoint=(
        "CONFIG MODEL check_unseen fingerprint load_network load_tensors read_snapshot run_folder "
        "save_network save_tensors weights_hash write_snapshot"
    ),
    calibration="prior_shift",
    _triton_inputs="",
    batched=(
        "PackedEvents batch_logits fit_events innovations kernels_agree map_refits pack_events "
        "pack_rows"
    ),
    inference=(
        "EventPrediction PHASE_EDGES Predictions SEASON_ROWS at_fractions bf16_supported by_phase "
        "classify find_device is_finite max_probability one_thread predict predict_at_fractions "
        "predict_by_kernels predict_event predict_proba"
    ),
)
