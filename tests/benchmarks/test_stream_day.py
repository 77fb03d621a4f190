"""A day of a stream in small, with a real kill."""

from benchmarks.studies import stream_day


def test_a_stream_with_little_memory_that_is_killed_answers_like_one_that_never_stopped():
    found = stream_day.main(["--quick"])
    assert found["kills"] == 1
    assert found["largest_difference_of_p"] < 1e-5
    assert 0 < found["lines_fed_again"] < found["lines"]
