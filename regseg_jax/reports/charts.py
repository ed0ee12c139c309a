"""Charts of a run: its curves and the IoU of each class."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from regseg_jax.data.classes import ClassTable


def draw_curves(records: Sequence[dict], split: str) -> Image.Image:
    """Charts training loss, learning rate and the mean IoU of a split over the steps.

    Args:
      records: dicts with `step` and any of `train/loss`, `train/learning_rate` and
        `SPLIT/mean_iou` (in [0, 1]), in the order of steps, as `metric_writer.read_metrics`
        returns them. A value of None leaves a gap. The best mean IoU is marked.
      split: the evaluation's name, such as `val`.

    Returns:
      An RGB picture of 1000 x 900 pixels.
    """
    figure = Figure(figsize=(10, 9), dpi=100, layout="constrained")
    axes = figure.subplots(3, 1, sharex=True, height_ratios=(3, 1.5, 3))
    loss_axes, learning_rate_axes, iou_axes = axes
    _plot_series(loss_axes, *_series(records, "train/loss"), color="tab:blue")
    _plot_series(learning_rate_axes, *_series(records, "train/learning_rate"), color="tab:orange")
    steps, mean_iou = _series(records, f"{split}/mean_iou")
    _plot_series(iou_axes, steps, 100 * mean_iou, color="tab:green")
    if np.isfinite(mean_iou).any():
        best = np.nanargmax(mean_iou)
        iou_axes.axhline(100 * mean_iou[best], color="tab:green", linestyle=":", linewidth=1)
        iou_axes.set_title(f"best {100 * mean_iou[best]:.2f} at step {steps[best]}", fontsize=11)
    loss_axes.set_ylabel("training loss")
    learning_rate_axes.set_ylabel("learning rate")
    iou_axes.set_ylabel(f"mean IoU, {split} (%)")
    iou_axes.set_xlabel("step")
    return render_figure(figure)


def draw_class_iou(iou_per_class: np.ndarray, class_table: ClassTable) -> Image.Image:
    """Charts the IoU of each class, best first, in the classes' colours.

    Args:
      iou_per_class: floats [num_classes] in [0, 1]; NaN for a class that is absent.
      class_table: the classes.

    Returns:
      An RGB picture, 800 pixels wide.

    Raises:
      ValueError: if there is not one value per class.
    """
    iou = np.asarray(iou_per_class, np.float64)
    if iou.shape != (class_table.num_classes,):
        raise ValueError(
            f"iou_per_class has shape {iou.shape}: {class_table.name!r} wants one value for each "
            f"of its {class_table.num_classes} classes"
        )
    present = np.isfinite(iou)
    order = np.argsort(np.where(present, -iou, np.inf), kind="stable")
    figure = Figure(figsize=(8, 1.2 + 0.32 * len(order)), dpi=100, layout="constrained")
    axes = figure.subplots()
    bars = axes.barh(
        [class_table.class_names[i] for i in order],
        np.where(present, 100 * iou, 0)[order],
        color=[tuple(channel / 255 for channel in class_table.colors[i]) for i in order],
        edgecolor="black",
        linewidth=0.5,
    )
    axes.bar_label(
        bars, [f"{100 * iou[i]:.1f}" if present[i] else "absent" for i in order], padding=4
    )
    axes.invert_yaxis()
    axes.set_xlim(0, 108)  # room for the label of a full bar
    axes.set_xticks(range(0, 101, 20))
    axes.set_xlabel("IoU (%)")
    if present.any():
        mean_iou = 100 * iou[present].mean()
        axes.axvline(mean_iou, color="black", linestyle=":", linewidth=1)
        axes.set_title(f"mean IoU {mean_iou:.2f} over {present.sum()} classes")
    return render_figure(figure)


def _series(records: Sequence[dict], key: str) -> tuple[np.ndarray, np.ndarray]:
    """The steps that have `key`, and its values as floats, NaN for None."""
    pairs = [(record["step"], record[key]) for record in records if key in record]
    steps = np.array([step for step, _ in pairs], np.int64)
    return steps, np.array([value for _, value in pairs], np.float64)


def _plot_series(axes: Axes, steps: np.ndarray, values: np.ndarray, color: str) -> None:
    axes.grid(alpha=0.3)
    if np.isfinite(values).any():
        marker = "o" if len(steps) <= 100 else None  # so that a lone value is seen
        axes.plot(steps, values, color=color, linewidth=1.5, marker=marker, markersize=4)
    else:
        axes.text(0.5, 0.5, "no values yet", transform=axes.transAxes, ha="center", va="center")


def render_figure(figure: Figure) -> Image.Image:
    """An RGB picture of a chart."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
