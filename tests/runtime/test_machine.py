from regseg_jax.runtime import machine


def test_run_says_what_when_and_how_busy(monkeypatch):
    monkeypatch.setattr("sys.orig_argv", ["/elsewhere/bin/python3", "-m", "tool", "a b"])
    run = machine.describe_run()
    assert run["command"] == "python -m tool 'a b'"
    assert run["date"].endswith("+00:00")
    assert run["load_average"] >= 0
    assert machine.read_cpu_name()
