"""The search of dilation rates by gradient descent: what a training run does differently.

The dilation rates, or what they are chosen by, are parameters of the model, trained on the training
loss together with the weights. They have an optimizer (Adam) and a learning rate of their own,
stand still in a warm-up, are not decayed, and what is found keeps the bounds that leave no gaps.
Paper, section 3; its code was never published. There are two methods (docs/results.md compares
them):

- `relaxed`: a softmax over candidate rates, each with kernels of its own, as in DARTS (Liu et al.,
  2019, arXiv 1806.09055). Its temperature falls, so that one candidate remains.
- `continuous`, this project's own: one real rate per branch. The taps are wide at first and narrow
  as the rates move; with narrow taps searches stop between whole rates, where interpolation blurs.

A regulariser on cost or field of view was not tried.
"""

import abc
import dataclasses
import functools
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict, path_aware_map, unflatten_dict
from jax import Array
from jax.typing import ArrayLike

from regseg_jax.models import field_of_view, variants
from regseg_jax.models.field_of_view import LayerFieldOfView
from regseg_jax.models.searched_conv import LOGITS, RATES, TAP_WIDTH, TEMPERATURE
from regseg_jax.models.searched_model import METHODS, clamp_rates
from regseg_jax.runtime.checks import check_integer, check_number, check_one_of
from regseg_jax.training.optimizer import create_learning_rate_fn, with_learning_rate

Params = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class SearchConfig:
    """The search of dilation rates: `config.search`."""

    enabled: bool = False  # learn the dilation rates of the model's blocks at 1/16
    method: str = "relaxed"  # or continuous
    num_branches: int = 2  # dilation rates a block
    learning_rate: float = 0.05  # of rates or logits: about the most that one moves in a step
    warmup_steps: int = 300  # before they move
    max_rate: int = 16  # relaxed: the largest candidate, where the bound allows it
    temperature: float = 0.1  # relaxed: of the candidates at the end; it starts at 1
    initial_rate: int = 1  # continuous: of every branch, under the bound
    tap_width: float = 4.0  # continuous: of the taps at first, in pixels at 1/16; it narrows to 1

    def __post_init__(self) -> None:
        check_one_of("search.method", self.method, METHODS)
        check_integer("search.num_branches", self.num_branches, at_least=2)
        check_integer("search.max_rate", self.max_rate, at_least=1)
        check_number("search.temperature", self.temperature, above=0)
        check_integer("search.initial_rate", self.initial_rate, at_least=1)
        check_number("search.learning_rate", self.learning_rate, above=0)
        check_integer("search.warmup_steps", self.warmup_steps, at_least=0)
        check_number("search.tap_width", self.tap_width, at_least=1)


def compute_tap_width(initial: float, progress: ArrayLike, *, narrowed_at: float = 0.5) -> Array:
    """The width of the taps after that fraction of the search: 1 from narrowed_at on."""
    return initial ** (1 - jnp.clip(progress / narrowed_at, 0, 1))


def compute_temperature(final: float, progress: ArrayLike) -> Array:
    """The temperature of the candidates after that fraction of the search.

    1 up to 0.4 of it, so that all candidates learn; then falling geometrically, final from 0.8 on.
    """
    return final ** jnp.clip((progress - 0.4) / 0.4, 0, 1)


