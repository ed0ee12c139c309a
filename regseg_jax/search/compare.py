"""Compares searched dilation rates with hand-tuned, clipped and random ones, trained from scratch.

python -m regseg_jax.search.compare --config=configs/camvid_half.py --found=SEARCH/found.json \
    --workdir=COMPARISON --seeds=3 --config.data.data_dir=CAMVID

Every run has the config's whole budget and differs from the others by its model and seed alone; in
one seed, all see the same batches. Random dilation rates differ from seed to seed. The clipped ones
are the hand-tuned rates, which are made for large images, but at most half of the shorter side of
the map at 1/16, so that no tap sees more padding than map.
Start the same command again to continue: finished runs are kept.
"""

import dataclasses
import json
import os
import pathlib
import random
import statistics
from collections.abc import Sequence

import numpy as np
from absl import flags
from matplotlib.figure import Figure
from ml_collections import ConfigDict, config_flags
from PIL import Image

from regseg_jax.config import parse_config
from regseg_jax.models import variants
from regseg_jax.models.field_of_view import compute_field_of_view, max_dilation_rate, widen
from regseg_jax.models.searched_model import searched_layers
from regseg_jax.reports.charts import render_figure
from regseg_jax.reports.model_table import count_rows
from regseg_jax.reports.paired import PairedDifference, compare_pairs, format_difference
from regseg_jax.reports.pictures import save_png
from regseg_jax.reports.tables import format_table
from regseg_jax.runs.parts import create_run_model
from regseg_jax.runs.train import train
from regseg_jax.runs.workdir import check_same_run, load_config
from regseg_jax.runtime.command import run_command
from regseg_jax.runtime.environment import describe_environment
from regseg_jax.runtime.files import write_json

RATES = ("searched", "hand-tuned", "clipped", "random")


@dataclasses.dataclass(frozen=True)
class Run:
    """One of the runs that are compared.

    Attributes:
      rates: one of `RATES`.
      model: the variant's name.
      seed: of the run.
    """

    rates: str
    model: str
    seed: int

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"{self.rates}_{self.seed}"


def plan_runs(
    found: variants.Variant,
    hand_tuned: variants.Variant,
    num_seeds: int,
    crop_size: tuple[int, int],
) -> list[Run]:
    """The runs, seed by seed, so that every kind of dilation rates has results early."""
    clipped, runs = clip_variant(hand_tuned, crop_size), []
    for seed in range(num_seeds):
        random_variant = draw_random_variant(found, hand_tuned, seed)
        models = (found, hand_tuned, clipped, random_variant)
        runs += [Run(rates, model.name, seed) for rates, model in zip(RATES, models, strict=True)]
    return runs


