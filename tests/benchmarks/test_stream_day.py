"""A day of a stream in small."""

from benchmarks.studies import stream_day


def test_a_stream_with_little_memory_and_restarts_answers_like_one_that_never_stopped():
    sizes = ["--lines", "3000", "--events", "60", "--memory", "20", "--restarts", "1"]
    found = stream_day.main(sizes)
    assert found["largest difference of P"] < 1e-5
