"""Does training here follow the curve of the author's code? Pairs of trainings, seed by seed.

python -m regseg_jax.benchmark.training_curves --config=camvid_half --config.num_epochs=10 \
    --config.data.data_dir=CAMVID --workdir=FOLDER --seeds=0,1,2,3,4,5 --output=FILE.json

In one seed all trainings have the same initial weights and order of images. They differ in who
computes the step and makes the crops, and in what draws these, see `training_ways.WAYS`. Every
training's losses are kept in the folder: start the same command again to continue, or with other
ways or seeds to add some. The table has everything in the folder.
"""

import itertools
import json
import pathlib
import statistics
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from absl import flags
from matplotlib.figure import Figure
from ml_collections import ConfigDict, config_flags
from PIL import Image

from regseg_jax.benchmark.core import run_benchmark
from regseg_jax.benchmark.training_ways import AUTHOR, WAYS, train
from regseg_jax.config import parse_config
from regseg_jax.reports.charts import render_figure
from regseg_jax.reports.paired import compare_pairs, format_difference
from regseg_jax.reports.pictures import save_png
from regseg_jax.reports.tables import format_table
from regseg_jax.runs.workdir import check_same_run, load_config
from regseg_jax.runtime.arguments import parse_choices, parse_seeds
from regseg_jax.runtime.files import write_json

_LAST_EPOCHS = 5  # whose mean loss is compared


def train_missing(
    config: ConfigDict, workdir: pathlib.Path, ways: list[str], seeds: list[int]
) -> None:
    """Trains in these ways what the folder has no losses of yet, seed by seed.

    Raises:
      ValueError: if config or data do not fit, or what is there had another config.
    """
    curves = read_curves(workdir)
    for way, by_seed in curves.items():
        for seed in by_seed:
            folder = workdir / f"{way}_{seed}"
            check_same_run(parse_config(_with_seed(config, seed)), load_config(folder), folder)
    for seed, way in itertools.product(seeds, ways):
        if seed in curves.get(way, {}):
            continue
        print(f"{way}, seed {seed}: {WAYS[way].description}", flush=True)
        curve = train(_with_seed(config, seed), workdir / f"{way}_{seed}", WAYS[way])
        write_json(workdir / f"{way}_{seed}.json", curve)


def _with_seed(config: ConfigDict, seed: int) -> ConfigDict:
    config = ConfigDict(config.to_dict())
    config.seed = seed
    return config


def read_curves(workdir: pathlib.Path) -> dict[str, dict[int, dict[str, Any]]]:
    """What `train_missing` has kept: by way, then by seed."""
    curves = {way: {} for way in WAYS}
    for file in sorted(workdir.glob("*.json")):  # with --output there, it may be one of them
        way, _, seed = file.stem.rpartition("_")
        if way in WAYS and seed.isdecimal():
            curves[way][int(seed)] = json.loads(file.read_text())
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
