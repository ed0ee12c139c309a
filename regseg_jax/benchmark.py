"""Times inference or the training step in JAX beside PyTorch, in turns within one run.

python -m regseg_jax.benchmark --backends=jax,torch --mode=inference --size=512,1024

Both start from the same weights, and what each computes is compared with float32 before it is
timed. PyTorch is needed for `torch` among the backends only.
"""

import contextlib
import copy
import dataclasses
import functools
import gc
import importlib.metadata
import importlib.util
import os
import platform
import re
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from flax.training.dynamic_scale import DynamicScale

from regseg_jax.command import run_command
from regseg_jax.config import PRECISIONS
from regseg_jax.describe import count_rows, parse_size
from regseg_jax.losses import cross_entropy
from regseg_jax.models import RegSeg, create_model
from regseg_jax.optim import create_optimizer
from regseg_jax.steps import create_train_step
from regseg_jax.tables import format_table
from regseg_jax.timing import (
    check_difference,
    check_new,
    describe_error,
    describe_run,
    read_cpu_name,
    summarize,
    write_json,
)
from regseg_jax.train_state import create_train_state

BACKENDS = ("jax", "torch")
MODES = ("inference", "train")
HEADERS = (
    *("backend", "precision", "form", "compile s", "median ms", "5%", "95%", "images/s", "ratio"),
    *("bytes", "of peak", "difference", "pixels differ"),
)

# TFLOP/s of the matrix units on dense matrices, from the makers' data sheets: NVIDIA's for the
# T4, L4, A100 (SXM and PCIe alike), H100 (PCIe and SXM) and H200; Google Cloud's pages for TPUs.
# From the A100 on, float32 is TF32, which both frameworks use for convolutions by default.
# Patterns of the device's name, the first that is found.
_PEAKS = (
    (r"\bT4\b", {"float32": 8.1, "float16": 65}),
    (r"\bL4\b", {"float32": 60, "bfloat16": 121, "float16": 121}),
    (r"\bA100\b", {"float32": 156, "bfloat16": 312, "float16": 312}),
    (r"\bH100 PCIe\b", {"float32": 378, "bfloat16": 756, "float16": 756}),
    (r"\bH[12]00\b", {"float32": 495, "bfloat16": 989, "float16": 989}),
    (r"\bTPU v4\b", {"bfloat16": 275}),
    (r"\bTPU v5 lite\b", {"bfloat16": 197}),
    (r"\bTPU v5p?\b", {"bfloat16": 459}),
    (r"\bTPU v6 lite\b", {"bfloat16": 918}),
)

# Largest difference to float32, see `compare`. Rounding gives a small part of these.
TOLERANCES = {
    "inference": {"float32": 0.02, "bfloat16": 0.3, "float16": 0.1},
    "train": {"float32": 0.002, "bfloat16": 0.05, "float16": 0.05},
}
_NUM_LOSSES = 3
_LEARNING_RATE = 0.05
# A start at which no step overflows, for a skipped one has nothing to compare.
_LOSS_SCALE = 2.0**10
_NUM_WARMUP = 3


@dataclasses.dataclass(frozen=True)
class Workload:
    """What every row computes.

    Attributes:
      mode: one of `MODES`.
      model: its dtype is replaced by each row's precision.
      images: f32[B, H, W, 3], noise.
      labels: i32[B, H, W], noise; some are 255, ignored.
    """

    mode: str
    model: RegSeg
    images: np.ndarray
    labels: np.ndarray

    @property
    def flops(self) -> int:
        """Floating-point operations of the convolutions; a backward pass counts as two forward."""
        batch_size, height, width, _ = self.images.shape
        macs = batch_size * sum(row.macs for row in count_rows(self.model, (height, width)))
        return 2 * macs * (3 if self.mode == "train" else 1)


def create_workload(mode: str, model: RegSeg, size: tuple[int, int], batch_size: int) -> Workload:
    """Draws images and labels, the same at each call."""
    rng = np.random.default_rng(0)
    images = rng.standard_normal((batch_size, *size, 3), np.float32)
    labels = rng.integers(0, model.num_classes, (batch_size, *size), np.int32)
    labels[rng.random(labels.shape) < 0.05] = 255
    return Workload(mode, model, images, labels)


