import json
import subprocess
import sys

import pytest
import torch

from regseg_jax.export import torch_benchmark as tb
from regseg_jax.export import torch_forms, torch_timing
from regseg_jax.export.torch_model import DECODERS, RegSeg
from regseg_jax.models.variants import Backbone, Block

SMALL = Backbone(
    (
        ("stage4", (Block(16, stride=2),)),
        ("stage8", (Block(32, stride=2),)),
        ("stage16", (Block(64, stride=2), Block(96, (1, 4)))),
    )
)

# Raises on the import of anything that a machine with PyTorch alone need not have.
WITHOUT_JAX = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"jax", "jaxlib", "flax", "optax", "absl", "numpy"}:
            raise ModuleNotFoundError(f"{name} is blocked")

sys.meta_path.insert(0, Blocker())
from regseg_jax.export import torch_benchmark
code = torch_benchmark.main(sys.argv[1:])
assert not {"jax", "flax", "absl"} & set(sys.modules)
sys.exit(code)
"""


@pytest.fixture(autouse=True, scope="module")
def single_thread():
    """PyTorch spins while it waits: on a busy machine two threads are slower than one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return torch_forms.calibrate(RegSeg(SMALL, DECODERS["decoder26"], num_classes=5))


@pytest.fixture
def images():
    return torch.randn(1, 3, 40, 56, generator=torch.Generator().manual_seed(1))


def run_without_jax(*arguments):
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", WITHOUT_JAX, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": "", "OMP_NUM_THREADS": "1", "PYTHONPATH": ":".join(sys.path)},
    )


def test_runs_where_jax_is_missing(tmp_path):
    output = tmp_path / "new" / "times.json"
    done = run_without_jax(
        *("--size=32,64", "--num_runs=2", "--num_warmup=0", "--skip_compile", "--device=cpu"),
        *("--precisions=float32", f"--output={output}"),
    )
    assert done.returncode == 0, done.stderr
    assert "No GPU is used" in done.stdout
    assert "trtexec --onnx=regseg.onnx" in done.stdout
    content = json.loads(output.read_text())
    timed = [row for row in content["rows"] if "error" not in row]
    assert [row["form"] for row in timed] == [
        "plain",
        "channels_last",
        "fused",
        "fused + channels_last",
    ]
    assert all(row["p5_ms"] <= row["median_ms"] <= row["p95_ms"] for row in timed)
    assert all(row["differing_pixels"] == pytest.approx(0, abs=0.01) for row in timed)
    assert content["versions"]["torch"] == torch.__version__
    assert [path.name for path in output.parent.iterdir()] == ["times.json"]


def test_weights_of_a_file_are_used(tmp_path, monkeypatch, capsys):
    path = tmp_path / "weights.pt"
    torch.save(tb.create_torch_model("exp43_decoder12", 3).state_dict(), path)
    seen = []
    monkeypatch.setattr(
        tb, "benchmark_size", lambda model, *_: seen.append(model.state_dict()) or []
    )
    arguments = [f"--weights={path}", "--model=exp43_decoder12", "--size=32,64", "--device=cpu"]
    assert tb.main([*arguments, "--num_classes=3"]) == 0
    expected = torch.load(path, weights_only=True)
    assert all(torch.equal(value, expected[name]) for name, value in seen[0].items())
    assert tb.main([*arguments, "--num_classes=4"]) == 1
    assert "decoder.classifier.weight has shape [3, 128, 1, 1]" in capsys.readouterr().err
    # An exported file says what it holds.
    torch.save({"model": expected, "name": "exp43_decoder12", "num_classes": 3}, path)
    assert tb.main([f"--weights={path}", "--size=32,64", "--device=cpu"]) == 0
    assert seen[1].keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in seen[1].items())


def test_the_papers_numbers_stand_beside_its_sizes(monkeypatch, capsys):
    sizes = []
    times = {"median_ms": 10.0, "p5_ms": 9.0, "p95_ms": 11.0, "fps": 100.0, "memory_bytes": 2**20}
    rest = {"first_run_seconds": 1.0, "max_difference": 0.0, "differing_pixels": 0.0}

    def benchmark_size(model, size, *_):
        sizes.append(size)
        return [{"size": list(size), "precision": "float16", "form": "plain", **times, **rest}]

    monkeypatch.setattr(tb, "benchmark_size", benchmark_size)
    assert tb.main(["--device=cpu"]) == 0
    assert sizes == [(1024, 2048), (720, 960)]
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if "plain" in line]
    assert [row[6:8] for row in rows] == [["37", "30"], ["112", "70"]]
    assert rows[0][9] == "1"  # MiB


