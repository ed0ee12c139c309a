"""From a config to the parts of a run that training, evaluation and prediction share."""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import optax
from ml_collections import ConfigDict

from regseg_jax.config import PRECISIONS, load_config
from regseg_jax.data import classes
from regseg_jax.data.augment import AugmentConfig, resize_and_normalize
from regseg_jax.data.cache import load_cached
from regseg_jax.data.centroids import load_centroids
from regseg_jax.data.sampling import ClassUniformEpochs, Sampler, ShuffledEpochs
from regseg_jax.data.sources import source as sources
from regseg_jax.data.sources.cityscapes import load_cityscapes
from regseg_jax.data.sources.folder import load_folder
from regseg_jax.data.synthetic import scenes as synthetic
from regseg_jax.models import RegSeg, create_model
from regseg_jax.models.variants import get_variant
from regseg_jax.search.rate_search import (
    RateSearch,
    create_search_model,
    searched_layers,
)
from regseg_jax.training.checkpoints import CheckpointManager
from regseg_jax.training.losses import bootstrapped_cross_entropy, cross_entropy
from regseg_jax.training.optimizer import Schedule, create_learning_rate_fn, create_optimizer
from regseg_jax.training.steps import LossFn, ScoreFn, create_score_fn
from regseg_jax.training.train_state import TrainState, create_train_state

# Of the data sets whose classes are their own; those of "folder" are the config's.
CLASS_TABLES = {
    "camvid": classes.CAMVID,
    "synthetic": classes.CAMVID,
    "cityscapes": classes.CITYSCAPES,
    "tfds": classes.CITYSCAPES,
}

# The splits that are made of others.
_PARTS = {"trainval": {"train", "val"}}


def get_class_table(config: ConfigDict) -> classes.ClassTable:
    """The classes of the config's data set.

    Raises:
      ValueError: if the config's own class table has a gap or a duplicate.
    """
    if config.data.source != "folder":
        return CLASS_TABLES[config.data.source]
    folder = config.folder
    return classes.create_class_table(
        "config.folder.classes", folder.classes, folder.ignored_label_ids, folder.ignored_colors
    )


def create_source(config: ConfigDict, split: str) -> sources.Source:
    """The examples of a split.

    Raises:
      ValueError: if files are missing; names them.
    """
    data, class_table = config.data, get_class_table(config)
    match data.source:
        case "camvid":
            return sources.load_camvid(data.data_dir, split, class_table)
        case "cityscapes":
            return load_cityscapes(data.data_dir, split, class_table)
        case "tfds":
            from regseg_jax.data.sources.tfds import TfdsCityscapes  # takes seconds to import

            return TfdsCityscapes(data.data_dir, split, class_table)
        case "folder":
            return load_folder(
                data.data_dir,
                split,
                class_table,
                image_dir=config.folder.image_dir,
                label_dir=config.folder.label_dir,
                label_stem=config.folder.label_stem,
                label_format=config.folder.label_format,
            )
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


def cache_source(config: ConfigDict, source: sources.Source, split: str) -> sources.Source:
    """The same examples from the cache of decoded ones, where the config asks for it."""
    if not config.data.cache_dir:
        return source
    # Data sets that share a folder of caches have files of their own.
    name = f"{config.data.source}_{split}_{source.fingerprint().data_set[:12]}"
    return load_cached(config.data.cache_dir, name, source)


def name_evaluation(train_split: str, eval_split: str) -> str:
    """The evaluation's name in logs and metrics: `val`, or `val_trained_on`.

    The latter where training saw images of the split, so that its scores say little of others.
    """
    train_parts, eval_parts = (_PARTS.get(split, {split}) for split in (train_split, eval_split))
    return f"{eval_split}_trained_on" if train_parts & eval_parts else eval_split


def create_sampler(
    config: ConfigDict, source: sources.Source, workdir: str | os.PathLike
) -> Sampler:
    """The order of training; finds the classes' centroids where it needs them.

    Raises:
      ValueError: if the split is smaller than a batch, or the file of centroids is of another
        data set.
    """
    if not config.data.class_uniform_share:
        return ShuffledEpochs(len(source), config.global_batch_size, config.seed)
    centroids = load_centroids(
        config.data.centroid_file or pathlib.Path(workdir) / "centroids.npz",
        source,
        get_class_table(config).num_classes,
        config.data.tile_size,
    )
    return ClassUniformEpochs(
        num_examples=len(source),
        global_batch_size=config.global_batch_size,
        seed=config.seed,
        centroids=centroids,
        share=config.data.class_uniform_share,
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
    config: ConfigDict, model: RegSeg, num_steps: int
) -> tuple[optax.GradientTransformationExtraArgs, Schedule]:
    """The optimizer and its learning-rate schedule over num_steps."""
    optimizer = config.optimizer
    learning_rate_fn = create_learning_rate_fn(
        optimizer.learning_rate,
        num_steps,
        optimizer.warmup_steps,
        schedule=optimizer.schedule,
        warmup_factor=optimizer.warmup_factor,
        power=optimizer.power,
    )
    tx = create_optimizer(learning_rate_fn, optimizer.weight_decay, optimizer.momentum)
    rate_search = create_rate_search(config, model, num_steps)
    return rate_search.create_optimizer(tx) if rate_search else tx, learning_rate_fn


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


def create_run_score_fn(config: ConfigDict, model: RegSeg) -> ScoreFn:
    """What scores the classes of whole images, as the config's evaluation does."""
    return create_score_fn(
        model, create_preprocess_fn(config), scales=config.eval.scales, flip=config.eval.flip
    )


def abstract_train_state(
    model: RegSeg, tx: optax.GradientTransformation, *, with_ema: bool = False
) -> TrainState:
    """Shapes and dtypes of a state, with nothing computed."""
    return jax.eval_shape(
        lambda: create_train_state(model, tx, jax.random.key(0), with_ema=with_ema)
    )


@dataclasses.dataclass(frozen=True)
class TrainedRun:
    """A run's best checkpoint and what is needed to use it.

    Attributes:
      config: of the run.
      model: in the run's precision.
      variables: {"params", "batch_stats"}.
      step: of the checkpoint.
      ema_variables: the same averaged over the steps; None unless `config.ema_decay` is set.
    """

    config: ConfigDict
    model: RegSeg
    variables: dict[str, Any]
    step: int
    ema_variables: dict[str, Any] | None = None


def load_run(workdir: str | os.PathLike) -> TrainedRun:
    """Reads the best checkpoint of a run by mean IoU, or the newest where none was evaluated.

    Raises:
      ValueError: if workdir holds no run or no checkpoint.
    """
    config = load_config(workdir)
    model = create_run_model(config)
    tx, _ = create_run_optimizer(config, model, num_steps=1)
    checkpoints = CheckpointManager(workdir, read_only=True)
    step = checkpoints.best_step()
    if step is None:
        raise ValueError(f"{workdir} holds no finished checkpoint yet; train for longer")
    like = abstract_train_state(model, tx, with_ema=config.ema_decay > 0)
    state = checkpoints.restore(step, like)
    checkpoints.close()
    return TrainedRun(config, model, state.variables, step, state.ema_variables)
