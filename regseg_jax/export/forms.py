"""The forms that a trained model is deployed in, ready to run here, for comparisons."""

import functools
import io
import zipfile
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from regseg_jax.models.folding import fold_batch_norm
from regseg_jax.models.regseg import RegSeg
from regseg_jax.runs.trained import Trained
from regseg_jax.runtime.packages import require_packages

Forward = Callable[[np.ndarray], np.ndarray]  # f32[1, H, W, 3] -> f32[1, H, W, num_classes]

REFERENCE = "JAX float32"
# The packages that each form needs in addition to the project's own (pyproject.toml).
FORMS = {
    REFERENCE: (),
    "JAX float32, batch norm folded": (),
    "JAX bfloat16": (),
    "JAX float16": (),
    "PyTorch": ("torch",),
    "PyTorch, batch norm folded": ("torch",),
    "ONNX Runtime": ("torch", "onnx", "onnxruntime"),
    "StableHLO": ("flatbuffers",),
}


def create_forward(form: str, trained: Trained, size: tuple[int, int]) -> Forward:
    """A function that runs the model in a form; if that is a file, from the file's own bytes.

    Args:
      form: one of `FORMS`. In half precision batch norms are folded, as in evaluation.
      trained: of float32.
      size: what files are fixed to, because StableHLO's open sizes are multiples of 32.

    Raises:
      ValueError: if there is no such form, or a package that it needs is missing.
    """
    check_forms([form])
    model, variables = trained.model, trained.variables
    if form == REFERENCE:
        return _create_jax(model, variables)
    if form.startswith("JAX "):
        dtype = jnp.dtype(form.split()[1].strip(","))
        return _create_jax(model.clone(dtype=dtype), fold_batch_norm(variables, dtype))
    if form == "StableHLO":
        return _create_stablehlo(model, variables, size)
    from regseg_jax.export import torch_format, torch_model

    network = torch_format.create_trained_torch_model(trained)
    if form == "ONNX Runtime":
        return _create_onnx(network, size)
    if form.endswith("folded"):
        network = torch_model.fuse_batch_norm(network)
    return functools.partial(_run_torch, network)


def check_forms(forms: list[str]) -> None:
    """Raises ValueError if there is no such form, or a package that it needs is missing."""
    if unknown := [form for form in forms if form not in FORMS]:
        raise ValueError(f"there is no form {unknown[0]!r}; the forms are: {'; '.join(FORMS)}")
    for form in forms:
        require_packages(f"the form {form}", FORMS[form])


def _create_jax(model: RegSeg, variables: dict[str, Any]) -> Forward:
    infer = jax.jit(functools.partial(model.apply, train=False))
    return lambda images: np.asarray(infer(variables, images), np.float32)


def _create_stablehlo(model: RegSeg, variables: dict[str, Any], size: tuple[int, int]) -> Forward:
    from regseg_jax.export import stablehlo_format

    content = stablehlo_format.serialize(model, variables, {}, size)
    with zipfile.ZipFile(io.BytesIO(content)) as file:
        exported = jax.export.deserialize(bytearray(file.read("model.bin")))
    return lambda images: np.asarray(exported.call(images))


def _create_onnx(network: Any, size: tuple[int, int]) -> Forward:
    import onnxruntime

    from regseg_jax.export import onnx_format

    content = onnx_format.serialize(network, {}, size)
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])

    def forward(images: np.ndarray) -> np.ndarray:
        feed = {"images": np.ascontiguousarray(images.transpose(0, 3, 1, 2))}
        return session.run(None, feed)[0].transpose(0, 2, 3, 1)

    return forward


def _run_torch(network: Any, images: np.ndarray) -> np.ndarray:
    import torch

    with torch.inference_mode():
        logits = network(torch.tensor(images.transpose(0, 3, 1, 2)))
    return logits.numpy().transpose(0, 2, 3, 1)
