"""The curves of one run or several: a chart, and a table of the last and the best scores."""

from collections.abc import Sequence
from typing import NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from PIL import Image

from regseg_jax.reports.charts import render_figure
from regseg_jax.reports.tables import format_table

_MAX_MARKED = 100  # points of a curve that are marked, so that a lone one is seen
_LEGEND_COLUMNS = 2


class RunCurves(NamedTuple):
    """What a run logged.

    Attributes:
      name: of the run, for legends and tables.
      records: as `metric_writer.read_metrics` returns them: dicts with `step` and any of
        `train/loss`, `train/learning_rate`, `train/images_per_second`, and the mean IoU in [0, 1]
        as `SPLIT/mean_iou`, with averaged weights `SPLIT_ema/mean_iou`. None leaves a gap.
      split: the evaluation's name, such as `val`.
    """

    name: str
    records: Sequence[dict]
    split: str

    def get_series(self, key: str) -> tuple[np.ndarray, np.ndarray]:
        """The steps whose records have key, and its values as floats, NaN for None."""
        pairs = [(record["step"], record[key]) for record in self.records if key in record]
        steps = np.array([step for step, _ in pairs], np.int64)
        return steps, np.array([value for _, value in pairs], np.float64)

    def get_scores(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Steps and mean IoU in percent, by the evaluation's name, those that there are."""
        scores = {}
        for name in (self.split, f"{self.split}_ema"):
            steps, mean_iou = self.get_series(f"{name}/mean_iou")
            if np.isfinite(mean_iou).any():
                scores[name] = steps, 100 * mean_iou
        return scores


def draw_curves(runs: Sequence[RunCurves]) -> Image.Image:
    """Charts training loss, mean IoU, learning rate and images a second over the steps.

    Every run has a colour. Scores with averaged weights are dashed. The best of each is marked.

    Args:
      runs: at least one.

    Returns:
      An RGB picture, 1000 pixels wide and at least 1100 high.
    """
    legend_height = 0.25 * -(-len(runs) // _LEGEND_COLUMNS)  # inches
    figure = Figure(figsize=(10, 11 + legend_height), dpi=100, layout="constrained")
    loss_axes, iou_axes, rate_axes, throughput_axes = figure.subplots(
        4, 1, sharex=True, height_ratios=(3, 3, 1.5, 1.5)
    )
    colors = mpl.color_sequences["tab10" if len(runs) <= 10 else "tab20"]
    handles = []
    for i, run in enumerate(runs):
        color = colors[i % len(colors)]
        handles.append(Line2D([], [], color=color, label=run.name))
        _plot(loss_axes, *run.get_series("train/loss"), color=color)
        _plot(rate_axes, *run.get_series("train/learning_rate"), color=color)
        _plot(throughput_axes, *run.get_series("train/images_per_second"), color=color)
        for name, (steps, mean_iou) in run.get_scores().items():
            style = "-" if name == run.split else "--"
            _plot(iou_axes, steps, mean_iou, color=color, linestyle=style)
            best = np.nanargmax(mean_iou)
            iou_axes.plot(steps[best], mean_iou[best], "*", color=color, markersize=13)
    loss_axes.set_ylabel("training loss")
    iou_axes.set_ylabel(f"mean IoU, {', '.join(dict.fromkeys(r.split for r in runs))} (%)")
    iou_axes.set_title(_describe_best(runs), fontsize=11)
    rate_axes.set_ylabel("learning rate")
    throughput_axes.set_ylabel("images a second")
    throughput_axes.set_ylim(bottom=0)
    throughput_axes.set_xlabel("step")
    for axes in (loss_axes, iou_axes, rate_axes, throughput_axes):
        axes.grid(alpha=0.3)
        if not axes.lines:
            axes.text(0.5, 0.5, "no values yet", transform=axes.transAxes, ha="center")
    figure.legend(handles=handles, loc="outside lower center", ncols=_LEGEND_COLUMNS, fontsize=9)
    return render_figure(figure)


def _plot(axes: Axes, steps: np.ndarray, values: np.ndarray, **style: object) -> None:
    if np.isfinite(values).any():
        marker = "o" if len(steps) <= _MAX_MARKED else None
        axes.plot(steps, values, linewidth=1.5, marker=marker, markersize=3, **style)


def _describe_best(runs: Sequence[RunCurves]) -> str:
    """The best score of all, for a title."""
    found = [
        (mean_iou[i], steps[i], name, run.name)
        for run in runs
        for name, (steps, mean_iou) in run.get_scores().items()
        for i in [np.nanargmax(mean_iou)]
    ]
    if not found:
        return "no evaluation yet"
    best, step, name, run_name = max(found)
    note = "; dashed: averaged weights" if len(found) > len(runs) else ""
    return f"best: {best:.2f} at step {step} ({name} of {run_name}){note}"


def format_runs(runs: Sequence[RunCurves]) -> str:
    """A table of the last step and loss, and of the last and best mean IoU of each evaluation."""
    rows = []
    for run in runs:
        _, losses = run.get_series("train/loss")
        _, throughput = run.get_series("train/images_per_second")
        done = [
            run.name,
            max((record["step"] for record in run.records), default=0),
            f"{losses[-1]:.4f}" if len(losses) else "none",
            f"{np.nanmedian(throughput):.1f}" if np.isfinite(throughput).any() else "none",
        ]
        scores = run.get_scores()
        for name, (steps, mean_iou) in scores.items():
            best = np.nanargmax(mean_iou)
            score = (name, len(steps), f"{mean_iou[-1]:.2f}", f"{mean_iou[best]:.2f}", steps[best])
            rows.append([*done, *score])
        if not scores:
            rows.append([*done, run.split, 0, "none", "none", "none"])
    headers = ("run", "steps", "loss", "images/s", "scores", "times", "last %", "best %", "at step")
    return format_table(headers, rows)
