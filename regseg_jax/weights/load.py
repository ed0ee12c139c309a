"""load_weights("FILE"): any weights file, or shipped weights by name, ready to predict with."""

import dataclasses
import os
import pathlib
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from regseg_jax.data.classes import ClassTable
from regseg_jax.models.regseg import RegSeg
from regseg_jax.models.variants import Variant, get_variant
from regseg_jax.runtime.packages import require_packages
from regseg_jax.weights import metadata as metadata_of
from regseg_jax.weights import safetensors_files
from regseg_jax.weights.names import (
    count_classes,
    find_matching_variants,
    from_torch,
    read_counters,
)
from regseg_jax.weights.prefixes import strip_prefix

# The weights that ship with the package: NAME.safetensors, each with its model card NAME.md.
SHIPPED_FOLDER = pathlib.Path(__file__).parent


@dataclasses.dataclass(frozen=True)
class LoadedWeights:
    """Weights and what is needed to predict with them.

    Attributes:
      variant: the architecture.
      variables: {"params", "batch_stats"}, f32 arrays of numpy.
      class_table: the classes, in the order of the logits.
      image_size: height and width that images are resized to first; (): left as they are.
      step: of the checkpoint; 0 if the file does not say it.
      counters: batches that each batch norm saw before the first step, by PyTorch's names.
      report: one line for the user: what was read, and what was assumed.
    """

    variant: Variant
    variables: dict[str, Any]
    class_table: ClassTable
    image_size: tuple[int, ...]
    step: int
    counters: dict[str, int]
    report: str

    def create_model(self, dtype: DTypeLike = jnp.float32) -> RegSeg:
        """The model that computes in this dtype with `variables`."""
        return RegSeg(self.variant, self.class_table.num_classes, dtype=dtype)


@dataclasses.dataclass(frozen=True)
class WeightsFile:
    """A state dict from a file.

    Attributes:
      arrays: by PyTorch's names and in its layout; floats are float32.
      metadata: see `metadata.create_metadata`; {} for files of other programs.
      report: one line: what was read and what was not.
    """

    arrays: dict[str, np.ndarray]
    metadata: dict[str, Any]
    report: str


def load_weights(path_or_name: str | os.PathLike, model_name: str | None = None) -> LoadedWeights:
    """Reads weights to predict with, as `predict --weights=FILE` does.

    Args:
      path_or_name: a file by `regseg_jax.export --format=safetensors` or `torch`, a file of another
        program with the author's names in either format, or the name of shipped weights.
      model_name: the variant, where the file does not say it and variants differ in dilation rates
        only; None: the file's own.

    Raises:
      OSError: if the file cannot be read.
      ValueError: if there is no such file or name, or it holds no weights of a variant, or fits
        several that differ in dilation rates only, or another one than model_name.
    """
    path = find_weights(path_or_name)
    file = load_weights_file(path)
    metadata_of.check_preprocessing(file.metadata)
    variant = _find_variant(path, file, model_name)
    num_classes = count_classes(file.arrays)
    if num_classes is None:
        raise ValueError(f"{path} has no classifier, so it holds no weights of a whole model")
    variables = from_torch(file.arrays, RegSeg(variant, num_classes))
    class_table, assumed = metadata_of.find_class_table(file.metadata, num_classes)
    step = file.metadata.get("step", 0)
    counters = {name: count - step for name, count in read_counters(file.arrays).items()}
    report = f"{file.report}; {variant.name}, {num_classes} classes"
    return LoadedWeights(
        variant,
        variables,
        class_table,
        tuple(file.metadata.get("image_size", ())),
        step,
        counters,
        f"{report}; {assumed}" if assumed else report,
    )


def _find_variant(path: pathlib.Path, file: WeightsFile, model_name: str | None) -> Variant:
    named = file.metadata.get("name")
    if named and model_name and get_variant(model_name).name != get_variant(named).name:
        raise ValueError(f"{path} holds weights of {named}, not of {model_name}")
    if named or model_name:
        return get_variant(named or model_name)
    names = find_matching_variants(file.arrays)
    if len(names) > 1:
        raise ValueError(
            f"{path} does not say its variant, and {', '.join(names)} have its shapes: they "
            "differ in dilation rates only; pass --model=NAME"
        )
    return get_variant(names[0])


def find_weights(path_or_name: str | os.PathLike) -> pathlib.Path:
    """The file at a path, or the one of shipped weights by name.

    Raises:
      ValueError: if there is neither; lists the names.
    """
    path = pathlib.Path(path_or_name)
    if path.is_file():
        return path
    shipped = {file.stem: file for file in sorted(SHIPPED_FOLDER.glob("*.safetensors"))}
    if str(path_or_name) not in shipped:
        raise ValueError(
            f"there is no weights file {path_or_name}, nor shipped weights of that name; "
            f"the names are: {', '.join(shipped) or 'none in this version'}"
        )
    return shipped[str(path_or_name)]


def load_weights_file(path: str | os.PathLike) -> WeightsFile:
    """Reads the state dict of a safetensors or PyTorch file; nothing is checked against a model.

    Raises:
      OSError: if the file cannot be read.
      ValueError: if it is neither, is damaged, holds no state dict, or values that are not finite.
    """
    if not safetensors_files.is_safetensors(path):
        require_packages("reading a PyTorch file", ("torch",))
        from regseg_jax.weights.torch_files import load_state_dict_file

        file = load_state_dict_file(path)
        arrays = {
            name: (tensor.float() if tensor.is_floating_point() else tensor).numpy()
            for name, tensor in file.tensors.items()
        }
        return WeightsFile(arrays, file.metadata, file.report)
    arrays, texts = safetensors_files.load(path)
    try:
        stripped, prefix = strip_prefix(arrays)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    arrays = {k: v if v.dtype.kind in "iu" else v.astype(np.float32) for k, v in stripped.items()}
    if broken := [name for name, array in arrays.items() if not np.isfinite(array).all()]:
        raise ValueError(
            f"{path} has NaN or infinity in {', '.join(broken[:10])}; the training has diverged: "
            "use an earlier checkpoint"
        )
    report = f"{path}: {len(arrays)} tensors"
    report += f", without the prefix {prefix!r}" if prefix else ""
    return WeightsFile(arrays, metadata_of.parse_texts(texts), report)
