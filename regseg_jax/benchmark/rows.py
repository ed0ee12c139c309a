"""The rows of the benchmark: prepared, checked, timed in turns, and printed."""

import contextlib
import dataclasses
import functools
import gc
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from regseg_jax.benchmark.jax_backend import prepare_jax
from regseg_jax.benchmark.peaks import find_peak
from regseg_jax.benchmark.timing import check_difference, describe_error, summarize
from regseg_jax.benchmark.workload import TOLERANCES, Prepared, Workload, compare
from regseg_jax.reports.tables import format_table

BACKENDS = ("jax", "torch")
_HEADERS = (
    *("backend", "precision", "form", "compile s", "median ms", "5%", "95%", "images/s", "ratio"),
    *("bytes", "of peak", "difference", "pixels differ"),
)

NUM_WARMUP = 3


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
    prepare: Callable[[], Prepared]
    prepared: Prepared | None = None
    seconds: list[float] = dataclasses.field(default_factory=list)
    results: dict[str, Any] = dataclasses.field(default_factory=dict)


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
        from regseg_jax.benchmark import torch_backend

        variables = torch_backend.to_variables(torch_model, workload.model)
    rows = []
    for precision in precisions:
        if "torch" in backends:
            device = torch_backend.get_torch_device(backends)
            for form in torch_backend.get_torch_forms(workload.mode, precision, device):
                prepare = functools.partial(
                    torch_backend.prepare_torch, workload, torch_model, form, precision, device
                )
                rows.append(Row("torch", precision, str(form), prepare))
        if "jax" in backends:
            prepare = functools.partial(prepare_jax, workload, variables, precision)
            rows.append(Row("jax", precision, "plain", prepare))
    return rows


def compute_reference(
    workload: Workload, backends: Sequence[str], torch_model: Any = None
) -> np.ndarray:
    """What `Prepared.output` is in exact float32: PyTorch's if it takes part, else JAX's."""
    if "torch" not in backends:
        with jax.default_matmul_precision("highest"):
            return create_rows(workload, ["jax"], ["float32"])[0].prepare().output
    from regseg_jax.benchmark import torch_backend

    return torch_backend.compute_reference(workload, torch_model, backends)


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
    turns = range(NUM_WARMUP + num_runs)
    for turn in tqdm(turns, desc="timing", leave=False, disable=None):
        for row in rows:
            with _report_failure(row):
                if row.prepared:
                    start = time.perf_counter()
                    row.prepared.run()
                    if turn >= NUM_WARMUP:
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
    return "\n".join([format_table(_HEADERS, table), *reasons])


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
