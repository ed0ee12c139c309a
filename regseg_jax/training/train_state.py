"""The pytree that training carries from step to step and that a checkpoint holds."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from flax.training.dynamic_scale import DynamicScale

from regseg_jax.models.regseg import RegSeg


@struct.dataclass
class TrainState:
    """The state that training changes.

    Attributes:
      step: i32[], steps taken, skipped ones included.
      params: f32, trained.
      batch_stats: f32, batch norm's running statistics.
      opt_state: the optimizer's.
      dynamic_scale: the loss scale; None unless training in float16.
      ema_variables: the exponential moving average of `variables`; None unless asked for.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: optax.OptState
    dynamic_scale: DynamicScale | None = None
    ema_variables: Any = None

    @property
    def variables(self) -> dict[str, Any]:
        """What `model.apply` takes."""
        return {"params": self.params, "batch_stats": self.batch_stats}


def create_train_state(
    model: RegSeg, tx: optax.GradientTransformation, rng: jax.Array, *, with_ema: bool = False
) -> TrainState:
    """Initialises model and optimizer from rng; the loss scale where the model is float16."""
    variables = model.init(rng, jnp.zeros((1, 32, 32, 3)), train=False)
    return start_from(model, tx, variables, with_ema=with_ema)


def start_from(
    model: RegSeg,
    tx: optax.GradientTransformation,
    variables: dict[str, Any],
    *,
    with_ema: bool = False,
) -> TrainState:
    """The state of step 0 with these params and batch_stats."""
    # Copied: the training step donates its arguments, and no array may be donated twice.
    average = {name: jax.tree.map(jnp.copy, variables[name]) for name in ("params", "batch_stats")}
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=variables["params"],
        batch_stats=variables["batch_stats"],
        opt_state=tx.init(variables["params"]),
        dynamic_scale=DynamicScale() if model.dtype == jnp.float16 else None,
        ema_variables=average if with_ema else None,
    )
