"""Charts: the IoU of each class, a model's field of view; curves.py has those of runs."""

from collections.abc import Sequence

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from regseg_jax.data.classes import ClassTable
from regseg_jax.models import field_of_view
from regseg_jax.models.field_of_view import LayerFieldOfView


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


def draw_field_of_view(
    name: str, layers: Sequence[LayerFieldOfView], size: tuple[int, int]
) -> Image.Image:
    """Charts how the field of view grows with depth, under the largest that the bound allows.

    Args:
      name: of the model, for the title.
      layers: as `field_of_view.trace_field_of_view` returns them.
      size: the image's height and width, drawn as lines to compare with.

    Returns:
      An RGB picture.
    """
    positions = np.arange(len(layers))
    seen = np.array([layer.field_of_view_after for layer in layers])
    allowed = [
        field_of_view.widen(
            layer.field_of_view_before, layer.stride_before, layer.max_dilation_rate
        )
        for layer in layers
    ]
    figure = Figure(figsize=(12, 6.5), dpi=100, layout="constrained")
    axes = figure.subplots()
    axes.set_yscale("log", base=2)
    axes.yaxis.set_major_formatter("{x:.0f}")
    axes.grid(alpha=0.3)
    axes.plot(positions, allowed, "--", color="tab:gray", label="with the largest rate, no gaps")
    axes.plot(positions, seen, "o-", color="tab:blue", label="field of view")
    gaps = [i for i, layer in enumerate(layers) if layer.rates_with_gaps]
    if gaps:
        axes.plot(gaps, seen[gaps], "o", color="tab:red", label="with gaps", zorder=3)
    for side, length, color in zip(
        ("height", "width"), size, ("tab:green", "tab:orange"), strict=True
    ):
        axes.axhline(length, linestyle=":", color=color, label=f"image {side}, {length}")
    for i, layer in enumerate(layers):
        rates = ",".join(map(str, layer.dilation_rates))
        axes.annotate(
            rates,
            (i, seen[i]),
            (0, -9),
            textcoords="offset points",
            ha="center",
            va="top",
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.5},
        )
    labels = [f"{layer.name} (1/{layer.stride_before})" for layer in layers]
    axes.set_ylim(bottom=1)  # after plotting: before, it would fix the top too
    axes.set_xticks(positions, labels, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_xlabel("3x3 convolution (stride of its input)")
    axes.set_ylabel("pixels")
    axes.set_title(f"{name}: field of view {seen[-1]}; dilation rates below the points")
    axes.legend(loc="upper left")
    return render_figure(figure)


def render_figure(figure: Figure) -> Image.Image:
    """An RGB picture of a chart."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
