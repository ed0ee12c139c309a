"""From a config to its data set, model and optimizer, which every use of a run needs."""

import jax
import optax

from regseg_jax.config import Config
from regseg_jax.data.dataset import Dataset
from regseg_jax.models.regseg import RegSeg, create_model
from regseg_jax.models.searched_model import create_search_model, searched_layers
from regseg_jax.models.variants import get_variant
from regseg_jax.training.optimizer import Schedule, create_learning_rate_fn, create_optimizer
from regseg_jax.training.rate_search import ContinuousSearch, RateSearch, RelaxedSearch
from regseg_jax.training.train_state import TrainState, create_train_state


def create_dataset(config: Config) -> Dataset:
    """The config's data set."""
    return Dataset(config.data, config.folder, config.seed)


def create_run_model(config: Config) -> RegSeg:
    """The config's model in its precision; with dilation rates to search if it says so."""
    num_classes = create_dataset(config).class_table.num_classes
    search = config.search
    if search.enabled:
        return create_search_model(
            get_variant(config.model),
            num_classes,
            config.dtype,
            method=search.method,
            num_branches=search.num_branches,
            rate=search.max_rate if search.method == "relaxed" else search.initial_rate,
        )
    return create_model(config.model, num_classes, config.dtype)


def create_run_learning_rate_fn(config: Config, num_steps: int) -> Schedule:
    """The config's learning rate over num_steps."""
    optimizer = config.optimizer
    return create_learning_rate_fn(
        optimizer.learning_rate,
        num_steps,
        optimizer.warmup_steps,
        schedule=optimizer.schedule,
        warmup_factor=optimizer.warmup_factor,
        power=optimizer.power,
    )


def create_rate_search(config: Config, model: RegSeg, num_steps: int) -> RateSearch | None:
    """How the dilation rates of a searched model move; None if they are fixed."""
    search = config.search
    if not search.enabled:
        return None
    layers = searched_layers(model.variant.backbone)
    schedule = (layers, search.learning_rate, search.warmup_steps, num_steps)
    if search.method == "relaxed":
        return RelaxedSearch(*schedule, search.temperature)
    return ContinuousSearch(*schedule, search.tap_width)


def create_run_optimizer(
    config: Config, model: RegSeg, num_steps: int
) -> optax.GradientTransformationExtraArgs:
    """The config's optimizer for a run of num_steps; its state does not depend on their number."""
    learning_rate_fn = create_run_learning_rate_fn(config, num_steps)
    tx = create_optimizer(
        learning_rate_fn, config.optimizer.weight_decay, config.optimizer.momentum
    )
    rate_search = create_rate_search(config, model, num_steps)
    return rate_search.create_optimizer(tx) if rate_search else tx


def abstract_train_state(
    model: RegSeg, tx: optax.GradientTransformation, *, with_ema: bool = False
) -> TrainState:
    """Shapes and dtypes of a state, with nothing computed."""
    return jax.eval_shape(
        lambda: create_train_state(model, tx, jax.random.key(0), with_ema=with_ema)
    )
