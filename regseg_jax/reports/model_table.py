"""The table of a model: parameters, operations and field of view of each block."""

import collections
import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import traverse_util

from regseg_jax.models import field_of_view
from regseg_jax.models.field_of_view import LayerFieldOfView
from regseg_jax.models.layers import Conv
from regseg_jax.models.regseg import RegSeg
from regseg_jax.reports.tables import format_table

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
        for one image. Batch norm, pooling and upsampling are not counted, as usual.
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

    # Defined here, because JAX would remember the trace of a function that it has met before.
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
