"""Starting a run from the weights of another: its folder, or a PyTorch file."""

import dataclasses
import os
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from regseg_jax.export.torch_weights import count_classes, find_mismatches, from_torch
from regseg_jax.models import RegSeg
from regseg_jax.runs.trained import load_run
from regseg_jax.runtime.packages import require_packages
from regseg_jax.search.searched_conv import RATES, TAP_WIDTH


@dataclasses.dataclass(frozen=True)
class InitialWeights:
    """What a model takes over from another run.

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

    Of a classifier of another class count nothing is taken: it starts anew.

    Args:
      path: a run's folder, whose best checkpoint is read, or a PyTorch file with the author's
        names, see `export.torch_weights`.
      model: what is trained.

    Raises:
      ValueError: if path is neither, or holds another architecture.
    """
    path = pathlib.Path(path)
    if not path.exists():
        raise ValueError(
            f"config.init_from: there is no {path}; set the folder of a run, a PyTorch file, or "
            "nothing to start from random weights"
        )
    source = "config.init_from: "
    if path.is_dir():
        trained = load_run(path)
        source += f"step {trained.step} of the run {path}"
        if trained.model.variant.name != model.variant.name:
            raise ValueError(
                f"config.init_from: {path} is a run of {trained.model.variant.name}, this is one "
                f"of {model.variant.name}; set --config.model={trained.model.variant.name}, or "
                "start from another run"
            )
        num_classes, variables = trained.model.num_classes, trained.variables
    else:
        source += f"the PyTorch file {path}"
        num_classes, variables = _load_torch_file(path, model)
    return _select(source, flatten_dict(variables), num_classes, model)


def _load_torch_file(path: pathlib.Path, model: RegSeg) -> tuple[int, dict[str, Any]]:
    require_packages("reading a PyTorch file", ("torch",))
    from regseg_jax.export.torch_format import load_arrays

    state_dict = load_arrays(path)
    num_classes = count_classes(state_dict) or model.num_classes
    model = model.clone(num_classes=num_classes)
    if problems := find_mismatches(state_dict, model):
        raise ValueError(
            f"config.init_from: {path} is no {model.variant.name}: {len(problems)} arrays do not "
            f"fit ({'; '.join(problems[:3])}{'...' if len(problems) > 3 else ''}); set "
            "config.model to the architecture that it was trained as"
        )
    return num_classes, from_torch(state_dict, model)


def _select(
    source: str, arrays: dict[tuple[str, ...], np.ndarray], num_classes: int, model: RegSeg
) -> InitialWeights:
    """Leaves out what depends on the class count, where it is another one, and rates to search."""
    expected = _shapes(model)
    other = _shapes(model.clone(num_classes=model.num_classes + 1))
    is_new = num_classes != model.num_classes
    anew = [path for path in expected if is_new and other[path] != expected[path]]
    anew += [path for path in expected if path[-1] in (RATES, TAP_WIDTH) and path not in arrays]
    if misfits := [
        "/".join(path)
        for path in expected
        if path not in anew and (path not in arrays or arrays[path].shape != expected[path])
    ]:
        raise ValueError(
            f"{source} does not fit: {len(misfits)} arrays are not there or of another shape "
            f"({', '.join(misfits[:3])}{', ...' if len(misfits) > 3 else ''}); start from a run "
            "whose blocks have the same branches (config.search.num_branches), or from none"
        )
    taken = {path: np.asarray(arrays[path]) for path in expected if path not in anew}
    lines = [f"{source}: loaded {len(taken)} of {len(expected)} arrays"]
    for path in anew:
        name, reason = "/".join(path), "searched here"
        if path in arrays:
            reason = f"there {list(arrays[path].shape)}, of {num_classes} classes"
        lines.append(f"  not loaded, starts anew: {name} {list(expected[path])} ({reason})")
    return InitialWeights(taken, "\n".join(lines))


def _shapes(model: RegSeg) -> dict[tuple[str, ...], tuple[int, ...]]:
    variables = jax.eval_shape(
        lambda: model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), train=False)
    )
    return {path: leaf.shape for path, leaf in flatten_dict(variables).items()}
