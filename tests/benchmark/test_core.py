import functools
import json

import jax
import jax.numpy as jnp
import pytest
from absl import flags

from regseg_jax.benchmark import core


def test_runs_take_turns_and_one_that_fails_is_left_out():
    calls = []

    def fails_late():
        calls.append("late")
        if calls.count("late") > 4:
            raise MemoryError("no memory left\nin the arena")

    runs = {"a": lambda: calls.append("a"), "late": fails_late, "b": lambda: calls.append("b")}
    timings = core.time_in_turns(runs, num_runs=4, show_progress=False)
    assert "".join(call for call in calls if call != "late") == "ab" * (core.NUM_WARMUP + 4)
    assert calls.count("late") == 5
    assert [len(timings[name].seconds) for name in "ab"] == [4, 4]
    assert timings["a"].summarize()["median_ms"] > 0
    assert timings["late"].summarize() == {"error": "MemoryError: no memory left"}


def test_the_plan_counts_what_is_reused_once():
    x = jax.ShapeDtypeStruct((256, 256), jnp.float32)
    double = jax.jit(lambda x, y: (x + 1, y.sum()), donate_argnums=0)
    plan = core.plan_memory(double.lower(x, x).compile())
    size = 4 * 256 * 256
    assert plan["arguments"] == 2 * size
    assert plan["reused"] == size
    assert plan["total"] == pytest.approx(2 * size + plan["temporary"], abs=64)


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Runs a command in this process; gives what it saved."""

    def run(*arguments):
        monkeypatch.setattr(flags, "FLAGS", flags.FlagValues())
        for name in ("DEFINE_string", "DEFINE_integer"):
            define = functools.partial(getattr(flags, name), flag_values=flags.FLAGS)
            monkeypatch.setattr(flags, name, define)
        monkeypatch.setattr(
            core, "run_command", lambda main, name: main(flags.FLAGS(["it", *arguments])[1:])
        )
        core.define_workload_flags("exp48_decoder26", "32,64", batch_size=1)
        core.run_benchmark(lambda values: {"size": values.size, "batch": values.batch_size}, "it")

    return run


def test_what_is_measured_is_saved_with_its_environment(run, tmp_path):
    output = tmp_path / "results.json"
    run("--batch_size=3", f"--output={output}")
    content = json.loads(output.read_text())
    assert content["size"] == "32,64"
    assert content["batch"] == 3
    assert "jax" in content["versions"]
    assert content["date"].endswith("+00:00")


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--output=.", r"\. exists already"),
        ("extra", r"unexpected arguments \['extra'\]"),
        ("--size=3", "--size is '3'"),
        ("--model=nothing", "nothing"),
    ],
)
def test_bad_flags_are_named(run, argument, message):
    with pytest.raises(ValueError, match=message):
        run(argument)