@pytest.mark.parametrize(
    "form", [form for form in torch_forms.INFERENCE_FORMS if not form.compiled]
)
def test_every_form_computes_the_same(model, images, form):
    if form.graph:
        with pytest.raises(ValueError, match="need a GPU"):
            torch_forms.create_inference(model, form, "float32", images)
        return
    reference = torch_forms.create_inference(model, torch_forms.Form(), "float32", images)()
    assert reference.shape == (1, 5, 40, 56)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for precision, tolerance in (
        ("float32", 1e-5),
        ("bfloat16", torch_timing.TOLERANCES["bfloat16"]),
    ):
        logits = torch_forms.create_inference(model, form, precision, images)()
        agreement = torch_timing.compare_logits(logits, reference)
        assert agreement.relative_difference <= tolerance
        if precision == "bfloat16":
            assert logits.dtype == torch.bfloat16
            assert agreement.relative_difference > 1e-4
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_float32_has_no_row_twice():
    forms = torch_forms.get_inference_forms("float32")
    assert len(set(forms)) == len(forms)
    assert not any(form.cast_weights for form in forms)
    assert torch_forms.get_inference_forms("float16") == torch_forms.INFERENCE_FORMS


def test_a_wrong_form_is_not_timed(model, monkeypatch):
    def fuse_wrongly(model):
        fused = tb_fuse(model)
        torch.nn.init.zeros_(fused.decoder.conv4.conv.bias)
        return fused

    tb_fuse = torch_forms.fuse_batch_norm
    monkeypatch.setattr(torch_forms, "fuse_batch_norm", fuse_wrongly)
    rows = torch_timing.benchmark_size(model, (32, 48), ["float32"], 0, 2, skip_compile=True)
    errors = {row["form"]: row.get("error", "") for row in rows}
    assert not errors["plain"]
    assert "differs from float32" in errors["fused"]
    assert "need a GPU" in errors["fused + graph"]
    table = tb.format_rows(rows)
    assert "not timed: float32: fused: ValueError: differs" in table


def test_agreement():
    reference = torch.tensor([[[[1.0, 0.0]], [[0.0, 1.0]]]])  # [1, 2, 1, 2]
    assert torch_timing.compare_logits(reference.half(), reference) == (0, 0, 0)
    agreement = torch_timing.compare_logits(reference[:, :, :, [0, 0]], reference)
    assert agreement.max_difference == 1
    assert agreement.differing_pixels == 0.5
    assert agreement.relative_difference == pytest.approx((0.5 / (1 / 3)) ** 0.5)


def test_measure_leaves_the_warm_up_out(monkeypatch):
    clock = iter(range(100))
    monkeypatch.setattr(torch_timing.time, "perf_counter", lambda: next(clock))
    runs = []
    seconds = torch_timing.measure(
        lambda: runs.append(1), torch.device("cpu"), num_warmup=2, num_runs=3
    )
    assert (seconds, len(runs)) == ([1, 1, 1], 5)


def test_training_step_decays_all_but_batch_norm(model, images):
    labels = torch.full((1, 40, 56), 255)
    labels[:, :20] = 1
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    step = torch_forms.create_train_step(model, torch_forms.Form(), "float32")
    losses = [step(images, labels, 0.1).item() for _ in range(3)]
    assert losses[2] < losses[0]
    assert all(not torch.equal(value, before[name]) for name, value in model.named_parameters())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--weights=missing.pt"], "missing.pt"),
        (["--model=exp1"], "unknown model 'exp1'"),
        (["--num_runs=1"], "--num_runs=1"),
        (["--output=."], ". exists already"),
    ],
)
def test_errors_are_one_line(arguments, message, capsys):
    assert tb.main(["--device=cpu", *arguments]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error


@pytest.mark.parametrize("argument", ["--size=1024", "--size=0,64", "--precisions=int8"])
def test_unreadable_arguments(argument, capsys):
    with pytest.raises(SystemExit):
        tb.main([argument])
    assert argument.partition("=")[2] in capsys.readouterr().err