def clip_variant(variant: variants.Variant, crop_size: tuple[int, int]) -> variants.Variant:
    """The variant with rates of at most half the shorter side of a crop's map at 1/16."""
    largest = max(-(-min(crop_size) // 16) // 2, 1)
    rates = variants.get_dilation_rates(variant.backbone)
    clipped = [[min(rate, largest) for rate in block] for block in rates]
    return variants.create_variant(_name_backbone(variant), variant.decoder, clipped)


def _name_backbone(variant: variants.Variant) -> str:
    return variant.name.partition("_")[0].partition("@")[0]


def draw_random_variant(
    found: variants.Variant, hand_tuned: variants.Variant, seed: int
) -> variants.Variant:
    """The searched backbone with rates uniform between 1 and the bound.

    Late bounds are in the hundreds, so no rate exceeds the largest of the other two variants.
    """
    rng = random.Random(seed)
    layers = searched_layers(found.backbone)
    pairs = [variants.get_dilation_rates(v.backbone) for v in (found, hand_tuned)]
    largest = max(rate for rates in pairs for block in rates for rate in block)
    seen, drawn = layers[0].field_of_view_before, []
    for layer in layers:
        bound = min(max_dilation_rate(seen, layer.stride_before), largest)
        drawn.append(sorted(rng.randint(1, bound) for _ in layer.dilation_rates))
        seen = widen(seen, layer.stride_before, max(drawn[-1]))
    return variants.create_variant(_name_backbone(found), found.decoder, drawn)


def compare(
    config: ConfigDict, found: str, workdir: str | os.PathLike, num_seeds: int
) -> list[dict] | None:
    """Trains what is not trained yet, then writes `comparison.json` and `comparison.png`.

    Args:
      config: of every run, except for its seed; its model has the hand-tuned dilation rates.
      found: a variant file or a model's name.
      workdir: a folder with a run in each subfolder.
      num_seeds: runs of each kind of rates.

    Returns:
      A record for each run; None if SIGTERM stopped one.

    Raises:
      ValueError: if config, found or workdir do not fit.
    """
    parsed = parse_config(config)
    if config.search.enabled:
        raise ValueError(
            "config.search.enabled is True; pass the config of a run with fixed dilation rates"
        )
    searched, hand_tuned = variants.get_variant(found), variants.get_variant(config.model)
    crop_size = config.augment.crop_size
    runs = plan_runs(searched, hand_tuned, num_seeds, crop_size)
    workdir, records = pathlib.Path(workdir), []
    for i, run in enumerate(runs):
        run_config = ConfigDict(config.to_dict())
        run_config.model, run_config.seed = run.model, run.seed
        folder = workdir / run.name
        if not (folder / "result.json").exists():
            print(f"run {i + 1} of {len(runs)}: {run.name}, {run.model}", flush=True)
            evaluation = train(run_config, folder)
            if evaluation is None:
                print("stopped; start the same command again to continue")
                return None
            write_json(folder / "result.json", {"mean_iou": evaluation.scores.mean_iou})
        check_same_run(parse_config(run_config), load_config(folder), folder)
        result = json.loads((folder / "result.json").read_text())
        seen = compute_field_of_view(variants.get_variant(run.model).backbone)
        records.append({**dataclasses.asdict(run), "field_of_view": seen, **result})
    differences = compare_with_searched(records)
    pairs = {rates: pair and pair._asdict() for rates, pair in differences.items()}
    # Of an image; dilation rates change nothing of it.
    macs = sum(row.macs for row in count_rows(create_run_model(parsed), crop_size))
    content = {"environment": describe_environment(), "macs": macs, "runs": records}
    content["searched_minus"] = pairs
    write_json(workdir / "comparison.json", content)
    save_png(draw_comparison(records), workdir / "comparison.png")
    return records


def compare_with_searched(records: Sequence[dict]) -> dict[str, PairedDifference | None]:
    """The mean IoU of the searched rates minus that of each other kind, by the seeds of both."""
    scores = {
        rates: {
            record["seed"]: record["mean_iou"] for record in records if record["rates"] == rates
        }
        for rates in RATES
    }
    searched = scores.pop("searched")
    return {rates: compare_pairs(searched, by_seed) for rates, by_seed in scores.items()}


def format_comparison(records: Sequence[dict]) -> str:
    """A table of each kind of rates: its runs, their mean and standard deviation, in percent.

    And the searched rates' mean minus its, with the standard error over the pairs.
    """
    rows, differences = [], compare_with_searched(records)
    for rates in RATES:
        runs = [record for record in records if record["rates"] == rates]
        scores = [100 * record["mean_iou"] for record in runs]
        std = f"{statistics.stdev(scores):.2f}" if len(scores) > 1 else "-"
        fields = sorted({record["field_of_view"] for record in runs})
        rows.append(
            (
                rates,
                ", ".join(map(str, fields)),
                ", ".join(f"{score:.2f}" for score in scores),
                f"{statistics.mean(scores):.2f}",
                std,
                format_difference(differences.get(rates), 100, 2)[0],
            )
        )
    headers = ("rates", "field of view", "mean IoU %", "mean", "std", "searched minus it")
    return format_table(headers, rows)


def draw_comparison(records: Sequence[dict]) -> Image.Image:
    """Charts the mean IoU of every run as a dot, and the mean of each kind of rates as a line."""
    figure = Figure(figsize=(7, 4.5), dpi=100, layout="constrained")
    axes = figure.subplots()
    for position, rates in enumerate(RATES):
        scores = [100 * r["mean_iou"] for r in records if r["rates"] == rates]
        spread = np.linspace(-0.1, 0.1, len(scores)) if len(scores) > 1 else [0]
        axes.plot(position + np.array(spread), scores, "o")
        mean = statistics.mean(scores)
        axes.hlines(mean, position - 0.25, position + 0.25, color="black", linewidth=1)
        axes.annotate(f" {mean:.2f}", (position + 0.25, mean), va="center")
    axes.set_xticks(range(len(RATES)), RATES)
    axes.set_xlim(-0.5, len(RATES) - 0.3)
    axes.set_ylabel("mean IoU (%)")
    axes.set_title("one dot per seed; the line is the mean")
    axes.grid(axis="y", alpha=0.3)
    return render_figure(figure)


def main(argv: list[str]) -> None:
    """Compares and prints the table."""
    if argv:
        raise ValueError(f"unexpected arguments {argv}; flags start with --")
    values = flags.FLAGS
    records = compare(values.config, values.found, values.workdir, values.seeds)
    if records is not None:
        print(format_comparison(records))
        print(f"wrote {values.workdir}/comparison.json and comparison.png")


def run() -> None:
    """Defines the flags and runs the command."""
    config_flags.DEFINE_config_file("config", None, "The recipe; its model has the tuned rates.")
    flags.DEFINE_string("found", None, "The variant file that a search wrote.")
    flags.DEFINE_string("workdir", None, "The comparison's folder, with a run in each subfolder.")
    flags.DEFINE_integer("seeds", 3, "Runs of each kind of rates.", lower_bound=1)
    flags.mark_flags_as_required(["config", "found", "workdir"])
    run_command(main, "regseg_jax.search.compare")


if __name__ == "__main__":
    run()
