"""Describes a model without running it, a data set before training, or runs.

The parameters, operations and field of view of each block:

    python -m regseg_jax.describe --model=exp48_decoder26 --size=1024,2048 --output=/tmp/describe

The images, sizes and pixels of each class of the splits that a config trains and scores on, and
everything that is wrong with their files, at once; also as `data.json` and a picture, `data.png`:

    python -m regseg_jax.describe --config=configs/folder.py --data --output=/tmp/describe

Runs, in progress or complete: a table of their last and best scores, and `runs.png` with the curves
of all (loss, mean IoU, learning rate, images a second):

    python -m regseg_jax.describe --output=/tmp/describe --runs RUN RUN ...
"""

from collections.abc import Sequence
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict, config_flags

from regseg_jax.config import parse_config
from regseg_jax.data.survey import survey_source
from regseg_jax.models import field_of_view
from regseg_jax.models.regseg import RegSeg, create_model
from regseg_jax.reports.charts import draw_field_of_view
from regseg_jax.reports.curves import draw_curves, format_runs
from regseg_jax.reports.data_picture import draw_examples
from regseg_jax.reports.data_table import format_data, summarize_data
from regseg_jax.reports.model_table import format_description
from regseg_jax.reports.pictures import save_png
from regseg_jax.runs.curves import read_curves
from regseg_jax.runs.parts import create_dataset
from regseg_jax.runtime.arguments import parse_size
from regseg_jax.runtime.command import run_command
from regseg_jax.runtime.files import write_json


def describe_model(model: RegSeg, size: tuple[int, int], output: str | Path | None) -> None:
    """Prints the description, and writes the chart into the folder `output` unless it is None."""
    print(format_description(model, size))
    if output is not None:
        variant = model.variant
        layers = field_of_view.trace_field_of_view(variant.backbone)
        path = Path(output) / f"field_of_view_{variant.name}.png"
        save_png(draw_field_of_view(variant.name, layers, size), path)
        print(f"wrote {path}")


def describe_data(config: ConfigDict, output: str | Path) -> None:
    """Decodes every example of the training and evaluation splits and says what they hold.

    Prints the table; writes `data.json` and, if an example can be read, `data.png`.

    Raises:
      ValueError: after all of that, if something is wrong with a file or a split is missing.
    """
    parsed = parse_config(config)
    dataset = create_dataset(parsed)
    sources, surveys, problems = {}, {}, []
    for split in dict.fromkeys((parsed.data.train_split, parsed.data.eval_split)):
        try:
            sources[split] = dataset.create_source(split)
        except ValueError as error:
            problems.append(f"{split}: {error}")
            continue
        surveys[split] = survey_source(
            sources[split], dataset.class_table.num_classes, f"reading {split}", keep_going=True
        )
        problems += [f"{split}: {error}" for error in surveys[split].errors]
    summary = summarize_data(surveys, sources, dataset.class_table, problems)
    print(format_data(summary, dataset.class_table))
    write_json(Path(output) / "data.json", summary)
    print(f"wrote {Path(output) / 'data.json'}")
    if picture := draw_examples(sources, dataset.class_table):
        save_png(picture, Path(output) / "data.png")
        print(f"wrote {Path(output) / 'data.png'}")
    if problems:
        raise ValueError(f"{len(problems)} problems in the data set; the list is above")


def describe_runs(workdirs: Sequence[str], output: str | Path) -> None:
    """Prints a table of the runs' scores, and writes their curves into the folder `output`.

    Raises:
      ValueError: if a folder holds no run, or one that has logged nothing.
    """
    runs = [read_curves(workdir) for workdir in dict.fromkeys(workdirs)]
    print(format_runs(runs))
    path = Path(output) / "runs.png"
    save_png(draw_curves(runs), path)
    print(f"wrote {path}")


def main(argv: Sequence[str]) -> None:
    """Describes what the flags name.

    Raises:
      ValueError: if there is no such model or run, the data set has a fault, or a size or argument
        is bad.
    """
    values = flags.FLAGS
    if values.runs:
        if values.data or values.config is not None:
            raise ValueError("--runs describes runs alone; leave out --data and --config")
        if not argv:
            raise ValueError("--runs needs the folders of runs: --runs RUN RUN ...")
        describe_runs(argv, values.output)
        return
    if argv:
        raise ValueError(f"unexpected arguments {argv}; flags start with --")
    if values.data:
        if values.config is None:
            raise ValueError("--data needs --config, the recipe that names the data set")
        describe_data(values.config, values.output)
        return
    if values.config is not None:
        raise ValueError("--config is for --data; a model is named by --model")
    size = parse_size(values.size)
    describe_model(create_model(values.model, values.num_classes), size, values.output)


def run() -> None:
    """Defines the flags and runs the command."""
    flags.DEFINE_string(
        "model", "exp48_decoder26", "BACKBONE_DECODER, an alias, or a variant file."
    )
    flags.DEFINE_integer("num_classes", 19, "Classes of the model's output.")
    flags.DEFINE_string("size", "1024,2048", "HEIGHT,WIDTH of the image.")
    flags.DEFINE_bool("data", False, "Describe the data set of --config instead of a model.")
    flags.DEFINE_bool("runs", False, "Describe runs, whose folders are the arguments.")
    config_flags.DEFINE_config_file("config", None, "With --data: the recipe.")
    flags.DEFINE_string("output", ".", "Folder for what is written.")
    run_command(main, "regseg_jax.describe")


if __name__ == "__main__":
    run()