@dataclasses.dataclass
class Row:
    """One way to compute the workload, and what was measured of it.

    Attributes:
      backend: one of `BACKENDS`.
      precision: a key of `PRECISIONS`.
      form: `plain`, or what speeds PyTorch up.
      prepare: compiles it and computes once; gives a `Prepared`.
      prepared: None before and after the measurement, and where it failed.
      seconds: of each timed run.
      results: what is reported; `error`, the reason, where the row could not be timed.
    """

    backend: str
    precision: str
    form: str
    prepare: Callable[[], "Prepared"]
    prepared: "Prepared | None" = None
    seconds: list[float] = dataclasses.field(default_factory=list)
    results: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A row that is ready to be timed.

    Attributes:
      run: computes the workload once and waits for the result: logits or the loss.
      output: float32 logits [B, H, W, num_classes] of the first run, or the losses of the first
        three training steps, which depend on two updates.
      compile_seconds: JAX's compilation; PyTorch's first run.
      memory_bytes: the peak; None where it is not known.
    """

    run: Callable[[], Any]
    output: np.ndarray
    compile_seconds: float
    memory_bytes: int | None


# --- JAX ---


def prepare_jax(workload: Workload, variables: Any, precision: str) -> Prepared:
    """Compiles inference or the training step for JAX's default device."""
    workload = dataclasses.replace(
        workload, model=workload.model.clone(dtype=PRECISIONS[precision])
    )
    prepare = {"inference": _prepare_jax_inference, "train": _prepare_jax_train}
    return prepare[workload.mode](workload, variables)


def _prepare_jax_inference(workload: Workload, variables: Any) -> Prepared:
    variables, images = jax.device_put((variables, workload.images))
    start = time.perf_counter()
    infer = jax.jit(lambda variables, x: workload.model.apply(variables, x, train=False))
    infer = infer.lower(variables, images).compile()
    compile_seconds = time.perf_counter() - start
    return Prepared(
        run=lambda: jax.block_until_ready(infer(variables, images)),
        output=np.asarray(infer(variables, images)),
        compile_seconds=compile_seconds,
        memory_bytes=_count_bytes(infer),
    )


def _prepare_jax_train(workload: Workload, variables: Any) -> Prepared:
    model, tx = workload.model, create_optimizer(weight_decay=1e-4)
    state = create_train_state(model, tx, jax.random.key(0))
    # Copies, for the step is given its state's memory.
    state = state.replace(**jax.tree.map(jnp.array, variables))
    if state.dynamic_scale:
        state = state.replace(dynamic_scale=DynamicScale(scale=jnp.float32(_LOSS_SCALE)))
    batch = jax.device_put({"image": workload.images, "label": workload.labels})
    train_step = create_train_step(
        model,
        tx,
        learning_rate_fn=lambda step: jnp.float32(_LEARNING_RATE),
        loss_fn=cross_entropy,
        augment_fn=lambda images, labels, rng: (images, labels),
        rng=jax.random.key(0),
    )
    start = time.perf_counter()
    train_step = jax.jit(train_step, donate_argnums=0).lower(state, batch).compile()
    compile_seconds = time.perf_counter() - start

    def run() -> jax.Array:
        nonlocal state
        state, metrics = train_step(state, batch)
        return jax.block_until_ready((state, metrics))[1]["loss"]

    output = np.array([run() for _ in range(_NUM_LOSSES)])
    return Prepared(run, output, compile_seconds, _count_bytes(train_step))


def _count_bytes(compiled: jax.stages.Compiled) -> int | None:
    """What the program holds at most, by the compiler's plan: its inputs and outputs included."""
    plan = compiled.memory_analysis()
    if plan is None:
        return None
    inputs_and_outputs = plan.argument_size_in_bytes + plan.output_size_in_bytes
    return inputs_and_outputs + plan.temp_size_in_bytes - plan.alias_size_in_bytes


# --- PyTorch: imported within the functions, for the rest works without it ---


