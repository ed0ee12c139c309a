"""The field of view of a backbone and the bound that it puts on the dilation rates.

The field of view is the side, in pixels, of the square of the image that one feature depends on.
It counts the 3x3 convolutions from the stem on (the widest path): neither the average pool of a
strided shortcut nor the global mean of squeeze-and-excite. The rules are those of
the paper, section 3; tests/models/test_field_of_view.py checks them by counting pixels.
"""

import dataclasses
from collections.abc import Iterable
from typing import TypeVar

from regseg_jax.models import variants

Number = TypeVar("Number")  # int, float, or a (traced) scalar array


@dataclasses.dataclass(frozen=True)
class LayerFieldOfView:
    """What one 3x3 convolution does to the field of view.

    Attributes:
      name: the module that holds it: `stem`, or a block such as `stage16_3`.
      dilation_rates: the rate of each of its branches.
      stride_before: pixels between two neighbours among its input features.
      stride_after: the same for its output.
      field_of_view_before: of its input features, in pixels.
      field_of_view_after: of its output, by the branch with the largest rate.
    """

    name: str
    dilation_rates: variants.DilationRates
    stride_before: int
    stride_after: int
    field_of_view_before: int
    field_of_view_after: int

    @property
    def max_dilation_rate(self) -> int:
        """The largest dilation rate that leaves no gaps here."""
        return max_dilation_rate(self.field_of_view_before, self.stride_before)

    @property
    def rates_with_gaps(self) -> variants.DilationRates:
        """The dilation rates among its own that leave gaps."""
        return tuple(rate for rate in self.dilation_rates if rate > self.max_dilation_rate)


def max_dilation_rate(field_of_view: Number, stride: int) -> Number:
    """The largest rate of a 3x3 convolution that sees every pixel between its outermost taps.

    Neighbouring taps are rate * stride pixels apart and each sees field_of_view pixels, so there
    are no gaps between them if and only if rate * stride <= field_of_view.

    Args:
      field_of_view: of the convolution's input features, in pixels; itself without gaps.
      stride: of the convolution's input features, in pixels.
    """
    return field_of_view // stride


def widen(field_of_view: Number, stride: int, dilation_rate: Number) -> Number:
    """The field of view after a 3x3 convolution of that rate on features of that stride."""
    return field_of_view + 2 * dilation_rate * stride


def compute_bounds(
    largest_rates: Iterable[Number], field_of_view: int, stride: int
) -> tuple[Number, ...]:
    """The bound on the rate of each of several 3x3 convolutions that keep the stride.

    Args:
      largest_rates: for each convolution, in order, the largest of its branches' dilation rates;
        integers, floats or a traced array.
      field_of_view: of the first one's input features, in pixels.
      stride: of the features, in pixels.

    Returns:
      For each convolution the largest rate without gaps, given the rates of those before it.
    """
    bounds = []
    for rate in largest_rates:
        bounds.append(max_dilation_rate(field_of_view, stride))
        field_of_view = widen(field_of_view, stride, rate)
    return tuple(bounds)


def trace_field_of_view(backbone: variants.Backbone) -> tuple[LayerFieldOfView, ...]:
    """Follows the field of view through the 3x3 convolutions: the stem's, then a block's each."""
    layers = []
    field_of_view, stride = 1, 1
    for name, rates, layer_stride in _convolutions(backbone):
        layer = LayerFieldOfView(
            name=name,
            dilation_rates=rates,
            stride_before=stride,
            stride_after=stride * layer_stride,
            field_of_view_before=field_of_view,
            field_of_view_after=widen(field_of_view, stride, max(rates)),
        )
        layers.append(layer)
        field_of_view, stride = layer.field_of_view_after, layer.stride_after
    return tuple(layers)


def _convolutions(
    backbone: variants.Backbone,
) -> list[tuple[str, variants.DilationRates, int]]:
    """(name, rates, stride) of each 3x3 convolution, named as `backbones.BackboneStages` does."""
    convolutions = [("stem", (1,), 2)]
    for stage, blocks in backbone.stages:
        for i, block in enumerate(blocks):
            name = stage if len(blocks) == 1 else f"{stage}_{i}"
            convolutions.append((name, block.dilation_rates, block.stride))
    return convolutions


def compute_field_of_view(backbone: variants.Backbone) -> int:
    """The field of view of the backbone's last features, in pixels."""
    return trace_field_of_view(backbone)[-1].field_of_view_after


def find_gaps(backbone: variants.Backbone) -> tuple[LayerFieldOfView, ...]:
    """The layers with a dilation rate that leaves gaps between its taps' fields of view."""
    return tuple(layer for layer in trace_field_of_view(backbone) if layer.rates_with_gaps)


def describe_gaps(backbone: variants.Backbone) -> tuple[str, ...]:
    """A warning for each layer with a dilation rate that leaves gaps."""
    return tuple(
        f"warning: {layer.name} has gaps between its taps' fields of view at rate "
        f"{', '.join(map(str, layer.rates_with_gaps))}; "
        f"the largest rate without is {layer.max_dilation_rate}"
        for layer in find_gaps(backbone)
    )
