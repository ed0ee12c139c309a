"""The workload in PyTorch; the one module here that needs it."""

import copy
import functools
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from regseg_jax.benchmark.workload import LEARNING_RATE, NUM_LOSSES, Prepared, Workload
from regseg_jax.export import torch_forms
from regseg_jax.models.regseg import RegSeg
from regseg_jax.weights.names import from_torch, to_torch


def prepare_torch(
    workload: Workload, torch_model: Any, form: torch_forms.Form, precision: str, device: str
) -> Prepared:
    """Builds inference or the training step on a device, `cpu` or `cuda`.

    Args:
      workload: what to compute.
      torch_model: the PyTorch model of the same weights, on the CPU; it stays as it is.
      form: a runtime variant.
      precision: a key of `PRECISIONS`.
      device: PyTorch's name of it.
    """
    nchw = np.ascontiguousarray(workload.images.transpose(0, 3, 1, 2))
    images = torch_forms.to_device(nchw, device)
    model = copy.deepcopy(torch_model).to(device)
    memory, start = torch_forms.PeakMemory(images.device), time.perf_counter()
    if workload.mode == "inference":
        step = torch_forms.create_inference(model, form, precision, images)
    else:
        labels = torch_forms.to_device(workload.labels.astype(np.int64), device)
        train_step = torch_forms.create_train_step(model, form, precision)
        step = functools.partial(train_step, images, labels, LEARNING_RATE)

    def run() -> Any:
        result = step()
        torch_forms.synchronize(images.device)
        return result

    result = run()
    compile_seconds, memory_bytes = time.perf_counter() - start, memory.read()
    if workload.mode == "inference":
        output = result.float().cpu().numpy().transpose(0, 2, 3, 1)
    else:
        output = np.array([result.item(), *(run().item() for _ in range(NUM_LOSSES - 1))])
    return Prepared(run, output, compile_seconds, memory_bytes)


class TorchTraining:
    """The author's training step in float32, on the CPU, from weights in JAX.

    Args:
      model: in JAX.
      variables: its weights.
    """

    def __init__(self, model: RegSeg, variables: Any):
        self._jax_model = model
        name, num_classes = model.variant.name, model.num_classes
        self._model = torch_forms.create_model_of(name, num_classes, to_torch(variables))
        form = torch_forms.Form()
        self._train_step = torch_forms.create_train_step(self._model, form, "float32")

    def step(self, images: np.ndarray, labels: np.ndarray, learning_rate: float) -> float:
        """Takes a step on f32[B, 3, H, W] and i64[B, H, W], and returns the loss."""
        tensors = (torch_forms.to_device(array, "cpu") for array in (images, labels))
        return self._train_step(*tensors, learning_rate).item()

    @property
    def variables(self) -> Any:
        """The weights now, in JAX."""
        return to_variables(self._model, self._jax_model)


def to_variables(torch_model: Any, model: RegSeg) -> Any:
    """The weights of the PyTorch model as those of the same model in JAX."""
    state_dict = {name: value.cpu().numpy() for name, value in torch_model.state_dict().items()}
    return from_torch(state_dict, model)


def get_torch_device(backends: Sequence[str]) -> str:
    """PyTorch's device: of the kind that JAX uses, or the GPU if PyTorch runs alone and has one."""
    if "jax" in backends:
        return "cuda" if jax.default_backend() == "gpu" else "cpu"
    return "cuda" if torch_forms.has_gpu() else "cpu"


def get_torch_forms(mode: str, precision: str, device: str) -> Sequence[torch_forms.Form]:
    """The rows of a precision; on the CPU the plain one alone, because the others are for GPUs."""
    if mode == "train":
        forms = torch_forms.TRAINING_FORMS
    else:
        forms = torch_forms.get_inference_forms(precision)
    return forms if device == "cuda" else forms[:1]


def compute_reference(workload: Workload, torch_model: Any, backends: Sequence[str]) -> np.ndarray:
    """`Prepared.output` in exact float32."""
    with torch_forms.exact_float32():
        device = get_torch_device(backends)
        return prepare_torch(workload, torch_model, torch_forms.Form(), "float32", device).output
