"""The scores of a run's best checkpoint, or of a weights file."""

import dataclasses
import os
import pathlib

from ml_collections import ConfigDict

from regseg_jax.config import Config, parse_config
from regseg_jax.data.classes import ClassTable
from regseg_jax.data.dataset import Dataset, name_evaluation
from regseg_jax.data.sources.source import Source
from regseg_jax.ops.lowerings import use_lowerings
from regseg_jax.reports.pictures import save_png
from regseg_jax.runs.conv_lowerings import load_kept_lowerings
from regseg_jax.runs.parts import create_dataset
from regseg_jax.runs.scores import format_evaluation, format_scores
from regseg_jax.runs.trained import Trained, load_run
from regseg_jax.runs.workdir import MAY_CHANGE, check_same_run, load_config
from regseg_jax.training.evaluation import Evaluator
from regseg_jax.training.metrics import Scores
from regseg_jax.training.sharding import is_main_process


def evaluate_run(config: ConfigDict, workdir: str | os.PathLike) -> Scores:
    """Evaluates the best checkpoint of a run, prints the table and writes the pictures.

    Args:
      config: the run's; its data and eval keys may differ (an empty data_dir means the run's).
      workdir: of the run.

    Raises:
      ValueError: if workdir holds no run of this config, or the data does not fit.
    """
    saved, config = load_config(workdir), parse_config(config)
    check_same_run(config, saved, workdir, ignored=(*MAY_CHANGE, "data.", "eval."))
    data_dir = config.data.data_dir or saved.data.data_dir
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, data_dir=data_dir))
    dataset = create_dataset(config)
    source = dataset.create_source(config.data.eval_split, workdir)
    trained = Trained.from_run(load_run(workdir))
    name = name_evaluation(saved.data.train_split, config.data.eval_split)
    with use_lowerings(load_kept_lowerings(workdir)):
        return _evaluate(trained, config, dataset, source, name, workdir)


def evaluate_weights(config: ConfigDict, path_or_name: str, workdir: str | os.PathLike) -> Scores:
    """Evaluates a weights file, or shipped weights by name, prints the table, writes the pictures.

    Args:
      config: its data, eval and precision keys are read.
      path_or_name: see `load_weights`.
      workdir: the folder that the pictures are written to.

    Raises:
      ValueError: if there are no such weights, the data does not fit, or has other classes.
    """
    config = parse_config(config)
    dataset = create_dataset(config)
    trained = Trained.from_weights(path_or_name, dtype=config.dtype)
    check_classes(trained, dataset.class_table)
    source = dataset.create_source(config.data.eval_split)
    return _evaluate(trained, config, dataset, source, config.data.eval_split, workdir)


def check_classes(trained: Trained, class_table: ClassTable) -> None:
    """Raises ValueError if the labels of a data set are not of the weights' classes."""
    ours, theirs = trained.class_table.class_names, class_table.class_names
    if ours != theirs:
        raise ValueError(
            f"--weights={trained.path} tells {', '.join(ours)} apart, and the labels of "
            f"{class_table.name} are {', '.join(theirs)}; evaluate on data of the same classes"
        )


def _evaluate(
    trained: Trained,
    config: Config,
    dataset: Dataset,
    source: Source,
    name: str,
    workdir: str | os.PathLike,
) -> Scores:
    evaluator = Evaluator.create(
        trained.model, source, dataset.class_table, config.eval, config.data.num_workers
    )
    evaluation = evaluator(trained.variables)
    averaged = evaluator(trained.ema_variables) if trained.ema_variables else None
    if not is_main_process():
        return evaluation.scores
    if averaged:
        print(f"with averaged weights\n{format_scores(averaged.scores, dataset.class_table)}")
    print(f"{name}: checkpoint of step {trained.step}, {len(source)} images")
    if name != config.data.eval_split:
        print("the run was trained on these images: the scores say little about others")
    print(format_evaluation(evaluation, dataset.class_table))
    for title, panel in evaluation.panels.items():
        path = pathlib.Path(workdir) / "evaluation" / f"{title}.png"
        save_png(panel, path)
        print(path)
    return evaluation.scores
