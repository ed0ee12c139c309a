"""The search of dilation rates by gradient descent: what a training run does differently.

The dilation rates are parameters of the model, trained on the training loss together with the
weights. They have an optimizer (Adam) and a learning rate of their own, stand still in a warm-up,
are not decayed, and each update is projected onto the bounds that leave no gaps. The taps are wide
at first and narrow as the rates move. With narrow taps planted rates were not found: searches
stopped between whole rates, where interpolation blurs (results/search). A regulariser on cost or
field of view was not tried. Paper, section 3; its code was never published, and the method is this
project's own.
"""

import dataclasses
import functools
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict, path_aware_map, unflatten_dict
from jax import Array
from jax.typing import ArrayLike, DTypeLike

from regseg_jax.models import field_of_view, variants
from regseg_jax.models.field_of_view import LayerFieldOfView
from regseg_jax.models.regseg import RegSeg
from regseg_jax.models.searched_conv import RATES, TAP_WIDTH, create_dilated_conv
from regseg_jax.runtime.checks import check_integer, check_number
from regseg_jax.training.optimizer import create_learning_rate_fn, with_learning_rate

Params = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class SearchConfig:
    """The search of dilation rates: `config.search`."""

    enabled: bool = False  # learn the dilation rates of the model's blocks at 1/16
    num_branches: int = 2  # dilation rates a block
    initial_rate: int = 1  # of every branch, under the bound
    learning_rate: float = 0.05  # of the dilation rates: about the most one moves in a step
    warmup_steps: int = 300  # before the dilation rates move
    tap_width: float = 4.0  # of the taps at first, in pixels at 1/16; it narrows to 1

    def __post_init__(self) -> None:
        check_integer("search.num_branches", self.num_branches, at_least=2)
        check_integer("search.initial_rate", self.initial_rate, at_least=1)
        check_number("search.learning_rate", self.learning_rate, above=0)
        check_integer("search.warmup_steps", self.warmup_steps, at_least=0)
        check_number("search.tap_width", self.tap_width, at_least=1)


def create_search_model(
    variant: variants.Variant,
    num_classes: int,
    dtype: DTypeLike,
    *,
    num_branches: int,
    initial_rate: int,
) -> RegSeg:
    """The variant with branches of real rates in every block at 1/16, the strided one left out.

    Every rate starts at initial_rate, or at the bound where that is lower.

    Raises:
      ValueError: if a block's channels do not split into this many branches.
    """
    num_blocks = len(variants.get_dilation_rates(variant.backbone))
    ones = variants.replace_dilation_rates(variant.backbone, num_blocks * [num_branches * [1]])
    wanted = jnp.full((num_blocks, num_branches), initial_rate)
    initial = clamp_rates(wanted, searched_layers(ones)[0].field_of_view_before)
    backbone = variants.replace_dilation_rates(ones, initial.tolist())
    return RegSeg(
        dataclasses.replace(variant, backbone=backbone), num_classes, create_dilated_conv, dtype
    )


def searched_layers(backbone: variants.Backbone) -> tuple[LayerFieldOfView, ...]:
    """The layers at 1/16, the strided one left out."""
    return tuple(
        layer for layer in field_of_view.trace_field_of_view(backbone) if layer.stride_before == 16
    )


def clamp_rates(rates: Array, first_field_of_view: int) -> Array:
    """Puts rates between 1 and the bound that the (clamped) rates before them set.

    Args:
      rates: [blocks, branches], integers or real numbers, in the order of computation.
      first_field_of_view: of the first block's input, in pixels.

    Returns:
      The same shape and dtype; whole numbers stay whole.
    """
    seen, clamped = first_field_of_view, []
    for block in rates:
        bound = field_of_view.max_dilation_rate(seen, 16)
        clamped.append(jnp.clip(block, 1, bound).astype(rates.dtype))
        seen = field_of_view.widen(seen, 16, clamped[-1].max())
    return jnp.stack(clamped)


def compute_tap_width(initial: float, progress: ArrayLike) -> Array:
    """The width of the taps after that fraction of the search: 1 from its middle on."""
    return initial ** (1 - jnp.clip(2 * progress, 0, 1))


