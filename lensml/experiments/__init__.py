"""Chapters: presets, results, papermill, the book."""

from lensml._exports import exports

__getattr__, __dir__, __all__ = exports(
    __name__,
    protocol="Call Case FEWEST_EPOCHS classify_all classify_case freeze read_frozen",
    verdicts="GROUPS MARKS failures headline published_events season_thresholds summary_table",
    explorer="explore frames skies snapshot",
    results=(
        "Comparison display flatten format_number glue_numbers load_results plain save_figure "
        "save_results show_committed"
    ),
    benchmark=(
        "BENCHMARKS BENCHMARK_NAMES QUICK benchmark_table device_folder growth_exponent "
        "keep_benchmark latest_benchmark met_counts newest_benchmark"
    ),
    speed=(
        "AGE aged_stream batch_speed fresh_epochs peak_memory pipeline_seconds resampled "
        "simulation_speed state_bytes stream_rate stream_seconds stream_seconds_in_batches "
        "worker_map"
    ),
    presets=(
        "TEST_SEED baseline cadence distinct early_detection observed_set photometric_error "
        "physical_limits planetary_stellar rival_set simulated_events specialised_run test_set"
    ),
    preflight="",
    notebooks="run",
    book="",
)