def prepare_torch(
    workload: Workload, torch_model: Any, form: Any, precision: str, device: str
) -> Prepared:
    """Builds inference or the training step on a device, `cpu` or `cuda`.

    Args:
      workload: what to compute.
      torch_model: the PyTorch model of the same weights, on the CPU; it stays as it is.
      form: a `torch_benchmark.Form`.
      precision: a key of `PRECISIONS`.
      device: PyTorch's name of it.
    """
    from regseg_jax.export import torch_benchmark as tb

    nchw = np.ascontiguousarray(workload.images.transpose(0, 3, 1, 2))
    images = tb.to_device(nchw, device)
    model = copy.deepcopy(torch_model).to(device)
    memory, start = tb.PeakMemory(images.device), time.perf_counter()
    if workload.mode == "inference":
        step = tb.create_inference(model, form, precision, images)
    else:
        labels = tb.to_device(workload.labels.astype(np.int64), device)
        step = tb.create_train_step(model, form, precision, images, labels, _LEARNING_RATE)

    def run() -> Any:
        result = step()
        tb.synchronize(images.device)
        return result

    result = run()
    compile_seconds, memory_bytes = time.perf_counter() - start, memory.read()
    if workload.mode == "inference":
        output = result.float().cpu().numpy().transpose(0, 2, 3, 1)
    else:
        output = np.array([result.item(), *(run().item() for _ in range(_NUM_LOSSES - 1))])
    return Prepared(run, output, compile_seconds, memory_bytes)


# --- The benchmark ---


def create_rows(
    workload: Workload, backends: Sequence[str], precisions: Sequence[str], torch_model: Any = None
) -> list[Row]:
    """The rows of a table, nothing computed yet.

    Args:
      workload: what to compute.
      backends: of `BACKENDS`.
      precisions: keys of `PRECISIONS`.
      torch_model: a PyTorch model of workload.model's variant, whose weights both backends take;
        None where there is no `torch` among the backends. JAX then draws weights of its own.
    """
    if torch_model is None:
        init = jax.jit(functools.partial(workload.model.init, train=False))
        variables = init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    else:
        variables = _to_variables(torch_model, workload.model)
    rows = []
    for precision in precisions:
        if "torch" in backends:
            device = get_torch_device(backends)
            for form in _get_torch_forms(workload.mode, precision, device):
                prepare = functools.partial(
                    prepare_torch, workload, torch_model, form, precision, device
                )
                rows.append(Row("torch", precision, str(form), prepare))
        if "jax" in backends:
            prepare = functools.partial(prepare_jax, workload, variables, precision)
            rows.append(Row("jax", precision, "plain", prepare))
    return rows


def _to_variables(torch_model: Any, model: RegSeg) -> Any:
    from regseg_jax.export.torch_weights import from_torch

    state_dict = {name: value.cpu().numpy() for name, value in torch_model.state_dict().items()}
    return from_torch(state_dict, model)


def get_torch_device(backends: Sequence[str]) -> str:
    """PyTorch's device: of the kind that JAX uses, or the GPU if PyTorch runs alone and has one."""
    from regseg_jax.export import torch_benchmark as tb

    if "jax" in backends:
        return "cuda" if jax.default_backend() == "gpu" else "cpu"
    return "cuda" if tb.has_gpu() else "cpu"


def _get_torch_forms(mode: str, precision: str, device: str) -> Sequence[Any]:
    from regseg_jax.export import torch_benchmark as tb

    forms = tb.TRAINING_FORMS if mode == "train" else tb.get_inference_forms(precision)
    return forms if device == "cuda" else forms[:1]  # the others are for GPUs


def compute_reference(
    workload: Workload, backends: Sequence[str], torch_model: Any = None
) -> np.ndarray:
    """What `Prepared.output` is in exact float32: PyTorch's if it takes part, else JAX's."""
    if "torch" not in backends:
        with jax.default_matmul_precision("highest"):
            return create_rows(workload, ["jax"], ["float32"])[0].prepare().output
    from regseg_jax.export import torch_benchmark as tb

    with tb.exact_float32():
        device = get_torch_device(backends)
        return prepare_torch(workload, torch_model, tb.Form(), "float32", device).output