@dataclasses.dataclass(frozen=True)
class RateSearch(abc.ABC):
    """What is the same in both methods of searching.

    Attributes:
      layers: the searched ones, see `searched_model.searched_layers`.
      learning_rate: of the rates or logits when they start to move; it falls linearly to 0.
      warmup_steps: before they move.
      num_steps: of the run.
      trained: the name of the parameters that this is the learning rate of.
      scheduled: the name of those that each step sets.
    """

    trained: ClassVar[str]
    scheduled: ClassVar[str]
    layers: tuple[LayerFieldOfView, ...]
    learning_rate: float
    warmup_steps: int
    num_steps: int

    def learning_rate_fn(self, step: ArrayLike) -> Array:
        """The learning rate of the rates or logits at a step."""
        decay = create_learning_rate_fn(self.learning_rate, self._moving_steps, 0, power=1.0)
        return jnp.where(step < self.warmup_steps, 0.0, decay(step - self.warmup_steps))

    @property
    def _moving_steps(self) -> int:
        return max(self.num_steps - self.warmup_steps, 1)

    def _progress(self, step: ArrayLike) -> Array:
        """The fraction of the search that is done; negative in the warm-up."""
        return (step - self.warmup_steps) / self._moving_steps

    def create_optimizer(
        self, weights_tx: optax.GradientTransformation
    ) -> optax.GradientTransformationExtraArgs:
        """Adam for rates or logits, a schedule for what has no gradient, weights_tx for all else.

        Its `update` takes `step`, see `optimizer.with_learning_rate`.
        """
        transforms = {
            "weights": weights_tx,
            self.trained: with_learning_rate(optax.scale_by_adam(), self.learning_rate_fn),
            self.scheduled: optax.set_to_zero(),
        }

        def label(path: tuple[str, ...], _: Any) -> str:
            return path[-1] if path[-1] in transforms else "weights"

        return self._project(optax.partition(transforms, functools.partial(path_aware_map, label)))

    def _project(
        self, tx: optax.GradientTransformationExtraArgs
    ) -> optax.GradientTransformationExtraArgs:
        """Changes tx's updates so that they end at what `_place` says."""

        def update(
            updates: Params, state: optax.OptState, params: Params, *, step: ArrayLike
        ) -> tuple[Params, optax.OptState]:
            updates, state = tx.update(updates, state, params, step=step)
            placed = self._place(optax.apply_updates(params, updates), step)
            old, projected = flatten_dict(params), flatten_dict(updates)
            projected |= {path: new - old[path] for path, new in placed.items()}
            return unflatten_dict(projected), state

        return optax.GradientTransformationExtraArgs(tx.init, update)

    @abc.abstractmethod
    def _place(self, params: Params, step: ArrayLike) -> dict[tuple[str, ...], Array]:
        """The parameters, by path, that a step sets after its update, and their values."""

    @abc.abstractmethod
    def fetch_rates(self, params: Params) -> np.ndarray:
        """The rates that parameters stand for, f32[blocks, branches], on this process alone."""

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

    def _each(self, params: Params, name: str) -> list[Array]:
        """The parameter of that name of each layer."""
        flat = flatten_dict(params)
        return [flat[_path(layer, name)] for layer in self.layers]


@dataclasses.dataclass(frozen=True)
class ContinuousSearch(RateSearch):
    """Real-valued rates. Each update is projected onto the bounds.

    Attributes:
      tap_width: of the taps in the warm-up, in pixels of their features; at least 1.
    """

    trained = RATES
    scheduled = TAP_WIDTH
    tap_width: float = 1.0

    def _place(self, params: Params, step: ArrayLike) -> dict[tuple[str, ...], Array]:
        rates = jnp.stack(self._each(params, RATES))
        rates = clamp_rates(rates, self.layers[0].field_of_view_before)
        # A run starts with taps of 1; the first update, whose rates stand still, widens them.
        tap_width = compute_tap_width(self.tap_width, self._progress(step))
        placed = {_path(layer, TAP_WIDTH): tap_width for layer in self.layers}
        return placed | {
            _path(x, RATES): block for x, block in zip(self.layers, rates, strict=True)
        }

    def fetch_rates(self, params: Params) -> np.ndarray:
        """The rates themselves."""
        return np.stack([np.asarray(block) for block in self._each(params, RATES)])


@dataclasses.dataclass(frozen=True)
class RelaxedSearch(RateSearch):
    """Candidate rates with learned weights. The largest candidate of a block is what `layers` have.

    Attributes:
      temperature: of the candidates' softmax at the end; above 0.
    """

    trained = LOGITS
    scheduled = TEMPERATURE
    temperature: float = 1.0

    def _place(self, params: Params, step: ArrayLike) -> dict[tuple[str, ...], Array]:
        temperature = compute_temperature(self.temperature, self._progress(step))
        return {_path(layer, TEMPERATURE): temperature for layer in self.layers}

    def fetch_rates(self, params: Params) -> np.ndarray:
        """The likeliest candidate of each branch under the bound that those before it set."""
        seen, rates = self.layers[0].field_of_view_before, []
        for logits in self._each(params, LOGITS):
            bound = int(field_of_view.max_dilation_rate(seen, 16))
            rates.append(1 + np.asarray(logits)[:, :bound].argmax(1))
            seen = field_of_view.widen(seen, 16, int(rates[-1].max()))
        return np.stack(rates).astype(np.float32)

    def named_rates(self, params: Params) -> dict[str, float]:
        """In addition `search/BLOCK/probability_0` and so on: the largest weight of a candidate."""
        named = super().named_rates(params)
        for layer, logits, temperature in zip(
            self.layers,
            self._each(params, LOGITS),
            self._each(params, TEMPERATURE),
            strict=True,
        ):
            scaled = np.asarray(logits) / np.asarray(temperature)
            weights = np.exp(scaled - scaled.max(1, keepdims=True))
            for i, probability in enumerate((weights.max(1) / weights.sum(1)).tolist()):
                named[f"search/{layer.name}/probability_{i}"] = probability
        return named


def _path(layer: LayerFieldOfView, name: str) -> tuple[str, ...]:
    """Where a block's parameter of that name is."""
    return ("backbone", layer.name, "conv2", name)
