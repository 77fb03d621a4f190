"""Chapters: presets, results, papermill, the book."""

from lensml._exports import exports

__getattr__, __dir__, __all__ = exports(
    __name__,
    machine="device_name events_by_set preflight provenance",
    tables=(
        "ResultsTable benchmark_rows flatten format_number is_interval observers_table result_key "
        "results_table target_met"
    ),
    presets="TEST_SEED",
    results=(
        "BENCHMARKS PERFORMANCE STUDIES benchmarks_by_device display load_benchmark load_results "
        "png run_path set_path start write_json write_svg"
    ),
    evaluation_run=(
        "assess classical evaluate final_probability headline predictions report_text scored"
    ),
    notebooks=(
        "EXECUTED LOGS RECORDS chapter_fingerprint chapter_names find_chapter literal "
        "read_record run"
    ),
    book="PROJECT_FILES book_code make_book make_project",
)
