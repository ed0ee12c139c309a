"""Trained weights, of a run or a weights file, opened to evaluate, predict or export."""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

from jax.typing import DTypeLike

from regseg_jax.config import Config
from regseg_jax.data.classes import IGNORE_LABEL, ClassTable
from regseg_jax.models.regseg import RegSeg
from regseg_jax.runs.counters import load_counters
from regseg_jax.runs.parts import (
    abstract_train_state,
    create_dataset,
    create_run_model,
    create_run_optimizer,
)
from regseg_jax.runs.workdir import load_config
from regseg_jax.training.checkpoints import CheckpointManager
from regseg_jax.training.evaluation import EvalConfig
from regseg_jax.weights.load import load_weights


@dataclasses.dataclass(frozen=True)
class TrainedRun:
    """A run's best checkpoint and what is needed to use it.

    Attributes:
      workdir: of the run.
      config: of the run.
      model: in the run's precision.
      variables: {"params", "batch_stats"}.
      step: of the checkpoint.
      ema_variables: the same averaged over the steps; None unless `config.ema_decay` is set.
    """

    workdir: str | os.PathLike
    config: Config
    model: RegSeg
    variables: dict[str, Any]
    step: int
    ema_variables: dict[str, Any] | None = None

    @property
    def class_table(self) -> ClassTable:
        """The classes that the run was trained on; label ids are its label files' values.

        Label files of colours have the label ids of the class table: those of CamVid's original
        edition are SegNet's. Cityscapes always has its label ids, which its server and tools want.
        """
        table, config = create_dataset(self.config).class_table, self.config
        if config.data.source == "folder" and config.folder.label_format == "train_ids":
            label_ids = tuple(range(table.num_classes))
            return dataclasses.replace(
                table, label_ids=label_ids, ignored_label_ids=(IGNORE_LABEL,)
            )
        return table


def load_run(workdir: str | os.PathLike) -> TrainedRun:
    """Reads the best checkpoint of a run by mean IoU, or the newest if none was evaluated.

    Raises:
      ValueError: if workdir holds no run or no checkpoint.
    """
    config = load_config(workdir)
    model = create_run_model(config)
    checkpoints = CheckpointManager(workdir, read_only=True)
    step = checkpoints.best_step()
    if step is None:
        raise ValueError(f"{workdir} holds no finished checkpoint yet; train for longer")
    tx = create_run_optimizer(config, model, num_steps=1)
    like = abstract_train_state(model, tx, with_ema=config.ema_decay > 0)
    state = checkpoints.restore(step, like)
    checkpoints.close()
    return TrainedRun(workdir, config, model, state.variables, step, state.ema_variables)


@dataclasses.dataclass(frozen=True)
class Trained:
    """What using trained weights needs, wherever they came from.

    Attributes:
      path: of the run or the file.
      model: in its precision.
      variables: {"params", "batch_stats"}.
      ema_variables: the same averaged over the steps, if the run has them.
      step: of the checkpoint; 0 if the file does not say it.
      counters: batches that each batch norm saw before the first step, see `runs.counters`.
      class_table: the classes; its label ids are what the data set's label files hold.
      eval_config: how images are prepared and scored.
    """

    path: str | os.PathLike
    model: RegSeg
    variables: dict[str, Any]
    ema_variables: dict[str, Any] | None
    step: int
    counters: Mapping[str, int]
    class_table: ClassTable
    eval_config: EvalConfig

    @classmethod
    def from_run(cls, run: TrainedRun) -> "Trained":
        """A run's best checkpoint."""
        return cls(
            run.workdir,
            run.model,
            run.variables,
            run.ema_variables,
            run.step,
            load_counters(run.workdir),
            run.class_table,
            run.config.eval,
        )

    @classmethod
    def from_weights(
        cls, path_or_name: str, model_name: str | None = None, dtype: DTypeLike = "float32"
    ) -> "Trained":
        """A weights file, or shipped weights by name; prints what was read."""
        weights = load_weights(path_or_name, model_name)
        print(weights.report)
        return cls(
            path_or_name,
            weights.create_model(dtype),
            weights.variables,
            None,
            weights.step,
            weights.counters,
            weights.class_table,
            EvalConfig(image_size=weights.image_size),
        )

    def with_ema(self) -> "Trained":
        """The same with the averaged weights as its own.

        Raises:
          ValueError: if there are none.
        """
        if self.ema_variables is None:
            raise ValueError(
                f"--ema: {self.path} has no averaged weights: it is a weights file, or a run with "
                "config.ema_decay=0"
            )
        return dataclasses.replace(self, variables=self.ema_variables, ema_variables=None)
