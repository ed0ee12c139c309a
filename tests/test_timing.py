import json

import pytest

from regseg_jax import timing


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


def test_file_is_whole_and_new(tmp_path):
    path = tmp_path / "new" / "times.json"
    timing.check_new(path)
    timing.check_new(None)
    timing.write_json(path, {"a": [1]})
    assert json.loads(path.read_text()) == {"a": [1]}
    assert [entry.name for entry in path.parent.iterdir()] == ["times.json"]
    with pytest.raises(ValueError, match="exists; name a new file"):
        timing.check_new(path)


def test_run_says_what_when_and_how_busy():
    run = timing.describe_run()
    assert "pytest" in run["command"]
    assert run["date"].endswith("+00:00")
    assert run["load_average"] >= 0
    assert timing.read_cpu_name()
