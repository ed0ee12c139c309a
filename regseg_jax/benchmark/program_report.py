"""Tables and a picture of what a program does that was compiled and not run."""

from typing import Any

from matplotlib.figure import Figure
from PIL import Image

from regseg_jax.benchmark.communication import describe_communication, format_communication
from regseg_jax.benchmark.hlo import Cost, Program
from regseg_jax.benchmark.targets import Target
from regseg_jax.reports.charts import render_figure
from regseg_jax.reports.tables import format_table

NOTE = "by the compiler's plan, or counted in the compiled program; nothing was measured"
_HEADERS = ("part", "kernels", "GB", "GFLOP", "ms by bandwidth", "ms by peak", "bound")


def describe_cost(cost: Cost, target: Target, precision: str) -> dict[str, Any]:
    """A part's counts with the least time that they take on the target, as plain data.

    Returns:
      kernels, bytes, flops; bandwidth_ms and peak_ms (None if the peak is not known), and
      which `bound` holds; on TPUs cycles and cycles_ms.
    """
    peak = target.get_peak(precision)
    bandwidth_ms = 1e3 * cost.bytes / target.bandwidth
    peak_ms = None if peak is None else 1e3 * cost.flops / peak
    described = {
        **{"kernels": cost.kernels, "bytes": cost.bytes, "flops": cost.flops},
        **{"bandwidth_ms": bandwidth_ms, "peak_ms": peak_ms},
        "bound": "bandwidth" if bandwidth_ms >= (peak_ms or 0) else "peak",
    }
    if target.platform == "tpu":
        described["cycles"] = cost.cycles
        described["cycles_ms"] = cost.cycles / (1e6 * target.accelerator.clock_ghz)
    return described


def describe_program(program: Program, target: Target, precision: str) -> dict[str, Any]:
    """The counts of a device as plain data: `parts`, their `total`, collectives."""
    return {
        "parts": {
            name: describe_cost(cost, target, precision) for name, cost in program.parts.items()
        },
        "total": describe_cost(program.total, target, precision),
        **describe_communication(program, target),
    }


def format_program(described: dict[str, Any]) -> str:
    """The table of the parts, and below it the collectives."""
    rows = {**described["parts"], "all": described["total"]}
    headers, on_tpu = _HEADERS, "cycles" in described["total"]
    if on_tpu:
        headers += ("M cycles", "ms by cycles")
    table = []
    for name, row in rows.items():
        peak_ms = "" if row["peak_ms"] is None else f"{row['peak_ms']:.2f}"
        cells = [name, row["kernels"], f"{row['bytes'] / 1e9:.2f}", f"{row['flops'] / 1e9:.0f}"]
        cells += [f"{row['bandwidth_ms']:.2f}", peak_ms, row["bound"]]
        if on_tpu:
            cells += [f"{row['cycles'] / 1e6:.2f}", f"{row['cycles_ms']:.2f}"]
        table.append(cells)
    return f"{format_table(headers, table)}\n{format_communication(described)}"


def format_memory(memory: dict[str, int], limit: int) -> str:
    """One line: what a device holds, and whether it fits."""
    parts = ", ".join(f"{name} {size / 1e9:.2f}" for name, size in memory.items())
    verdict = "fits" if memory["total"] <= limit else "DOES NOT FIT"
    return f"GB on a device: {parts}; {verdict} into {limit / 1e9:.1f}"


def draw_program(described: dict[str, Any], title: str) -> Image.Image:
    """Bars of each part: the least times, and the number of kernels."""
    parts = described["parts"]
    series = {"bandwidth_ms": "by bandwidth", "peak_ms": "by peak", "cycles_ms": "by cycles"}
    series = {key: name for key, name in series.items() if described["total"].get(key) is not None}
    figure = Figure(figsize=(11, 1.6 + 0.45 * len(parts)), dpi=100, layout="constrained")
    figure.suptitle(f"{title}\n{NOTE}", fontsize=10)
    times, kernels = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    height = 0.8 / len(series)
    for i, (key, name) in enumerate(series.items()):
        positions = [y + (i - (len(series) - 1) / 2) * height for y in range(len(parts))]
        bars = times.barh(positions, [row[key] for row in parts.values()], height, label=name)
        times.bar_label(bars, fmt="%.2f", padding=3, fontsize=7)
    bars = kernels.barh(range(len(parts)), [row["kernels"] for row in parts.values()], color="gray")
    kernels.bar_label(bars, padding=3, fontsize=8)
    times.set_yticks(range(len(parts)), list(parts))
    times.invert_yaxis()
    times.set_xlabel("least time, ms")
    kernels.set_xlabel("kernels")
    for axes in (times, kernels):
        axes.margins(x=0.12)
        axes.grid(axis="x", alpha=0.3)
    figure.legend(loc="outside lower left", ncols=len(series), fontsize=8)
    return render_figure(figure)
