"""PyTorch state dicts <-> Flax variables, by one table of names.

The PyTorch names are the author's, so that his published weights load here and ours load there.
Only numpy is needed: a state dict is any mapping of names to arrays (torch tensors on the CPU too).
"""

import dataclasses
import functools
import re
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from regseg_jax.models import variants
from regseg_jax.models.regseg import RegSeg, create_model

# Module paths: (Flax, PyTorch), slashes between names, {} for a number. A row applies wherever
# its full names are in a path; what no row names has the same name on both sides.
_MODULES = (
    ("backbone", "body"),
    ("stage{}_{}", "stage{}/{}"),
    ("convs_{}", "convs/{}"),
    ("decoder/gate", "decoder/scale/1"),  # LRASPP
    ("arm16/gate_conv", "arm16/scale/1"),  # BiSeNet
    ("arm16/gate_bn", "arm16/scale/2"),
    ("head16/stages_{}", "head16/stages/{}/1"),  # SFNet
    ("last_conv", "conv_last/0"),
    ("last_classifier", "conv_last/1"),
)

# Leaves: (Flax collection, Flax name, PyTorch name, number of axes).
_LEAVES = (
    ("params", "kernel", "weight", 4),
    ("params", "scale", "weight", 1),
    ("params", "bias", "bias", 1),
    ("batch_stats", "mean", "running_mean", 1),
    ("batch_stats", "var", "running_var", 1),
)
# PyTorch counts the batches each batch norm saw. It uses the count only where momentum is None.
_COUNTER = "num_batches_tracked"
_MAX_NAMED = 10  # mismatches that a message names


def from_torch(
    state_dict: Mapping[str, np.ndarray], model: RegSeg | None = None
) -> dict[str, dict]:
    """Converts a PyTorch state dict to Flax variables.

    Args:
      state_dict: names to arrays; convolution kernels [out, in / groups, k, k].
      model: the model it is for. Without one, the variant of the tables that is nearest by its
        names and shapes.

    Returns:
      {"params", "batch_stats"}, nested dicts of numpy arrays of the state dict's dtypes; kernels
      [k, k, in / groups, out]. `num_batches_tracked` has no counterpart and is left out.

    Raises:
      ValueError: counts what is missing, unexpected or of another shape, and names ten.
    """
    arrays = _without_counters(state_dict)
    model = model or _nearest_model(arrays)
    _check_fits(state_dict, model)
    flat = {}
    for name, array in arrays.items():
        module, _, leaf = name.rpartition(".")
        collection, flax_leaf = next(
            (row[0], row[1]) for row in _LEAVES if row[2:] == (leaf, array.ndim)
        )
        if array.ndim == 4:
            array = array.transpose(2, 3, 1, 0)  # OIHW -> HWIO
        flat[collection, *_flax_path(module), flax_leaf] = array
    return unflatten_dict(flat)


def find_matching_variants(state_dict: Mapping[str, np.ndarray]) -> list[str]:
    """The variants of the tables that a state dict fits, which differ in dilation rates only.

    Raises:
      ValueError: if there is none; names what does not fit the nearest.
    """
    model = _nearest_model(_without_counters(state_dict))
    _check_fits(state_dict, model)
    backbone, _, decoder = model.variant.name.partition("_")
    return [
        f"{name}_{decoder}"
        for name in variants.BACKBONES
        if _describe_shapes(name) == _describe_shapes(backbone)
    ]


def _check_fits(state_dict: Mapping[str, np.ndarray], model: RegSeg) -> None:
    if problems := find_mismatches(state_dict, model):
        raise ValueError(
            f"the weights do not fit {model.variant.name}: {format_mismatches(problems)}. "
            "Read them as the model that they were trained as"
        )


def format_mismatches(problems: Sequence[str]) -> str:
    """The number of mismatches and the first ten."""
    more = "; ..." if len(problems) > _MAX_NAMED else ""
    return f"{len(problems)} differences ({'; '.join(problems[:_MAX_NAMED])}{more})"


def find_mismatches(state_dict: Mapping[str, np.ndarray], model: RegSeg) -> list[str]:
    """Says what is of another shape, unexpected or missing in a state dict for this model."""
    arrays, expected = _without_counters(state_dict), _shapes(model)
    problems = [
        f"{name} has shape {list(array.shape)}, not {list(expected[name])}"
        for name, array in arrays.items()
        if name in expected and array.shape != expected[name]
    ]
    problems += [f"unexpected {name}" for name in arrays if name not in expected]
    problems += [
        f"missing {name} {list(expected[name])}" for name in expected if name not in arrays
    ]
    return problems


def count_classes(state_dict: Mapping[str, np.ndarray]) -> int | None:
    """The number of classes of a state dict; None if it has no classifier."""
    classifiers = ("classifier.weight", "conv_last.1.weight")
    return next((len(v) for name, v in state_dict.items() if name.endswith(classifiers)), None)


