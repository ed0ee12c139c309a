"""Does training here follow the curve of the author's code? Pairs of trainings, seed by seed.

python -m regseg_jax.benchmark.training_curves --config=camvid_half --config.num_epochs=10 \
    --config.data.data_dir=CAMVID --workdir=FOLDER --seeds=0,1,2,3,4,5 --output=FILE.json

In one seed all trainings have the same initial weights and order of images. They differ in who
computes the step and makes the crops, and in what draws these, see `WAYS`. Every training's losses
are kept in the folder: start the same command again to continue, or with other ways or seeds to add
some. The table has everything in the folder.
"""

import contextlib
import functools
import itertools
import json
import pathlib
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from matplotlib.figure import Figure
from ml_collections import ConfigDict, config_flags
from PIL import Image
from tqdm import tqdm

from regseg_jax.benchmark.core import run_benchmark
from regseg_jax.benchmark.pillow_augment import Crop, apply_crop, draw_crop
from regseg_jax.benchmark.torch_backend import TorchTraining
from regseg_jax.data.augment import Placement, draw_placement
from regseg_jax.data.pipeline import Batch
from regseg_jax.ops.lowerings import use_lowerings
from regseg_jax.reports.charts import render_figure
from regseg_jax.reports.paired import compare_pairs, format_difference
from regseg_jax.reports.pictures import save_png
from regseg_jax.reports.tables import format_table
from regseg_jax.runs.run import Run
from regseg_jax.runtime.arguments import parse_choices, parse_seeds
from regseg_jax.runtime.files import write_json
from regseg_jax.training.losses import LossConfig
from regseg_jax.training.sharding import shard_batch

AUTHOR = "author"
_LAST_EPOCHS = 5  # whose mean loss is compared


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
        if (
            run.config.loss != LossConfig()
            or run.config.augment.rand_augment_num_ops
            or run.train_source.image_sizes is not None
        ):
            raise ValueError(
                "ways are compared with the plain cross-entropy, without RandAugment, on images of "
                "one size: change config.loss, config.augment or config.data"
            )
        losses, variables = _train_in_torch(run, way) if way.in_torch else _train_in_jax(run)
        mean_iou = run.create_evaluator()(variables).scores.mean_iou
    steps_per_epoch = run.sampler.steps_per_epoch
    return {"losses": losses, "steps_per_epoch": steps_per_epoch, "mean_iou": mean_iou}


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


def train_missing(
    config: ConfigDict, workdir: pathlib.Path, ways: list[str], seeds: list[int]
) -> None:
    """Trains in these ways what the folder has no losses of yet, seed by seed."""
    for seed, way in itertools.product(seeds, ways):
        file = workdir / f"{way}_{seed}.json"
        if file.exists():
            continue
        print(f"{way}, seed {seed}: {WAYS[way].description}", flush=True)
        run_config = ConfigDict(config.to_dict())
        run_config.seed = seed
        curve = train(run_config, workdir / f"{way}_{seed}", WAYS[way])
        write_json(file, {"way": way, "seed": seed, **curve})


def read_curves(workdir: pathlib.Path) -> dict[str, dict[int, dict[str, Any]]]:
    """What `train_missing` has kept: by way, then by seed."""
    curves = {way: {} for way in WAYS}
    for file in sorted(workdir.glob("*_*.json")):
        curve = json.loads(file.read_text())
        curves[curve["way"]][curve["seed"]] = curve
    return {way: by_seed for way, by_seed in curves.items() if by_seed}


def summarize_epochs(curve: Mapping[str, Any]) -> np.ndarray:
    """The mean training loss of each epoch of a curve."""
    return np.reshape(curve["losses"], (-1, curve["steps_per_epoch"])).mean(1)