def measure_rows(rows: Sequence[Row], workload: Workload, reference: np.ndarray, num_runs: int):
    """Prepares and checks every row, then times them in turns, and fills in their results.

    Args:
      rows: of `create_rows`. One that fails gets an `error` among its results, and is left out.
      workload: what they compute.
      reference: of `compute_reference`.
      num_runs: timed runs of each row, at least 2.
    """
    for row in rows:
        with _report_failure(row):
            prepared = row.prepare()
            row.results |= compare(prepared.output, reference, workload.mode)
            check_difference(
                row.results["relative_difference"], TOLERANCES[workload.mode][row.precision]
            )
            row.prepared = dataclasses.replace(prepared, output=np.zeros(0))  # frees memory
        gc.collect()
    for turn in range(_NUM_WARMUP + num_runs):
        for row in rows:
            with _report_failure(row):
                if row.prepared:
                    start = time.perf_counter()
                    row.prepared.run()
                    if turn >= _NUM_WARMUP:
                        row.seconds.append(time.perf_counter() - start)
    baselines = {
        row.precision: statistics.median(row.seconds)
        for row in rows
        if row.backend == "torch" and row.form == "plain" and row.prepared
    }
    for row in rows:
        if row.prepared:
            row.results |= _summarize(row, workload, baselines.get(row.precision))
            row.prepared = None


@contextlib.contextmanager
def _report_failure(row: Row):
    try:
        yield
    except Exception as error:  # out of memory, say: one row must not cost the others
        row.results, row.prepared = {"error": describe_error(error)}, None


def compare(output: np.ndarray, reference: np.ndarray, mode: str) -> dict[str, float]:
    """How an output differs from the float32 one.

    Returns:
      `max_difference`; `relative_difference`, the root mean square in units of the logits'
      standard deviation or of the losses' mean; for inference `differing_pixels`, the share of
      pixels whose class is another.
    """
    difference = output - reference
    scale = reference.std() if mode == "inference" else reference.mean()
    agreement = {
        "max_difference": float(np.abs(difference).max()),
        "relative_difference": float(np.sqrt(np.square(difference).mean()) / scale),
    }
    if mode == "inference":
        agreement["differing_pixels"] = float((output.argmax(-1) != reference.argmax(-1)).mean())
    return agreement


def _summarize(row: Row, workload: Workload, baseline: float | None) -> dict[str, Any]:
    median = statistics.median(row.seconds)
    peak = find_peak(jax.devices()[0].device_kind, row.precision)
    return {
        "compile_seconds": row.prepared.compile_seconds,
        **summarize(row.seconds),
        "images_per_second": workload.images.shape[0] / median,
        "ratio_to_torch": None if baseline is None else median / baseline,
        "memory_bytes": row.prepared.memory_bytes,
        "teraflops": workload.flops / median / 1e12,
        "share_of_peak": None if peak is None else workload.flops / median / 1e12 / peak,
    }


def find_peak(device_kind: str, precision: str) -> float | None:
    """The TFLOP/s that a device can do at most; None where the data sheets here do not tell."""
    for pattern, peaks in _PEAKS:
        if re.search(pattern, device_kind):
            return peaks.get(precision)
    return None


def format_rows(rows: Sequence[Row]) -> str:
    """The table; the reasons of the rows that failed are below it."""
    table, reasons = [], []
    for row in rows:
        results = row.results
        cells = [row.backend, row.precision, row.form]
        if "error" in results:
            reasons.append(f"not timed: {', '.join(cells)}: {results['error']}")
        cells += [
            _format(results.get(key), form)
            for key, form in (
                ("compile_seconds", "{:.1f}"),
                ("median_ms", "{:.2f}"),
                ("p5_ms", "{:.2f}"),
                ("p95_ms", "{:.2f}"),
                ("images_per_second", "{:.1f}"),
                ("ratio_to_torch", "{:.2f}"),
                ("memory_bytes", "{:,.0f}"),
                ("share_of_peak", "{:.1%}"),
                ("relative_difference", "{:.1e}"),
                ("differing_pixels", "{:.3%}"),
            )
        ]
        table.append(cells)
    return "\n".join([format_table(HEADERS, table), *reasons])


def _format(value: float | None, form: str) -> str:
    return "" if value is None else form.format(value)