def _without_counters(state_dict: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {
        name: np.asarray(value)
        for name, value in state_dict.items()
        if not name.endswith(f".{_COUNTER}")
    }


def read_counters(state_dict: Mapping[str, np.ndarray]) -> dict[str, int]:
    """How many batches each batch norm has seen, by PyTorch's names."""
    return {name: int(count) for name, count in state_dict.items() if name.endswith(f".{_COUNTER}")}


def to_torch(variables: Mapping, num_batches_tracked: int = 0) -> dict[str, np.ndarray]:
    """Converts Flax variables to a PyTorch state dict: the inverse of `from_torch`.

    Args:
      variables: {"params", "batch_stats"} of any model of the tables.
      num_batches_tracked: what every batch norm's counter is set to.

    Returns:
      Names to numpy arrays, with the author's names; counters int64[].

    Raises:
      ValueError: if a leaf belongs to neither a convolution nor a batch norm.
    """
    state_dict = {}
    flat = flatten_dict({name: variables[name] for name in ("params", "batch_stats")})
    for (collection, *path, leaf), value in flat.items():
        array = np.asarray(value)
        torch_leaf = next(
            (
                row[2]
                for row in _LEAVES
                if (row[0], row[1], row[3]) == (collection, leaf, array.ndim)
            ),
            None,
        )
        if torch_leaf is None:
            raise ValueError(
                f"{'/'.join((collection, *path, leaf))} of shape {list(array.shape)} has no "
                "PyTorch counterpart; pass the variables of a model made by create_model"
            )
        if array.ndim == 4:
            array = array.transpose(3, 2, 0, 1)  # HWIO -> OIHW
        module = _torch_path(path)
        state_dict[f"{module}.{torch_leaf}"] = array
        if leaf == "var":
            state_dict[f"{module}.{_COUNTER}"] = np.asarray(num_batches_tracked, np.int64)
    return state_dict


def _torch_path(path: list[str]) -> str:
    module = "/".join(path)
    for flax_name, torch_name in _MODULES:
        module = _rename(flax_name, torch_name, module)
    return module.replace("/", ".")


def _flax_path(module: str) -> list[str]:
    module = module.replace(".", "/")
    for flax_name, torch_name in _MODULES:
        module = _rename(torch_name, flax_name, module)
    return module.split("/")


def _rename(source: str, target: str, path: str) -> str:
    """Replaces whole names; the n-th {} of the target takes the n-th number of the source."""
    names = re.escape(source).replace(r"\{\}", r"(\d+)")
    numbers = iter(range(1, 10))
    replacement = re.sub(r"\{\}", lambda _: rf"\g<{next(numbers)}>", target)
    return re.sub(rf"(?<![^/]){names}(?![^/])", replacement, path)


def _nearest_model(arrays: Mapping[str, np.ndarray]) -> RegSeg:
    """The model with the fewest different blocks and decoder entries."""
    blocks = {
        (
            match[1],
            array.shape[0],
            sum(name.startswith(f"body.{match[1]}.conv2.") for name in arrays),
        )
        for name, array in arrays.items()
        if (match := re.match(r"body\.(\S+)\.conv1\.weight$", name)) and array.ndim
    }
    backbone = min(variants.BACKBONES, key=lambda name: len(blocks ^ _blocks(name)))

    num_classes = count_classes(arrays) or 1
    decoder_entries = {
        (name, array.shape) for name, array in arrays.items() if name.startswith("decoder.")
    }
    # The decoder's shapes follow from the last block of each stage alone: quicker to trace.
    last_blocks = tuple(
        (stage, (dataclasses.replace(blocks[-1], dilation_rates=(1,), stride=blocks[0].stride),))
        for stage, blocks in variants.BACKBONES[backbone].stages
    )
    short = dataclasses.replace(variants.BACKBONES[backbone], stages=last_blocks)

    def mismatches(decoder: str) -> int:
        shapes = _shapes(RegSeg(variants.Variant("", short, decoder), num_classes)).items()
        return len(decoder_entries ^ {row for row in shapes if row[0].startswith("decoder.")})

    decoder = min(variants.DECODERS, key=mismatches)
    return create_model(f"{backbone}_{decoder}", num_classes)


def _describe_shapes(backbone: str) -> tuple:
    """What the shapes of a backbone's arrays follow from: all but its dilation rates."""
    spec = variants.BACKBONES[backbone]
    return _blocks(backbone), spec.group_width, spec.pool_in_shortcut


def _blocks(backbone: str) -> set[tuple[str, int, int]]:
    """The PyTorch path, channels and number of branches of each block."""
    return {
        (
            stage if len(blocks) == 1 else f"{stage}.{i}",
            block.out_channels,
            len(block.dilation_rates),
        )
        for stage, blocks in variants.BACKBONES[backbone].stages
        for i, block in enumerate(blocks)
    }


@functools.lru_cache(maxsize=64)
def _shapes(model: RegSeg) -> dict[str, tuple[int, ...]]:
    """The PyTorch names and shapes of a model, without its counters; nothing is computed."""
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    variables = jax.eval_shape(
        functools.partial(model.init, train=False), jax.random.key(0), images
    )
    shapes = {}
    for (_, *path, leaf), value in flatten_dict(variables).items():
        torch_leaf = next(row[2] for row in _LEAVES if (row[1], row[3]) == (leaf, value.ndim))
        shape = value.shape
        shapes[f"{_torch_path(path)}.{torch_leaf}"] = (
            (shape[3], shape[2], shape[0], shape[1]) if len(shape) == 4 else shape
        )
    return shapes
