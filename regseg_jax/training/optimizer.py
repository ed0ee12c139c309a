"""The optimizer and its learning rate, as the author's PyTorch code has them."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from regseg_jax.ops.barrier import gpu_common
from regseg_jax.runtime.checks import check_fraction, check_integer, check_number, check_one_of

Schedule = Callable[[jax.typing.ArrayLike], jax.Array]


def _poly(progress: jax.Array, power: float) -> jax.Array:
    return (1 - progress) ** power


def _cosine(progress: jax.Array, power: float) -> jax.Array:
    return 0.5 * (1 + jnp.cos(jnp.pi * progress))


def _step(progress: jax.Array, power: float) -> jax.Array:
    return jnp.where(progress < 0.89, 1, jnp.where(progress < 0.96, 0.1, 0.01))


def _exponential(progress: jax.Array, power: float) -> jax.Array:
    return 0.01**progress


# The decay's factor as a function of the progress, steps taken / all steps, in [0, 1].
DECAYS = {"poly": _poly, "cosine": _cosine, "step": _step, "exponential": _exponential}


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """SGD and its learning rate (paper, section 4.1): `config.optimizer`."""

    learning_rate: float = 0.05
    schedule: str = "poly"  # poly, cosine, step or exponential
    momentum: float = 0.9
    weight_decay: float = 1e-4
    warmup_steps: int = 3000
    warmup_factor: float = 0.1  # of the learning rate at step 0
    power: float = 0.9  # of poly

    def __post_init__(self) -> None:
        check_number("optimizer.learning_rate", self.learning_rate, above=0)
        check_one_of("optimizer.schedule", self.schedule, DECAYS)
        check_fraction("optimizer.momentum", self.momentum)
        check_number("optimizer.weight_decay", self.weight_decay, at_least=0)
        check_integer("optimizer.warmup_steps", self.warmup_steps, at_least=0)
        check_fraction("optimizer.warmup_factor", self.warmup_factor)
        check_number("optimizer.power", self.power, at_least=0)


def create_learning_rate_fn(
    base_learning_rate: float,
    num_steps: int,
    warmup_steps: int,
    *,
    schedule: str = "poly",
    warmup_factor: float = 0.1,
    power: float = 0.9,
) -> Schedule:
    """A decay over all steps, times a linear warm-up (paper, section 4.1: poly).

    Args:
      base_learning_rate: what decay and warm-up multiply.
      num_steps: the decay ends here, one step after the last: poly and cosine at 0, exponential
        and step at 0.01 (step is 0.1 from 89 % of the steps on, 0.01 from 96 % on).
      warmup_steps: the warm-up's factor goes from warmup_factor at step 0 to 1 at this step.
      schedule: a key of `DECAYS`.
      warmup_factor: where the warm-up starts, in [0, 1].
      power: of poly.

    Returns:
      A function of the step (an int or i32[]) to the learning rate, f32[].
    """
    decay_fn = DECAYS[schedule]

    def learning_rate_fn(step: jax.typing.ArrayLike) -> jax.Array:
        step = jnp.minimum(step, num_steps)
        decay = decay_fn(step / num_steps, power)
        warmup = jnp.minimum(warmup_factor + (1 - warmup_factor) * step / max(warmup_steps, 1), 1)
        return base_learning_rate * decay * (warmup if warmup_steps else 1)

    return learning_rate_fn


def decay_mask(params: Any) -> Any:
    """True where weight decay applies: everywhere except batch norm's scale and bias."""

    def decays(path: tuple, _: Any) -> bool:
        *_, module, leaf = (key.key for key in path)
        return leaf == "kernel" or (leaf == "bias" and "bn" not in module)

    return jax.tree_util.tree_map_with_path(decays, params)


def with_learning_rate(
    tx: optax.GradientTransformation, learning_rate_fn: Schedule
) -> optax.GradientTransformationExtraArgs:
    """Scales tx's direction by minus the learning rate of the step, `update`'s argument `step`.

    `optax.scale_by_schedule` counts its own calls instead. Here a step that is skipped under loss
    scaling does not delay the schedule, as in PyTorch. The state is tx's alone, as in the
    checkpoints of runs whose optimizer had no learning rate in it.
    """
    tx = optax.with_extra_args_support(tx)

    def update(
        updates: optax.Updates,
        state: optax.OptState,
        params: optax.Params | None = None,
        *,
        step: jax.typing.ArrayLike,
        **extra_args: Any,
    ) -> tuple[optax.Updates, optax.OptState]:
        direction, state = tx.update(updates, state, params, step=step, **extra_args)
        return optax.tree.scale(gpu_common(-learning_rate_fn(step)), direction), state

    return optax.GradientTransformationExtraArgs(tx.init, update)


def create_optimizer(
    learning_rate_fn: Schedule, weight_decay: float, momentum: float = 0.9
) -> optax.GradientTransformationExtraArgs:
    """SGD as PyTorch's: weight decay added to the gradient, momentum, then the learning rate.

    Its `update` takes `step`, see `with_learning_rate`.
    """
    sgd = optax.chain(
        optax.add_decayed_weights(weight_decay, mask=decay_mask),
        optax.trace(decay=momentum),
    )
    return with_learning_rate(sgd, learning_rate_fn)
