"""A finished or unfinished run, opened to evaluate, predict or export."""

import dataclasses
import os
from typing import Any

from regseg_jax.config import Config
from regseg_jax.data.classes import IGNORE_LABEL, ClassTable
from regseg_jax.models.regseg import RegSeg
from regseg_jax.runs.parts import (
    abstract_train_state,
    create_dataset,
    create_run_model,
    create_run_optimizer,
)
from regseg_jax.runs.workdir import load_config
from regseg_jax.training.checkpoints import CheckpointManager


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
    return TrainedRun(config, model, state.variables, step, state.ema_variables)
