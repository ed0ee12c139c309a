"""read_curves(workdir): what a run logged, for a chart beside others."""

import os
import pathlib

from regseg_jax.data.dataset import name_evaluation
from regseg_jax.reports.curves import RunCurves
from regseg_jax.reports.metric_writer import METRICS_FILE, read_metrics
from regseg_jax.runs.workdir import load_config


def read_curves(workdir: str | os.PathLike) -> RunCurves:
    """Reads a run's log; the run may be in progress.

    Raises:
      ValueError: if workdir holds no run, or one that has logged nothing.
    """
    config, path = load_config(workdir), pathlib.Path(workdir) / METRICS_FILE
    records = read_metrics(path) if path.exists() else []
    if not records:
        raise ValueError(
            f"{path} has no records: the run was imported, or has just been started; leave it out"
        )
    name = name_evaluation(config.data.train_split, config.data.eval_split)
    return RunCurves(os.fspath(workdir), records, name)
