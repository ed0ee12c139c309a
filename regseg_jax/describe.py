"""Describes a model without running it: parameters, operations and field of view of each block.

python -m regseg_jax.describe --model=exp48_decoder26 --size=1024,2048 --output=/tmp/describe
"""

import collections
import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from flax import traverse_util
from matplotlib.figure import Figure
from PIL import Image

from regseg_jax.models import field_of_view
from regseg_jax.models.field_of_view import LayerFieldOfView
from regseg_jax.models.layers import Conv
from regseg_jax.models.regseg import RegSeg, create_model
from regseg_jax.reports.charts import render_figure
from regseg_jax.reports.pictures import save_png
from regseg_jax.reports.tables import format_table
from regseg_jax.runtime.command import run_command

HEADERS = (
    *("block", "stride", "channels", "output", "rates", "rate bound", "field of view"),
    *("parameters", "GMACs"),
)

# The length of the paths of the modules that are a row each, such as ("backbone", "stage4").
_ROW_DEPTH = {"stem": 1, "backbone": 2, "decoder": 2}


@dataclasses.dataclass(frozen=True)
class Row:
    """The stem, a block of the backbone, or a layer of the decoder.

    Attributes:
      name: `stem`, a block such as `stage16_3`, or a layer such as `decoder/head16`.
      output_shape: height, width and channels.
      num_parameters: without batch norm's running statistics.
      macs: multiply-accumulates of its convolutions, those of squeeze-and-excite among them,
        for one image. Batch norm, pooling and upsampling are not counted, as is the custom.
    """

    name: str
    output_shape: tuple[int, int, int]
    num_parameters: int
    macs: int


def count_rows(model: RegSeg, size: tuple[int, int]) -> tuple[Row, ...]:
    """Counts parameters and operations of each part of a model, in the order of computation.

    The model is traced on shapes alone: nothing is computed or allocated, whatever the size.

    Args:
      model: any variant.
      size: the image's height and width.
    """
    shapes = {}
    macs = collections.Counter()

    def record(next_call, args, kwargs, context: nn.module.InterceptorContext):
        y = next_call(*args, **kwargs)
        path = context.module.path
        if context.method_name == "__call__":
            if isinstance(context.module, Conv):
                macs[_row_path(path)] += _count_macs(context.module, args[0].shape, y.shape)
            if path and path == _row_path(path) and len(path) == _ROW_DEPTH[path[0]]:
                shapes[path] = y.shape[1:]
        return y

    # Defined here, for JAX would remember the trace of a function that it has met before.
    def init():
        return model.init(jax.random.key(0), jnp.zeros((1, *size, 3)), train=False)

    with nn.intercept_methods(record):
        params = jax.eval_shape(init)["params"]
    num_parameters = collections.Counter()
    for path, param in traverse_util.flatten_dict(params).items():
        num_parameters[_row_path(path)] += param.size
    return tuple(
        Row("/".join(path).removeprefix("backbone/"), shape, num_parameters[path], macs[path])
        for path, shape in shapes.items()
    )


def _row_path(path: tuple[str, ...]) -> tuple[str, ...]:
    """The path of the row that a module or a parameter belongs to."""
    return path[: _ROW_DEPTH[path[0]]] if path else ()


def _count_macs(conv: Conv, in_shape: tuple[int, ...], out_shape: tuple[int, ...]) -> int:
    inputs_per_group = conv.group_width or in_shape[-1]
    return math.prod(out_shape) * conv.kernel_size**2 * inputs_per_group


def format_description(model: RegSeg, size: tuple[int, int]) -> str:
    """The table of a model's parts, its totals, and a warning for each rate that leaves gaps."""
    backbone = model.variant.backbone
    rows = count_rows(model, size)
    layers = {layer.name: layer for layer in field_of_view.trace_field_of_view(backbone)}
    table = [_format_row(row, layers.get(row.name), size) for row in rows]
    height, width = size
    seen = field_of_view.compute_field_of_view(backbone)
    lines = [
        f"{model.variant.name}, {model.num_classes} classes, images of {height} x {width}",
        "",
        format_table(HEADERS, table),
        "",
        f"parameters:    {sum(row.num_parameters for row in rows):,}",
        f"GMACs:         {sum(row.macs for row in rows) / 1e9:.2f} (convolutions)",
        f"field of view: {seen} pixels, {seen / height:.2f} x {seen / width:.2f} of the image",
        *field_of_view.describe_gaps(backbone),
    ]
    return "\n".join(lines)


def _format_row(row: Row, layer: LayerFieldOfView | None, size: tuple[int, int]) -> list[str]:
    height, width, channels = row.output_shape
    if layer is None:  # the field of view is the backbone's alone
        rates, bound, seen = "", "", ""
    else:
        rates = ", ".join(map(str, layer.dilation_rates))
        bound, seen = str(layer.max_dilation_rate), str(layer.field_of_view_after)
    return [
        *(row.name, _format_stride(size, (height, width)), str(channels), f"{height} x {width}"),
        *(rates, bound, seen, f"{row.num_parameters:,}", f"{row.macs / 1e9:.3f}"),
    ]


def _format_stride(size: tuple[int, int], output_size: tuple[int, int]) -> str:
    for stride in (2, 4, 8, 16):
        if tuple(-(-length // stride) for length in size) == output_size:
            return str(stride)
    return ""  # a pooled layer has none


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


def describe(model: RegSeg, size: tuple[int, int], output: str | Path | None) -> None:
    """Prints the description, and writes the chart into the folder `output` unless it is None."""
    print(format_description(model, size))
    if output is not None:
        variant = model.variant
        layers = field_of_view.trace_field_of_view(variant.backbone)
        path = Path(output) / f"field_of_view_{variant.name}.png"
        save_png(draw_field_of_view(variant.name, layers, size), path)
        print(f"wrote {path}")


def parse_size(text: str) -> tuple[int, int]:
    """Reads `HEIGHT,WIDTH`.

    Raises:
      ValueError: if these are not two positive integers.
    """
    numbers = [number.strip() for number in text.split(",")]
    if len(numbers) != 2 or not all(number.isdecimal() and int(number) for number in numbers):
        raise ValueError(f"--size is {text!r}: it must be HEIGHT,WIDTH, such as 1024,2048")
    return int(numbers[0]), int(numbers[1])


def main(argv: Sequence[str]) -> None:
    """Describes the model that the flags name.

    Raises:
      ValueError: if there is no such model, or for a bad size or argument.
    """
    if argv:
        raise ValueError(f"unexpected arguments {argv}; flags start with --")
    size, output = parse_size(flags.FLAGS.size), flags.FLAGS.output
    describe(create_model(flags.FLAGS.model, flags.FLAGS.num_classes), size, output)


if __name__ == "__main__":
    # Not on import, as other commands have flags of the same names.
    flags.DEFINE_string(
        "model", "exp48_decoder26", "BACKBONE_DECODER, an alias, or a variant file."
    )
    flags.DEFINE_integer("num_classes", 19, "Classes of the model's output.")
    flags.DEFINE_string("size", "1024,2048", "HEIGHT,WIDTH of the image.")
    flags.DEFINE_string("output", ".", "Folder for the picture of the field of view.")
    run_command(main, "regseg_jax.describe")
