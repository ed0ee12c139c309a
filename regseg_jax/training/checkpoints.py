"""Saving and restoring a run's state, asynchronously and atomically (Orbax)."""

import contextlib
import dataclasses
import json
import os
import pathlib
import sys
from collections.abc import Iterator
from typing import Any

import jax
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from orbax.checkpoint import checkpoint_managers

from regseg_jax.training.train_state import TrainState

_METRIC = "mean_iou"


class MismatchError(ValueError):
    """The checkpoint is of another model or precision."""


class CheckpointManager:
    """The checkpoints of a run: the two newest and the best by mean IoU are kept.

    A checkpoint is written to a temporary folder and renamed when it is complete, so a run that is
    killed while saving still has the one before. The input needs no state of its own: its
    position is the step's number (see `data.sampling`), which is in the checkpoint.
    """

    def __init__(self, workdir: str | os.PathLike, *, read_only: bool = False):
        """Opens `workdir/checkpoints`, without creating it if read_only.

        Raises:
          ValueError: if read_only and a checkpoint's description cannot be read; else such a
            checkpoint is set aside, see `restore_newest`.
        """
        self._directory = pathlib.Path(workdir).absolute() / "checkpoints"
        damaged = _find_undescribed(self._directory)
        if damaged and read_only:
            raise ValueError(
                f"the checkpoint {damaged[0]} is damaged; start the run again, which sets it aside "
                "for the one before"
            )
        _set_aside(damaged)
        policy = checkpoint_managers.AnyPreservationPolicy(
            [
                checkpoint_managers.LatestN(2),  # one to fall back on, see `restore_newest`
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
                # Else, where none can be made, threads wait for it for minutes, and so would the
                # process that ends with the error.
                async_options=ocp.AsyncOptions(create_directories_asynchronously=False),
            ),
        )

    def save(self, state: TrainState, mean_iou: float | None = None) -> None:
        """Starts saving state under its step; returns before it is on disk.

        A step that is there already is left as it is: a run is a function of its config, so it is
        the same.

        Raises:
          OSError: if this or the save before failed, on a full or read-only disk for instance; the
            checkpoints that were complete before are left as they are.
        """
        step = int(state.step)
        if step in self._manager.all_steps():
            return
        metrics = None if mean_iou is None else {_METRIC: mean_iou}
        with self._explaining():
            self._manager.save(step, args=ocp.args.StandardSave(_to_tree(state)), metrics=metrics)

    def latest_step(self) -> int | None:
        """The newest step that is complete on disk, or None."""
        return self._manager.latest_step()

    def best_step(self) -> int | None:
        """The step of the highest mean IoU; the newest if none was evaluated; or None."""
        best = self._manager.best_step()
        return self.latest_step() if best is None else best

    def restore(self, step: int, like: TrainState) -> TrainState:
        """Reads the state of a step with the shardings of `like`.

        Args:
          step: of a checkpoint that is there.
          like: a state or its `jax.ShapeDtypeStruct`s.

        Raises:
          MismatchError: if the checkpoint has other parameters or shapes; names them.
        """
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, _to_tree(like))
        self._check_shapes(step, abstract)
        tree = self._manager.restore(step, args=ocp.args.StandardRestore(abstract))
        return dataclasses.replace(like, **tree)

    def restore_newest(self, like: TrainState) -> TrainState | None:
        """Reads the newest checkpoint; if it is damaged, sets it aside and reads the one before.

        A damaged checkpoint, truncated by a failing disk for instance, is renamed to
        `STEP.damaged`, with a warning.

        Returns:
          The state; None if there is no checkpoint.

        Raises:
          MismatchError: if the checkpoint has other parameters or shapes.
          ValueError: if there are checkpoints and none of them can be read.
        """
        damaged = []
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                state = self.restore(step, like)
            except MismatchError:
                raise
            except Exception as error:  # tensorstore, zarr, JSON and the disk fail in many ways
                damaged.append(self._directory / str(step))
                _warn(f"{damaged[-1]} cannot be read ({str(error).splitlines()[0]})")
                continue
            if damaged:
                _set_aside(damaged)
                self._manager.reload()
            return state
        if damaged or any(self._directory.glob("*.damaged")):
            raise ValueError(
                f"none of the checkpoints in {self._directory} can be read; restore the folder "
                "from a copy, or start again in another workdir"
            )
        return None

    @contextlib.contextmanager
    def _explaining(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError, RuntimeError) as error:
            raise OSError(
                f"cannot save a checkpoint in {self._directory}: {' '.join(str(error).split())}; "
                "the checkpoints before it are left as they were. Make room or make the folder "
                "writable, and start again"
            ) from error

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
            raise MismatchError(
                f"{self._directory / str(step)} does not fit this model and precision: "
                f"{len(differences)} arrays differ ({'; '.join(differences[:4])}); use the model "
                "and the class count that it was trained with"
            )

    def wait(self) -> None:
        """Blocks until what is being saved is on disk; raises OSError if it cannot be."""
        with self._explaining():
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits for what is being saved and frees the threads; raises OSError if that failed."""
        with self._explaining():
            self._manager.close()


def has_checkpoint(workdir: str | os.PathLike) -> bool:
    """Whether a run has saved anything yet."""
    return bool(_find_steps(pathlib.Path(workdir) / "checkpoints"))


def _find_steps(directory: pathlib.Path) -> list[pathlib.Path]:
    """The complete checkpoints: while one is written, its folder has another name."""
    return [p for p in directory.glob("*") if p.name.isdigit()]


def _find_undescribed(directory: pathlib.Path) -> list[pathlib.Path]:
    """The checkpoints whose JSON files are not JSON, as after a power failure."""
    damaged = []
    for step in _find_steps(directory):
        for path in (step / "_CHECKPOINT_METADATA", step / "metrics" / "metrics"):
            try:
                if path.exists():
                    json.loads(path.read_bytes())
            except ValueError:
                damaged.append(step)
                break
    return damaged


def _set_aside(damaged: list[pathlib.Path]) -> None:
    """Renames damaged checkpoints; every process calls it with the same ones."""
    if jax.process_index() == 0:
        for path in damaged:
            path.rename(path.with_name(f"{path.name}.damaged"))
            _warn(f"{path} is damaged and set aside as {path.name}.damaged")
    multihost_utils.sync_global_devices("damaged checkpoints are set aside")


def _warn(text: str) -> None:
    print(f"warning: the checkpoint {text}", file=sys.stderr)


def _to_tree(state: TrainState) -> dict[str, Any]:
    return {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}


def _shapes_by_path(tree: Any) -> dict[str, tuple[int, ...]]:
    def name(path: tuple) -> str:
        return "/".join(
            str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path
        )

    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {name(path): tuple(leaf.shape) for path, leaf in leaves}
