import dataclasses
import functools
import json
import pathlib
import re
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from regseg_jax.benchmark import __main__ as command
from regseg_jax.benchmark.devices import find_peak
from regseg_jax.benchmark.jax_backend import prepare_jax
from regseg_jax.benchmark.rows import (
    BACKENDS,
    Row,
    compute_reference,
    create_rows,
    format_rows,
    measure_rows,
)
from regseg_jax.benchmark.torch_backend import prepare_torch
from regseg_jax.benchmark.workload import (
    MODES,
    TOLERANCES,
    Prepared,
    compare,
    create_workload,
)
from regseg_jax.export import torch_model as torch_models
from regseg_jax.export.torch_forms import Form, calibrate
from regseg_jax.models import variants
from regseg_jax.models.regseg import RegSeg

ROOT = pathlib.Path(__file__).parents[2]
# Three blocks and the smallest decoder: training steps of it compile in seconds.
STAGES = (("stage4", 16), ("stage8", 32), ("stage16", 32))


@pytest.fixture(autouse=True, scope="module")
def single_thread():
    """PyTorch spins while it waits: on a busy machine two threads are slower than one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def model():
    stages = tuple((name, (variants.Block(width, stride=2),)) for name, width in STAGES)
    variant = variants.Variant("tiny_decoder12", variants.Backbone(stages), "decoder12")
    return RegSeg(variant, num_classes=11)


@pytest.fixture(scope="module")
def torch_model():
    """`model` in PyTorch."""
    stages = tuple((name, (variants.Block(width, stride=2),)) for name, width in STAGES)
    decoder = torch_models.DECODERS["decoder12"]
    torch.manual_seed(0)
    return calibrate(torch_models.RegSeg(variants.Backbone(stages), decoder, 11))


@pytest.mark.parametrize("mode", MODES)
def test_both_backends_compute_the_same(model, torch_model, mode, capsys):
    workload = create_workload(mode, model, (32, 48), batch_size=2)
    before = {name: value.clone() for name, value in torch_model.state_dict().items()}
    content = command.benchmark(workload, BACKENDS, ["float32"], 2, torch_model)
    assert all(torch.equal(value, before[name]) for name, value in torch_model.state_dict().items())

    rows = json.loads(json.dumps(content))["rows"]
    assert [row["backend"] for row in rows] == ["torch", "jax"]
    assert all(row["relative_difference"] < 1e-4 for row in rows)
    assert all(len(row["runs_ms"]) == 2 for row in rows)
    assert rows[0]["ratio_to_torch"] == 1
    assert rows[1]["ratio_to_torch"] == pytest.approx(rows[1]["median_ms"] / rows[0]["median_ms"])
    assert rows[1]["memory_bytes"] > workload.images.nbytes
    assert ("differing_pixels" in rows[0]) == (mode == "inference")
    table = capsys.readouterr().out.splitlines()
    assert [line.split()[:3] for line in table[2:]] == [
        ["torch", "float32", "plain"],
        ["jax", "float32", "plain"],
    ]


def test_jax_alone_needs_no_pytorch(model):
    workload = create_workload("inference", model, (32, 48), batch_size=2)
    rows = create_rows(workload, ["jax"], ["float32"])
    reference = compute_reference(workload, ["jax"])
    measure_rows(rows, workload, reference, num_runs=2)
    assert rows[0].results["relative_difference"] < 1e-5
    assert rows[0].results["ratio_to_torch"] is None


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_in_pytorch(model, torch_model, mode, precision):
    workload = create_workload(mode, model, (32, 48), batch_size=2)
    outputs = [
        prepare_torch(workload, torch_model, Form(), name, "cpu").output
        for name in ("float32", precision)
    ]
    difference = compare(*outputs, mode)["relative_difference"]
    assert difference > 1e-6
    assert difference <= TOLERANCES[mode][precision]


def create_row(prepare):
    return Row("jax", "float32", "plain", prepare)


def test_rows_are_timed_in_turns_and_a_failure_is_a_row(model):
    workload = create_workload("inference", model, (8, 8), batch_size=1)
    reference = np.zeros((1, 8, 8, 11), np.float32)
    reference[..., 0] = 1
    calls = []

    def out_of_memory():
        raise MemoryError("no memory left\nin the arena")

    def fails_late():
        calls.append("late")
        if len(calls) > 8:
            raise RuntimeError("late")

    def prepare(run, output):
        return lambda: Prepared(run, output, 1.0, None)

    rows = [
        create_row(prepare(lambda: calls.append("a"), reference)),
        create_row(out_of_memory),
        create_row(prepare(lambda: calls.append("wrong"), -reference)),
        create_row(prepare(lambda: calls.append("b"), reference)),
        create_row(prepare(fails_late, reference)),
    ]
    measure_rows(rows, workload, reference, num_runs=4)
    assert "".join(call for call in calls if call in "ab") == "ab" * 7  # 3 of them to warm up
    assert "wrong" not in calls
    errors = [row.results.get("error") for row in rows]
    assert errors[0] is errors[3] is None
    assert errors[1] == "MemoryError: no memory left"
    assert "differs from float32" in errors[2]
    assert errors[4] == "RuntimeError: late"
    table = format_rows(rows)
    assert "not timed: jax, float32, plain: MemoryError: no memory left" in table


def test_comparison():
    reference = np.array([[[[1, 0], [0, 1]]]], np.float32)  # [1, 1, 2, 2]
    results = compare(reference[:, :, [0, 0]], reference, "inference")
    assert results == {
        "max_difference": 1,
        "relative_difference": pytest.approx(0.5**0.5 / 0.5),
        "differing_pixels": 0.5,
    }


def test_operations(model):
    inference = create_workload("inference", model, (32, 64), batch_size=3)
    train = dataclasses.replace(inference, mode="train")
    stem = 2 * 3 * 16 * 32 * 9 * 3 * 32
    assert inference.flops > stem
    assert train.flops == 3 * inference.flops
    one = create_workload("inference", model, (32, 64), batch_size=1)
    assert inference.flops == 3 * one.flops


@pytest.mark.parametrize(
    ("device_kind", "precision", "peak"),
    [
        ("Tesla T4", "float16", 65),
        ("Tesla T4", "bfloat16", None),
        ("NVIDIA H100 80GB HBM3", "bfloat16", 989),
        ("NVIDIA H100 PCIe", "bfloat16", 756),
        ("NVIDIA H200", "float32", 495),
        ("NVIDIA A100-SXM4-40GB", "float16", 312),
        ("NVIDIA L40S", "float16", None),
        ("TPU v5 lite", "bfloat16", 197),
        ("cpu", "float32", None),
    ],
)
def test_peaks(device_kind, precision, peak):
    assert find_peak(device_kind, precision) == peak


def test_float16_starts_with_a_scale_that_does_not_overflow(model):
    init = jax.jit(functools.partial(model.init, train=False))
    variables = init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    workload = create_workload("train", model, (32, 48), batch_size=2)
    losses = prepare_jax(workload, variables, "float16").output
    assert np.isfinite(losses).all()
    assert losses[0] > losses[1] > losses[2]


def run_command(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "regseg_jax.benchmark", *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )


def test_command(tmp_path):
    output = tmp_path / "times.json"
    arguments = ("--backends=torch", "--size=32,64", "--num_runs=2", f"--output={output}")
    done = run_command(*arguments)
    assert done.returncode == 0, done.stderr
    content = json.loads(output.read_text())
    assert content["images"] == [1, 32, 64, 3]
    assert "--num_runs=2" in content["command"]
    assert set(content["versions"]) >= {"jax", "torch"}
    assert content["rows"][0]["median_ms"] > 0


def set_flags(**values):
    defaults = {"backends": "jax", "mode": "train", "precisions": "float32", "num_runs": 2}
    return types.SimpleNamespace(**{**defaults, "batch_size": 1, "size": "32,64", **values})


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("backends", "jax,tensorflow", "--backends has ['tensorflow']"),
        ("precisions", "int8", "--precisions has ['int8']"),
    ],
)
def test_bad_flags(name, value, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        command.measure(set_flags(**{name: value}))


def test_pytorch_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ValueError, match="--backends=torch needs torch"):
        command.measure(set_flags(backends="jax,torch"))
