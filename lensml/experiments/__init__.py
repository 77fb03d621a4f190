"""Chapters: presets, results, papermill, the book."""

from lensml._exports import exports

__getattr__, __dir__, __all__ = exports(
    __name__,
    explorer="explore frames skies snapshot",
    results=(
        "BENCHMARKS Comparison PERFORMANCE benchmark_rows benchmarks_by_device device_name display "
        "flatten format_number glue_numbers load_benchmark load_results plain provenance "
        "save_figure save_results season_thresholds show_committed target_met"
    ),
    timing=(
        "CYCLE aged_stream batch_speed fresh_epochs pipeline_seconds resampled simulation_speed "
        "stream_rate stream_seconds stream_seconds_in_batches worker_map"
    ),
    presets=(
        "TEST_SEED baseline cadence distinct early_detection observed_set photometric_error "
        "physical_limits planetary_stellar rival_set simulated_events specialised_run test_set"
    ),
    preflight="",
    notebooks="run",
    book="",
)
