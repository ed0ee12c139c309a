"""The ways of training that `benchmark.training_curves` compares: ours, the author's, mixtures."""

import contextlib
import functools
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from PIL import Image
from tqdm import tqdm

from regseg_jax.benchmark.pillow_augment import Crop, apply_crop, draw_crop
from regseg_jax.benchmark.torch_backend import TorchTraining
from regseg_jax.data.augment import Placement, draw_placement
from regseg_jax.data.pipeline import Batch
from regseg_jax.ops.lowerings import use_lowerings
from regseg_jax.runs.run import Run
from regseg_jax.training.losses import LossConfig
from regseg_jax.training.optimizer import OptimizerConfig
from regseg_jax.training.sharding import shard_batch

AUTHOR = "author"

# Draws the crops of images of a size; called with each step's number.
DrawCrops = Callable[[int, Sequence[tuple[int, int]]], list[Crop]]


class Way(NamedTuple):
    """Who computes the steps of a training, and what draws its crops.

    Attributes:
      description: for the table.
      generator: a bit generator of NumPy's, or the name of an implementation of JAX's keys.
      in_torch: whether PyTorch computes the steps on crops that Pillow makes; else it is all as
        `regseg_jax.main` has it, and the generator what it uses.
      partitionable: `jax_threefry_partitionable`.
    """

    description: str
    generator: type[np.random.BitGenerator] | str
    in_torch: bool = True
    partitionable: bool = True


WAYS = {
    AUTHOR: Way("PyTorch's step, Pillow's pixels, crops drawn by NumPy's PCG64", np.random.PCG64),
    "recipe": Way("as `regseg_jax.main` trains: crops drawn by Threefry", "threefry2x32", False),
    "threefry": Way("the author's, but at the crops of the recipe", "threefry2x32"),
    "threefry_sequential": Way(
        "the author's, but crops drawn by Threefry, not partitionable",
        "threefry2x32",
        partitionable=False,
    ),
    "rbg": Way("the author's, but crops drawn by XLA's RngBitGenerator", "rbg"),
    "philox": Way("the author's, but crops drawn by NumPy's Philox", np.random.Philox),
}


def train(config: ConfigDict, folder: pathlib.Path, way: Way) -> dict[str, Any]:
    """Trains in one way.

    Args:
      config: of the run: plain cross-entropy, images of one size, no RandAugment.
      folder: of the run; it gets no checkpoints.
      way: see `WAYS`.

    Returns:
      `losses`, of every step, `steps_per_epoch`, and `mean_iou` of the evaluation split at the end.

    Raises:
      ValueError: if config, data or folder do not fit.
    """
    with contextlib.closing(Run.create(config, folder)) as run:
        _check_comparable(run)
        losses, variables = _train_in_torch(run, way) if way.in_torch else _train_in_jax(run)
        mean_iou = run.create_evaluator()(variables).scores.mean_iou
    steps_per_epoch = run.sampler.steps_per_epoch
    return {"losses": losses, "steps_per_epoch": steps_per_epoch, "mean_iou": mean_iou}


def _check_comparable(run: Run) -> None:
    config, default = run.config, OptimizerConfig()
    if (
        config.loss != LossConfig()
        or config.precision != "float32"
        or config.optimizer.momentum != default.momentum
        or config.optimizer.weight_decay != default.weight_decay
    ):
        raise ValueError(
            "PyTorch's step here has the plain cross-entropy, float32, and the author's momentum "
            "and weight decay: leave config.loss, config.precision and these as they are by default"
        )
    if config.augment.rand_augment_num_ops or run.train_source.image_sizes is not None:
        raise ValueError(
            "crops are drawn here without RandAugment, of images of one size: set "
            "config.augment.rand_augment_num_ops to 0, and choose another config.data"
        )


def _train_in_jax(run: Run) -> tuple[list[float], dict[str, Any]]:
    state, train_step, losses = run.create_state(), run.create_train_step(), []
    with use_lowerings(run.conv_lowerings):
        for batch in _iterate_batches(run):
            state, metrics = train_step(state, shard_batch(batch, run.mesh))
            losses.append(metrics["loss"])
    return [float(loss) for loss in losses], state.variables


def _train_in_torch(run: Run, way: Way) -> tuple[list[float], dict[str, Any]]:
    training = TorchTraining(run.model, run.create_state().variables)
    draw_crops, crop_size, losses = create_draw(run, way), run.config.augment.crop_size, []
    for step, batch in enumerate(_iterate_batches(run)):
        crops = draw_crops(step, [label.shape for label in batch["label"]])
        pairs = [
            apply_crop(Image.fromarray(image), Image.fromarray(label), crop, crop_size)
            for image, label, crop in zip(batch["image"], batch["label"], crops, strict=True)
        ]
        images, labels = (np.stack(x) for x in zip(*pairs, strict=True))
        losses.append(training.step(images, labels, float(run.learning_rate_fn(step))))
    return losses, training.variables


def create_draw(run: Run, way: Way) -> DrawCrops:
    """What draws the crops of a training in PyTorch."""
    config = run.config.augment
    if not isinstance(way.generator, str):
        rng = np.random.Generator(way.generator((run.config.seed, 1)))
        return lambda step, sizes: [draw_crop(size, config, rng) for size in sizes]

    seed_key = jax.random.key_data(run.step_rng)
    words = len(jax.random.key_data(jax.random.key(0, impl=way.generator)))
    run_key = jax.random.wrap_key_data(jnp.resize(seed_key, words), impl=way.generator)

    @functools.partial(jax.jit, static_argnums=1)
    def draw_placements(step: jax.Array, sizes: tuple[tuple[int, int], ...]) -> Placement:
        keys = jax.random.split(jax.random.fold_in(run_key, step), len(sizes))
        return jax.vmap(lambda key, size: draw_placement(key, size, config))(keys, np.array(sizes))

    def draw(step: int, sizes: Sequence[tuple[int, int]]) -> list[Crop]:
        with jax.threefry_partitionable(way.partitionable):
            placements = jax.device_get(draw_placements(step, tuple(sizes)))
        rows = zip(*(x.tolist() for x in placements), strict=True)
        return [Crop(tuple(size), tuple(start), flip, ()) for size, start, flip in rows]

    return draw


def _iterate_batches(run: Run) -> Iterator[Batch]:
    with run.create_batches(start_step=0, num_steps=run.num_steps) as batches:
        yield from tqdm(batches, total=run.num_steps, unit="step", disable=None)
