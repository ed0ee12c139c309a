"""The rows of the benchmark: prepared, checked, timed in turns, and printed."""

import dataclasses
import functools
import gc
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from regseg_jax.benchmark.core import Timing, time_in_turns
from regseg_jax.benchmark.devices import find_peak
from regseg_jax.benchmark.jax_backend import prepare_jax
from regseg_jax.benchmark.workload import TOLERANCES, Prepared, Workload, compare
from regseg_jax.reports.tables import format_table
from regseg_jax.runtime.timing import check_difference, describe_error

BACKENDS = ("jax", "torch")
# Header, key of the results and format of each column after backend, precision and variant.
_COLUMNS = (
    ("compile s", "compile_seconds", ".1f"),
    ("median ms", "median_ms", ".2f"),
    ("5%", "p5_ms", ".2f"),
    ("95%", "p95_ms", ".2f"),
    ("images/s", "images_per_second", ".1f"),
    ("ratio", "ratio_to_torch", ".2f"),
    ("bytes", "memory_bytes", ",.0f"),
    ("of peak", "share_of_peak", ".1%"),
    ("difference", "relative_difference", ".1e"),
    ("pixels differ", "differing_pixels", ".3%"),
)


@dataclasses.dataclass
class Row:
    """One way to compute the workload, and what was measured of it.

    Attributes:
      backend: one of `BACKENDS`.
      precision: a key of `PRECISIONS`.
      form: the runtime variant: `plain`, or what speeds PyTorch up.
      prepare: compiles it and computes once; gives a `Prepared`.
      results: plain data; `error`, the reason, where the row could not be timed.
    """

    backend: str
    precision: str
    form: str
    prepare: Callable[[], Prepared]
    results: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def name(self) -> str:
        """Unique in a table."""
        return f"{self.backend}, {self.precision}, {self.form}"


def create_rows(
    workload: Workload, backends: Sequence[str], precisions: Sequence[str], torch_model: Any = None
) -> list[Row]:
    """The rows of a table, nothing computed yet.

    Args:
      workload: what to compute.
      backends: of `BACKENDS`.
      precisions: keys of `PRECISIONS`.
      torch_model: a PyTorch model of workload.model's variant, whose weights both backends take;
        None if there is no `torch` among the backends. JAX then draws weights of its own.
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
    runs = {}
    for i, row in enumerate(rows):
        try:
            runs[i] = _prepare_row(row, workload, reference)
        except Exception as error:  # out of memory, say: one row must not cost the others
            row.results = {"error": describe_error(error)}
        gc.collect()
    timings = time_in_turns(runs, num_runs)
    baselines = {
        rows[i].precision: statistics.median(timing.seconds)
        for i, timing in timings.items()
        if (rows[i].backend, rows[i].form) == ("torch", "plain") and not timing.error
    }
    for i, timing in timings.items():
        _add_timing(rows[i], timing, workload, baselines.get(rows[i].precision))


def _prepare_row(row: Row, workload: Workload, reference: np.ndarray) -> Callable[[], Any]:
    prepared = row.prepare()
    row.results |= compare(prepared.output, reference, workload.mode)
    check_difference(row.results["relative_difference"], TOLERANCES[workload.mode][row.precision])
    row.results["compile_seconds"] = prepared.compile_seconds
    row.results["memory_bytes"] = prepared.memory_bytes
    return prepared.run


def _add_timing(row: Row, timing: Timing, workload: Workload, baseline: float | None) -> None:
    row.results |= timing.summarize()
    if timing.error:
        row.results = {"error": timing.error}
        return
    median = statistics.median(timing.seconds)
    peak = find_peak(jax.devices()[0].device_kind, row.precision)
    teraflops = workload.flops / median / 1e12
    row.results |= {
        "images_per_second": workload.images.shape[0] / median,
        "ratio_to_torch": None if baseline is None else median / baseline,
        "teraflops": teraflops,
        "share_of_peak": None if peak is None else teraflops / peak,
        "runs_ms": [round(1e3 * seconds, 4) for seconds in timing.seconds],
    }


def format_rows(rows: Sequence[Row]) -> str:
    """The table; the reasons of the rows that failed are below it."""
    headers = ("backend", "precision", "runtime variant", *(header for header, _, _ in _COLUMNS))
    table = []
    for row in rows:
        values = ((row.results.get(key), spec) for _, key, spec in _COLUMNS)
        cells = ("" if value is None else format(value, spec) for value, spec in values)
        table.append((row.backend, row.precision, row.form, *cells))
    reasons = [
        f"not timed: {row.name}: {row.results['error']}" for row in rows if "error" in row.results
    ]
    return "\n".join([format_table(headers, table), *reasons])


def to_json(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Plain data of the rows, the time of every run among them."""
    return [
        {"backend": row.backend, "precision": row.precision, "form": row.form, **row.results}
        for row in rows
    ]
