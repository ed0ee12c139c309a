"""Starting a run from the weights of another: its folder, or a weights file."""

import dataclasses
import os
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from regseg_jax.models.regseg import RegSeg
from regseg_jax.models.searched_conv import SEARCH_PARAMETERS
from regseg_jax.runs.trained import load_run
from regseg_jax.weights.load import find_weights, load_weights_file
from regseg_jax.weights.names import (
    count_classes,
    find_mismatches,
    format_mismatches,
    from_torch,
)


@dataclasses.dataclass(frozen=True)
class InitialWeights:
    """What a model takes from another run or a weights file.

    Attributes:
      arrays: f32, by their paths in {"params", "batch_stats"}.
      report: lines for the log: how many arrays were loaded, and exactly which were not.
    """

    arrays: dict[tuple[str, ...], np.ndarray]
    report: str

    def fill(self, variables: dict[str, Any]) -> dict[str, Any]:
        """Variables with these arrays in place of their own."""
        return unflatten_dict({**flatten_dict(variables), **self.arrays})


def load_initial_weights(path: str | os.PathLike, model: RegSeg) -> InitialWeights:
    """Reads the weights and statistics that a model starts from.

    A classifier of another class count is not loaded: it starts from scratch.

    Args:
      path: a run's folder, whose best checkpoint is read, or a PyTorch or safetensors file with the
        author's names, see `weights.names`.
      model: what is trained.

    Raises:
      ValueError: if path is neither, or holds another architecture.
    """
    if not pathlib.Path(path).is_dir():
        source, num_classes, variables = _load_file(path, model)
        return _select(source, flatten_dict(variables), num_classes, model)
    trained = load_run(path)
    _check_variant(path, trained.model.variant.name, model)
    source = f"config.init_from: step {trained.step} of the run {path}"
    return _select(source, flatten_dict(trained.variables), trained.model.num_classes, model)


def _check_variant(path: str | os.PathLike, name: str, model: RegSeg) -> None:
    if name != model.variant.name:
        raise ValueError(
            f"config.init_from: {path} is of {name}, this run is one of {model.variant.name}; set "
            f"--config.model={name}, or start from other weights"
        )


def _load_file(path: str | os.PathLike, model: RegSeg) -> tuple[str, int, dict[str, Any]]:
    try:
        file = load_weights_file(find_weights(path))
    except ValueError as error:
        raise ValueError(
            f"config.init_from: {error}; or set the folder of a run, or nothing to start from "
            "random weights"
        ) from None
    if "name" in file.metadata:
        _check_variant(path, file.metadata["name"], model)
    num_classes = count_classes(file.arrays) or model.num_classes
    model = model.clone(num_classes=num_classes)
    if problems := find_mismatches(file.arrays, model):
        raise ValueError(
            f"config.init_from: {path} does not fit {model.variant.name}: "
            f"{format_mismatches(problems)}; set config.model to the architecture that it was "
            "trained as"
        )
    return f"config.init_from: {file.report}", num_classes, from_torch(file.arrays, model)


def _select(
    source: str, arrays: dict[tuple[str, ...], np.ndarray], num_classes: int, model: RegSeg
) -> InitialWeights:
    """Leaves out what depends on the class count, if that differs, and the rates of a search."""
    expected = _shapes(model)
    other = _shapes(model.clone(num_classes=model.num_classes + 1))
    is_new = num_classes != model.num_classes
    from_scratch = [path for path in expected if is_new and other[path] != expected[path]]
    from_scratch += [
        path for path in expected if path[-1] in SEARCH_PARAMETERS and path not in arrays
    ]
    if misfits := [
        "/".join(path)
        for path in expected
        if path not in from_scratch and (path not in arrays or arrays[path].shape != expected[path])
    ]:
        raise ValueError(
            f"{source} does not fit: {len(misfits)} arrays are not there or of another shape "
            f"({', '.join(misfits[:3])}{', ...' if len(misfits) > 3 else ''}); start from a run "
            "whose blocks have the same branches (config.search.num_branches), or from none; a "
            "search with candidates (config.search.method) starts from one like itself alone"
        )
    taken = {path: np.asarray(arrays[path]) for path in expected if path not in from_scratch}
    lines = [f"{source}: loaded {len(taken)} of {len(expected)} arrays"]
    for path in from_scratch:
        name, reason = "/".join(path), "searched here"
        if path in arrays:
            reason = f"there {list(arrays[path].shape)}, of {num_classes} classes"
        lines.append(f"  not loaded, starts from scratch: {name} {list(expected[path])} ({reason})")
    return InitialWeights(taken, "\n".join(lines))


def _shapes(model: RegSeg) -> dict[tuple[str, ...], tuple[int, ...]]:
    variables = jax.eval_shape(
        lambda: model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), train=False)
    )
    return {path: leaf.shape for path, leaf in flatten_dict(variables).items()}
