"""Saving and restoring a run's state, asynchronously and atomically (Orbax)."""

import dataclasses
import os
import pathlib
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from regseg_jax.training.train_state import TrainState

_METRIC = "mean_iou"


class CheckpointManager:
    """The checkpoints of a run: the newest and the best by mean IoU are kept.

    A checkpoint is written to a temporary folder and renamed when it is whole, so a run killed
    while saving leaves the one before. The input needs no state of its own: its position is
    the step's number (see `data.sampling`), which is in the checkpoint.
    """

    def __init__(self, workdir: str | os.PathLike, *, read_only: bool = False):
        """Opens `workdir/checkpoints`, without creating it if read_only."""
        self._directory = pathlib.Path(workdir).absolute() / "checkpoints"
        policy = checkpoint_managers.AnyPreservationPolicy(
            [
                checkpoint_managers.LatestN(1),
                checkpoint_managers.BestN(
                    get_metric_fn=lambda metrics: metrics[_METRIC],
                    n=1,
                    keep_checkpoints_without_metrics=False,
                ),
            ]
        )
        self._manager = ocp.CheckpointManager(
            self._directory,
            item_handlers=ocp.StandardCheckpointHandler(),  # to know shapes before restoring
            options=ocp.CheckpointManagerOptions(
                preservation_policy=policy,
                best_fn=lambda metrics: metrics[_METRIC],
                create=not read_only,
                read_only=read_only,
                cleanup_tmp_directories=not read_only,
            ),
        )

    def save(self, state: TrainState, mean_iou: float | None = None) -> None:
        """Starts saving state under its step; returns before it is on disk.

        A step that is there already is left as it is: it is the same, for a run is a function of
        its config.
        """
        step = int(state.step)
        if step in self._manager.all_steps():
            return
        metrics = None if mean_iou is None else {_METRIC: mean_iou}
        self._manager.save(step, args=ocp.args.StandardSave(_to_tree(state)), metrics=metrics)

    def latest_step(self) -> int | None:
        """The newest step that is whole on disk, or None."""
        return self._manager.latest_step()

    def best_step(self) -> int | None:
        """The step of the highest mean IoU; the newest where none was evaluated; or None."""
        best = self._manager.best_step()
        return self.latest_step() if best is None else best

    def restore(self, step: int, like: TrainState) -> TrainState:
        """Reads the state of a step with the shardings of `like`.

        Args:
          step: of a checkpoint that is there.
          like: a state or its `jax.ShapeDtypeStruct`s.

        Raises:
          ValueError: if the checkpoint has other parameters or shapes; names them.
        """
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, _to_tree(like))
        self._check_shapes(step, abstract)
        tree = self._manager.restore(step, args=ocp.args.StandardRestore(abstract))
        return dataclasses.replace(like, **tree)

    def _check_shapes(self, step: int, abstract: dict[str, Any]) -> None:
        saved = _shapes_by_path(self._manager.item_metadata(step).tree)
        expected = _shapes_by_path(abstract)
        differences = [
            f"{path}: {saved.get(path, 'missing')} in the checkpoint, "
            f"{expected.get(path, 'unexpected')} here"
            for path in sorted(saved.keys() | expected.keys())
            if saved.get(path) != expected.get(path)
        ]
        if differences:
            raise ValueError(
                f"{self._directory / str(step)} does not fit this model and precision: "
                f"{len(differences)} arrays differ ({'; '.join(differences[:4])}); use the model "
                "and the class count that it was trained with"
            )

    def wait(self) -> None:
        """Blocks until what is being saved is on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits for what is being saved and frees the threads."""
        self._manager.close()


def has_checkpoint(workdir: str | os.PathLike) -> bool:
    """Whether a run has saved anything yet."""
    checkpoints = CheckpointManager(workdir, read_only=True)
    latest = checkpoints.latest_step()
    checkpoints.close()
    return latest is not None


def _to_tree(state: TrainState) -> dict[str, Any]:
    return {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}


def _shapes_by_path(tree: Any) -> dict[str, tuple[int, ...]]:
    def name(path: tuple) -> str:
        return "/".join(
            str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path
        )

    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {name(path): tuple(leaf.shape) for path, leaf in leaves}