def to_json(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Plain data of the rows, the time of every run among them."""
    return [
        {
            **{"backend": row.backend, "precision": row.precision, "form": row.form},
            **row.results,
            "runs_ms": [round(1e3 * seconds, 4) for seconds in row.seconds],
        }
        for row in rows
    ]


def describe_environment(backends: Sequence[str]) -> dict[str, Any]:
    """The command, the time, the hardware, and the versions."""
    packages = ["jax", "jaxlib", "flax", "numpy", *(["torch"] if "torch" in backends else [])]
    return {
        **describe_run(),
        "hardware": {
            "jax_device": jax.devices()[0].device_kind,
            "torch_device": get_torch_device(backends) if "torch" in backends else None,
            "cpu": read_cpu_name(),
            "cpu_count": os.cpu_count(),
        },
        "versions": {
            "python": platform.python_version(),
            **{package: importlib.metadata.version(package) for package in packages},
        },
    }


def benchmark(
    workload: Workload,
    backends: Sequence[str],
    precisions: Sequence[str],
    num_runs: int,
    torch_model: Any = None,
) -> dict[str, Any]:
    """Measures and prints the table; see `create_rows` for the arguments.

    Returns:
      All of it as plain data.
    """
    environment = describe_environment(backends)
    reference = compute_reference(workload, backends, torch_model)
    rows = create_rows(workload, backends, precisions, torch_model)
    measure_rows(rows, workload, reference, num_runs)
    print(format_rows(rows))
    return {
        **environment,
        "mode": workload.mode,
        "model": workload.model.variant.name,
        "num_classes": workload.model.num_classes,
        "images": workload.images.shape,
        "num_warmup": _NUM_WARMUP,
        "num_runs": num_runs,
        "teraflop": workload.flops / 1e12,
        "rows": to_json(rows),
    }


def _choose(name: str, text: str, known: Sequence[str]) -> list[str]:
    values = text.split(",")
    if unknown := [value for value in values if value not in known]:
        raise ValueError(f"--{name} has {unknown}; known are {', '.join(known)}")
    return values


def main(argv: Sequence[str]) -> None:
    """Runs the benchmark that the flags name.

    Raises:
      ValueError: for a bad flag, or if PyTorch is asked for and not installed.
    """
    values = flags.FLAGS
    if argv:
        raise ValueError(f"unexpected arguments {argv}; flags start with --")
    backends = _choose("backends", values.backends, BACKENDS)
    (mode,) = _choose("mode", values.mode, MODES)
    precisions = _choose("precisions", values.precisions, tuple(PRECISIONS))
    if values.batch_size < 1 or values.num_runs < 2:
        raise ValueError(
            f"--batch_size={values.batch_size} --num_runs={values.num_runs}: at least 1 and 2"
        )
    check_new(values.output)
    if "torch" in backends and importlib.util.find_spec("torch") is None:
        raise ValueError("PyTorch is not installed: pip install torch, or --backends=jax")

    # PyTorch needs some of the GPU's memory too, and a cached program would compile in no time.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    jax.config.update("jax_enable_compilation_cache", False)
    model = create_model(values.model, values.num_classes)
    workload = create_workload(mode, model, parse_size(values.size), values.batch_size)
    torch_model = None
    if "torch" in backends:
        from regseg_jax.export import torch_benchmark as tb

        tb.tune_convolutions()
        torch_model = tb.create_random_model(values.model, values.num_classes)
    result = benchmark(workload, backends, precisions, values.num_runs, torch_model)
    if values.output:
        write_json(values.output, result)
        print(f"wrote {values.output}")


if __name__ == "__main__":
    # Not on import, as other commands have flags of the same names.
    flags.DEFINE_string("backends", "jax,torch", "jax, torch, or both with a comma between.")
    flags.DEFINE_string("mode", "inference", "inference, or train for a whole training step.")
    flags.DEFINE_string(
        "model", "exp48_decoder26", "BACKBONE_DECODER, an alias, or a variant file."
    )
    flags.DEFINE_integer("num_classes", 19, "Classes of the model's output.")
    flags.DEFINE_string("size", "512,1024", "HEIGHT,WIDTH of the images.")
    flags.DEFINE_integer("batch_size", 1, "Images at once.")
    flags.DEFINE_string("precisions", "float32", "float32, bfloat16, float16; with commas between.")
    flags.DEFINE_integer("num_runs", 20, "Timed runs of each row.")
    flags.DEFINE_string("output", None, "JSON file to write; else none.")
    run_command(main, "regseg_jax.benchmark")
