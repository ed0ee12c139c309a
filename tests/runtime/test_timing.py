import pytest

from regseg_jax.runtime import timing


def test_summary():
    times = timing.summarize([0.001 * i for i in range(1, 102)])
    assert times == pytest.approx({"median_ms": 51, "p5_ms": 6, "p95_ms": 96})


def test_difference():
    timing.check_difference(0.02, 0.02)
    for difference in (0.021, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="differs from float32"):
            timing.check_difference(difference, 0.02)


def test_error_is_one_short_line():
    assert timing.describe_error(MemoryError("no memory\nin the arena")) == "MemoryError: no memory"
    assert len(timing.describe_error(ValueError("x" * 999))) == 200