def compare_ways(
    curves: Mapping[str, Mapping[int, Any]], measure: Callable[[Any], float]
) -> list[dict[str, Any]]:
    """Compares every way with the author's, by the seeds that both have.

    Args:
      curves: as `read_curves` returns them.
      measure: a number of a curve.

    Returns:
      For each `way` its `values` by seed, their `mean` and `std` (None of a single one), and, for
      ways other than the author's, `minus_author`, see `compare_pairs`.
    """
    values = {
        way: {seed: float(measure(curve)) for seed, curve in by_seed.items()}
        for way, by_seed in curves.items()
    }
    rows = []
    for way, by_seed in values.items():
        numbers = list(by_seed.values())
        row = {"way": way, "values": by_seed, "mean": statistics.mean(numbers)}
        row["std"] = statistics.stdev(numbers) if len(numbers) > 1 else None
        if way != AUTHOR:
            row["minus_author"] = compare_pairs(by_seed, values.get(AUTHOR, {}))
        rows.append(row)
    return rows


def draw_training_curves(curves: Mapping[str, Mapping[int, Any]]) -> Image.Image:
    """Charts the mean loss of each epoch: a thin line for every training, a thick one for a way."""
    figure = Figure(figsize=(8, 5), dpi=100, layout="constrained")
    axes = figure.subplots()
    for i, (way, by_seed) in enumerate(curves.items()):
        losses = [summarize_epochs(curve) for curve in by_seed.values()]
        epochs, color = np.arange(1, len(losses[0]) + 1), f"C{i}"
        for loss in losses:
            axes.plot(epochs, loss, color=color, linewidth=0.5, alpha=0.5)
        label = f"{way}, {len(losses)} seeds"
        axes.plot(epochs, np.mean(losses, axis=0), color=color, linewidth=2, label=label)
    axes.set_yscale("log")
    axes.set_xlabel("epoch")
    axes.set_ylabel("training loss")
    axes.grid(which="both", alpha=0.3)
    axes.legend()
    return render_figure(figure)


def format_comparison(rows: list[dict[str, Any]], scale: float, digits: int) -> str:
    """A table of what `compare_ways` returns, with numbers times scale."""
    cells = []
    for row in rows:
        mean, std = f"{scale * row['mean']:.{digits}f}", row["std"]
        std = "-" if std is None else f"{scale * std:.{digits}f}"
        difference = format_difference(row.get("minus_author"), scale, digits)
        cells.append((row["way"], str(len(row["values"])), mean, std, *difference))
    return format_table(("way", "seeds", "mean", "std", "minus the author's", "p"), cells)


def measure(values: flags.FlagValues) -> dict[str, Any]:
    """Trains what the flags name, and compares what the folder then has."""
    ways, seeds = parse_choices(values.ways, "ways", list(WAYS)), parse_seeds(values.seeds)
    workdir = pathlib.Path(values.workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    train_missing(values.config, workdir, ways, seeds)
    curves = read_curves(workdir)
    losses = compare_ways(curves, lambda curve: summarize_epochs(curve)[-_LAST_EPOCHS:].mean())
    mean_iou = compare_ways(curves, lambda curve: curve["mean_iou"])
    print(f"training loss, mean of the last {_LAST_EPOCHS} epochs")
    print(format_comparison(losses, 1, 4))
    print("mean IoU of the evaluation split at the end, %")
    print(format_comparison(mean_iou, 100, 2))
    picture = workdir / "training_curves.png"
    save_png(draw_training_curves(curves), picture)
    print(f"wrote {picture}")
    epochs = {
        way: {seed: summarize_epochs(curve).tolist() for seed, curve in by_seed.items()}
        for way, by_seed in curves.items()
    }
    descriptions = {way: WAYS[way].description for way in curves}
    for row in (*losses, *mean_iou):
        if pair := row.get("minus_author"):
            row["minus_author"] = pair._asdict()
    return {"ways": descriptions, "last_epochs": losses, "mean_iou": mean_iou, "epochs": epochs}


if __name__ == "__main__":
    config_flags.DEFINE_config_file("config", None, "The recipe.")
    flags.DEFINE_string("workdir", None, "A folder for the losses of every training.")
    flags.DEFINE_string("ways", f"{AUTHOR},recipe", f"Of {', '.join(WAYS)}.")
    flags.DEFINE_string("seeds", "0,1,2,3,4,5", "Of the initial weights, orders and crops.")
    flags.mark_flags_as_required(["config", "workdir"])
    run_benchmark(measure, "regseg_jax.benchmark.training_curves")
