"""From a config to the parts of a run that training, evaluation and prediction share."""

import dataclasses
import functools
import os
from collections.abc import Callable
from typing import Any

import jax
import optax
from ml_collections import ConfigDict

from regseg_jax.checkpoint import CheckpointManager
from regseg_jax.config import PRECISIONS, load_config
from regseg_jax.data import classes, sources, synthetic
from regseg_jax.data.augment import AugmentConfig, resize_and_normalize
from regseg_jax.losses import bootstrapped_cross_entropy, cross_entropy
from regseg_jax.models import RegSeg, create_model
from regseg_jax.models.variants import get_variant
from regseg_jax.optim import Schedule, create_learning_rate_fn, create_optimizer
from regseg_jax.search.rate_search import (
    RateSearch,
    create_search_model,
    create_search_optimizer,
    searched_layers,
)
from regseg_jax.steps import LossFn
from regseg_jax.train_state import TrainState, create_train_state

CLASS_TABLES = {
    "camvid": classes.CAMVID,
    "synthetic": classes.CAMVID,
    "cityscapes": classes.CITYSCAPES,  # of imported weights; there is no loader for it yet
}


def get_class_table(config: ConfigDict) -> classes.ClassTable:
    """The classes of the config's data set."""
    return CLASS_TABLES[config.data.source]


def create_source(config: ConfigDict, split: str) -> sources.Source:
    """The examples of a split.

    Raises:
      ValueError: if files are missing; names them.
    """
    data = config.data
    if data.source == "camvid":
        return sources.load_camvid(data.data_dir, split, get_class_table(config))
    sizes = {"train": data.synthetic_train_examples, "val": data.synthetic_eval_examples}
    if split not in sizes:
        raise ValueError(f"the synthetic data set has no split {split!r}; use train or val")
    height, width = data.synthetic_size
    # The splits draw from seeds of their own, so that no scene is in both.
    return synthetic.SyntheticScenes(
        num_examples=sizes[split],
        height=height,
        width=width,
        seed=2 * config.seed + (split == "val"),
    )


def create_run_model(config: ConfigDict) -> RegSeg:
    """The config's model in its precision; with rates to search where the config says so."""
    num_classes, dtype = get_class_table(config).num_classes, PRECISIONS[config.precision]
    if config.search.enabled:
        return create_search_model(
            get_variant(config.model),
            num_classes,
            dtype,
            num_branches=config.search.num_branches,
            initial_rate=config.search.initial_rate,
        )
    return create_model(config.model, num_classes, dtype)


def create_rate_search(config: ConfigDict, model: RegSeg, num_steps: int) -> RateSearch | None:
    """How the rates of a searched model move; None where the rates are fixed."""
    if not config.search.enabled:
        return None
    return RateSearch(
        searched_layers(model.variant.backbone),
        config.search.learning_rate,
        config.search.warmup_steps,
        num_steps,
        config.search.tap_width,
    )


def create_run_optimizer(
    config: ConfigDict, num_steps: int
) -> tuple[optax.GradientTransformation, Schedule]:
    """The optimizer and its learning-rate schedule over num_steps."""
    optimizer = config.optimizer
    learning_rate_fn = create_learning_rate_fn(
        optimizer.learning_rate,
        num_steps,
        optimizer.warmup_steps,
        warmup_factor=optimizer.warmup_factor,
        power=optimizer.power,
    )
    tx = create_optimizer(optimizer.weight_decay, optimizer.momentum)
    return create_search_optimizer(tx) if config.search.enabled else tx, learning_rate_fn


def create_loss_fn(config: ConfigDict) -> LossFn:
    """The loss over a global batch of crops."""
    if config.loss.name == "cross_entropy":
        return cross_entropy
    height, width = config.augment.crop_size
    pixels = config.global_batch_size * height * width
    return functools.partial(
        bootstrapped_cross_entropy,
        min_pixels=max(1, int(pixels * config.loss.min_pixel_share)),
        threshold=config.loss.threshold,
    )


def create_augment_config(config: ConfigDict) -> AugmentConfig:
    """The ranges of augmentation."""
    augment = config.augment.to_dict()
    return AugmentConfig(**{**augment, "crop_size": tuple(augment["crop_size"])})


def create_preprocess_fn(config: ConfigDict) -> Callable[[jax.Array], jax.Array]:
    """What turns whole uint8 images into the model's input for evaluation and prediction."""

    def preprocess(images: jax.Array) -> jax.Array:
        size = tuple(config.eval.image_size) or images.shape[1:3]
        return resize_and_normalize(images, size)

    return preprocess


def abstract_train_state(model: RegSeg, tx: optax.GradientTransformation) -> TrainState:
    """Shapes and dtypes of a state, with nothing computed."""
    return jax.eval_shape(lambda: create_train_state(model, tx, jax.random.key(0)))


@dataclasses.dataclass(frozen=True)
class TrainedRun:
    """A run's best checkpoint and what is needed to use it.

    Attributes:
      config: of the run.
      model: in the run's precision.
      variables: {"params", "batch_stats"}.
      step: of the checkpoint.
    """

    config: ConfigDict
    model: RegSeg
    variables: dict[str, Any]
    step: int


def load_run(workdir: str | os.PathLike) -> TrainedRun:
    """Reads the best checkpoint of a run by mean IoU, or the newest where none was evaluated.

    Raises:
      ValueError: if workdir holds no run or no checkpoint.
    """
    config = load_config(workdir)
    model = create_run_model(config)
    tx, _ = create_run_optimizer(config, num_steps=1)
    checkpoints = CheckpointManager(workdir, read_only=True)
    step = checkpoints.best_step()
    if step is None:
        raise ValueError(f"{workdir} holds no finished checkpoint yet; train for longer")
    state = checkpoints.restore(step, abstract_train_state(model, tx))
    checkpoints.close()
    return TrainedRun(config, model, state.variables, step)