@dataclasses.dataclass(frozen=True)
class RateSearch:
    """The rates of a searched model over a run.

    Attributes:
      layers: the searched ones, see `searched_layers`.
      learning_rate: of the rates when they start to move; it falls linearly to 0 at the end.
      warmup_steps: before the rates move.
      num_steps: of the run.
      tap_width: of the taps in the warm-up, in pixels of their features; at least 1.
    """

    layers: tuple[LayerFieldOfView, ...]
    learning_rate: float
    warmup_steps: int
    num_steps: int
    tap_width: float = 1.0

    def learning_rate_fn(self, step: ArrayLike) -> Array:
        """The rates' learning rate at a step."""
        moving_steps = max(self.num_steps - self.warmup_steps, 1)
        decay = create_learning_rate_fn(self.learning_rate, moving_steps, 0, power=1.0)
        return jnp.where(step < self.warmup_steps, 0.0, decay(step - self.warmup_steps))

    def create_optimizer(
        self, weights_tx: optax.GradientTransformation
    ) -> optax.GradientTransformationExtraArgs:
        """Adam for the rates, their schedule for the tap widths, weights_tx for all else.

        Its `update` takes `step`, see `optimizer.with_learning_rate`.
        """
        transforms = {
            "weights": weights_tx,
            RATES: with_learning_rate(optax.scale_by_adam(), self.learning_rate_fn),
            TAP_WIDTH: optax.set_to_zero(),
        }

        def label(path: tuple[str, ...], _: Any) -> str:
            return path[-1] if path[-1] in transforms else "weights"

        return self._project(optax.partition(transforms, functools.partial(path_aware_map, label)))

    def _project(
        self, tx: optax.GradientTransformationExtraArgs
    ) -> optax.GradientTransformationExtraArgs:
        """Changes tx's updates so that they end at clamped rates and the step's tap width."""

        def update(
            updates: Params, state: optax.OptState, params: Params, *, step: ArrayLike
        ) -> tuple[Params, optax.OptState]:
            updates, state = tx.update(updates, state, params, step=step)
            rates = self.get_rates(optax.apply_updates(params, updates))
            rates = clamp_rates(rates, self.layers[0].field_of_view_before)
            # A run starts with taps of 1; the first update, whose rates stand still, widens them.
            progress = (step - self.warmup_steps) / max(self.num_steps - self.warmup_steps, 1)
            tap_width = compute_tap_width(self.tap_width, progress)
            old, projected = flatten_dict(params), flatten_dict(updates)
            for layer, block in zip(self.layers, rates, strict=True):
                for path, new in (
                    (_path(layer, RATES), block),
                    (_path(layer, TAP_WIDTH), tap_width),
                ):
                    projected[path] = new - old[path]
            return unflatten_dict(projected), state

        return optax.GradientTransformationExtraArgs(tx.init, update)

    def get_rates(self, params: Params) -> Array:
        """The rates among the parameters: f32[blocks, branches]."""
        flat = flatten_dict(params)
        return jnp.stack([flat[_path(layer, RATES)] for layer in self.layers])

    def fetch_rates(self, params: Params) -> np.ndarray:
        """`get_rates` on this process alone; for logs and files."""
        flat = flatten_dict(params)
        return np.stack([np.asarray(flat[_path(layer, RATES)]) for layer in self.layers])

    def compute_bounds(self, rates: np.ndarray) -> np.ndarray:
        """The largest rate without gaps of each block, given the rates before it: f32[blocks]."""
        first = self.layers[0].field_of_view_before
        return np.array(field_of_view.compute_bounds(rates.max(1).tolist(), first, stride=16))

    def round_rates(self, rates: np.ndarray) -> tuple[variants.DilationRates, ...]:
        """Whole rates under the bound of those before them, each block's sorted."""
        rounded = jnp.round(rates).astype(jnp.int32)
        clamped = clamp_rates(rounded, self.layers[0].field_of_view_before)
        return tuple(tuple(sorted(block)) for block in clamped.tolist())

    def named_rates(self, params: Params) -> dict[str, float]:
        """Rates and bounds by metric key: `search/BLOCK/rate_0` and so on, `search/BLOCK/bound`."""
        rates = self.fetch_rates(params)
        named = {}
        for layer, block, bound in zip(
            self.layers, rates.tolist(), self.compute_bounds(rates).tolist(), strict=True
        ):
            named |= {f"search/{layer.name}/rate_{i}": rate for i, rate in enumerate(block)}
            named[f"search/{layer.name}/bound"] = bound
        return named


def _path(layer: LayerFieldOfView, name: str) -> tuple[str, ...]:
    """Where a block's parameter of that name is."""
    return ("backbone", layer.name, "conv2", name)
