"""Compiles a run's computations for devices that are not here."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from regseg_jax.benchmark.targets import Target
from regseg_jax.config import Config
from regseg_jax.data.augment import augment
from regseg_jax.data.sampling import ShuffledEpochs
from regseg_jax.data.synthetic.scenes import SyntheticScenes
from regseg_jax.models.folding import choose_format, fold_batch_norm
from regseg_jax.models.regseg import RegSeg
from regseg_jax.ops.lowerings import use_lowerings
from regseg_jax.runs import parts
from regseg_jax.runs.conv_lowerings import read_lowerings
from regseg_jax.runs.run import Run
from regseg_jax.training.eval_step import create_eval_step, split_images
from regseg_jax.training.evaluation import create_image_classify_fn
from regseg_jax.training.sharding import arrange_mesh, batch_sharded, replicated

MODES = ("train", "inference", "evaluation")
# Of the data sets whose images are all of one size, in pixels.
_IMAGE_SIZES = {"cityscapes": (1024, 2048), "tfds": (1024, 2048), "camvid": (720, 960)}
_NUM_STEPS = 1000  # of the schedules; none of them is run


def get_image_size(config: Config) -> tuple[int, int]:
    """Height and width of the data set's images.

    Raises:
      ValueError: if they are not known without looking.
    """
    if config.data.source == "synthetic":
        return config.data.synthetic_size
    if config.data.source not in _IMAGE_SIZES:
        raise ValueError(
            f"the size of the images of config.data.source={config.data.source!r} is not known "
            "here; add --image_size=HEIGHT,WIDTH"
        )
    return _IMAGE_SIZES[config.data.source]


def compile_program(
    config: Config, mode: str, target: Target, batch_size: int, image_size: tuple[int, int]
) -> jax.stages.Compiled:
    """Compiles what a run with this config does over and over.

    Args:
      config: of the run; its spatial_devices divide the target's.
      mode: `train`, a whole training step; `inference`, raw images to a class map; or
        `evaluation`, the same with the confusion matrix.
      target: what it is compiled for.
      batch_size: images at once over all devices; a multiple of their number, or of the number of
        groups that share images.
      image_size: height and width of the raw images.
    """
    create = {"train": _create_train_step, "inference": _create_inference}
    mesh = arrange_mesh(target.devices, config.spatial_devices)
    step, state = create.get(mode, _create_evaluation)(config, mesh, batch_size)
    whole, split = replicated(mesh), batch_sharded(mesh)
    arguments = [
        jax.tree.map(
            lambda x, place=place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place(x)), tree
        )
        for tree, place in (
            (state, lambda x: whole if mode == "train" else choose_format(x, whole)),
            (_describe_batch(config, mode, batch_size, image_size), lambda _: split),
        )
    ]
    table = read_lowerings(config.conv_lowerings) if config.conv_lowerings else None
    with use_lowerings(table):
        traced = step.trace(*arguments)
    return traced.lower(lowering_platforms=(target.platform,)).compile()


def _describe_batch(
    config: Config, mode: str, batch_size: int, size: tuple[int, int]
) -> dict[str, jax.ShapeDtypeStruct]:
    batch = {"image": jax.ShapeDtypeStruct((batch_size, *size, 3), jnp.uint8)}
    if mode != "inference":
        batch["label"] = jax.ShapeDtypeStruct((batch_size, *size), jnp.uint8)
    if mode == "train" and config.data.class_uniform_share:
        batch["centroid"] = jax.ShapeDtypeStruct((batch_size, 2), jnp.int32)
    if mode == "train" and config.data.source == "folder":
        batch["size"] = jax.ShapeDtypeStruct((batch_size, 2), jnp.int32)
    return batch


def _create_train_step(config: Config, mesh: Mesh, batch_size: int) -> tuple[Callable, object]:
    """The step that `Run` makes, over devices and for a batch that no run has; and its state."""
    evaluation = dataclasses.replace(config.eval, precise_bn_images=0)
    config = dataclasses.replace(config, global_batch_size=batch_size, eval=evaluation)
    model = parts.create_run_model(config)
    tx = parts.create_run_optimizer(config, model, _NUM_STEPS)
    no_images = SyntheticScenes(num_examples=batch_size, height=32, width=32, seed=0)
    run = Run(
        config=config,
        workdir=pathlib.Path(),
        lock=None,
        class_table=parts.create_dataset(config).class_table,
        train_source=no_images,
        eval_source=no_images,
        sampler=ShuffledEpochs(batch_size, batch_size, seed=0),
        mesh=mesh,
        model=model,
        tx=tx,
        learning_rate_fn=parts.create_run_learning_rate_fn(config, _NUM_STEPS),
        rate_search=parts.create_rate_search(config, model, _NUM_STEPS),
        augment_fn=functools.partial(augment, config=config.augment),
        conv_lowerings=None,  # `compile_program` puts it to use
        class_weights=None,
        initial=None,
        num_steps=_NUM_STEPS,
        eval_name="val",
    )
    return run.create_train_step(), parts.abstract_train_state(model, tx, with_ema=run.with_ema)


def _create_evaluation(config: Config, mesh: Mesh, batch_size: int) -> tuple[Callable, object]:
    """As `Evaluator.create` makes it."""
    model = parts.create_run_model(config)
    step = create_eval_step(model, create_image_classify_fn(model, config.eval), mesh)
    jitted = jax.jit(step, out_shardings=(batch_sharded(mesh), replicated(mesh)))
    return jitted, _abstract_variables(model)


def _create_inference(config: Config, mesh: Mesh, batch_size: int) -> tuple[Callable, object]:
    model = parts.create_run_model(config)
    classify_fn = split_images(create_image_classify_fn(model, config.eval), mesh)

    def infer(variables: dict, batch: dict) -> jax.Array:
        return classify_fn(variables, batch["image"], batch["image"].shape[1:3])

    return jax.jit(infer), _abstract_variables(model)


def _abstract_variables(model: RegSeg) -> dict:
    """Batch norms folded, as evaluation and prediction run it."""

    def create() -> dict:
        variables = model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), train=False)
        return fold_batch_norm(variables, model.dtype)

    return jax.eval_shape(create)


def find_largest_batch(
    count_memory: Callable[[int], int | None], limit: int, first: int, max_compilations: int
) -> tuple[int, int | None]:
    """Brackets the largest batch whose memory fits, with few compilations.

    Memory grows about linearly, so the next batch to try is where the line through the last two
    meets the limit, between those that are known; it is the middle where the compiler gave up.

    Args:
      count_memory: bytes that a batch needs; None if the compiler finds no way to fit it.
      limit: bytes that there are.
      first: the batch to begin with.
      max_compilations: calls of count_memory.

    Returns:
      The largest batch that was seen to fit, 0 for none, and the smallest that was seen not to;
      None for none.
    """
    fits, too_large, points, batch = 0, None, [(0, 0)], first
    for _ in range(max_compilations):
        memory = count_memory(batch)
        if memory is not None and memory <= limit:
            fits = batch
        else:
            too_large = batch
        if too_large == fits + 1:
            break
        if memory is None:
            batch = (fits + too_large) // 2
            continue
        points.append((batch, memory))
        (low, low_memory), (high, high_memory) = points[-2:]
        slope = (high_memory - low_memory) / (high - low)
        batch = max(int(low + (limit - low_memory) / (slope or 1)), fits + 1)
        if too_large:
            batch = min(batch, too_large - 1)
    return fits, too_large
