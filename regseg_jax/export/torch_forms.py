"""The runtime variants of RegSeg in PyTorch: plain, and the ones that make it faster.

Needs torch and no other package. Both benchmarks time these functions.
"""

import contextlib
import copy
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regseg_jax.data.classes import IGNORE_LABEL
from regseg_jax.export.torch_model import create_torch_model, fuse_batch_norm, load_weights

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Form(NamedTuple):
    """A runtime variant of the model in some precision; with all off, plain PyTorch under autocast.

    Attributes:
      fused: batch norms folded into the convolutions.
      channels_last: NHWC in memory.
      cast_weights: weights and images in the precision, instead of autocast from float32.
      compiled: by `torch.compile`.
      graph: captured as a CUDA graph and replayed.
    """

    fused: bool = False
    channels_last: bool = False
    cast_weights: bool = False
    compiled: bool = False
    graph: bool = False

    def __str__(self) -> str:
        return " + ".join(name for name, is_on in self._asdict().items() if is_on) or "plain"


INFERENCE_FORMS = (
    Form(),
    Form(channels_last=True),
    Form(fused=True),
    Form(fused=True, cast_weights=True),
    Form(fused=True, cast_weights=True, channels_last=True),
    Form(fused=True, cast_weights=True, graph=True),
    Form(fused=True, cast_weights=True, channels_last=True, graph=True),
    Form(fused=True, cast_weights=True, channels_last=True, compiled=True),
    Form(fused=True, cast_weights=True, channels_last=True, compiled=True, graph=True),
)
TRAINING_FORMS = (Form(), Form(channels_last=True), Form(channels_last=True, compiled=True))


def get_inference_forms(precision: str) -> tuple[Form, ...]:
    """The rows of a precision; in float32 there is nothing to cast."""
    if precision != "float32":
        return INFERENCE_FORMS
    return tuple(dict.fromkeys(form._replace(cast_weights=False) for form in INFERENCE_FORMS))


def create_model_of(name: str, num_classes: int, arrays: Mapping[str, Any]) -> nn.Module:
    """A model on the CPU with the weights of a state dict of arrays."""
    model = create_torch_model(name, num_classes)
    load_weights(model, {key: torch.tensor(array) for key, array in arrays.items()})
    return model


def create_random_model(name: str, num_classes: int) -> nn.Module:
    """A model of random weights, the same at each call; see `calibrate`."""
    torch.manual_seed(0)
    return calibrate(create_torch_model(name, num_classes))


@torch.no_grad()
def calibrate(model: nn.Module) -> nn.Module:
    """Sets batch norm's running statistics to those of a batch of noise, and evaluation mode.

    Without them the signal of random weights fades from layer to layer, and logits that are
    the same everywhere would agree whatever a runtime variant computes.
    """
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    model.train()(torch.randn(2, 3, 128, 128))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return model.eval()


def create_inference(
    model: nn.Module, form: Form, precision: str, images: Tensor
) -> Callable[[], Tensor]:
    """Builds what a row times: images -> logits at the images' size.

    Args:
      model: in float32, on the images' device; it stays as it is.
      form: the runtime variant.
      precision: a key of `DTYPES`.
      images: f32[B, 3, H, W].

    Returns:
      A function of nothing to the logits [B, num_classes, H, W]. On a GPU it returns before
      they are computed, and a captured graph overwrites them at each call.

    Raises:
      ValueError: if the runtime variant needs a GPU and images are on the CPU.
    """
    if form.graph and not images.is_cuda:
        raise ValueError("CUDA graphs need a GPU")
    dtype = DTYPES[precision] if form.cast_weights else torch.float32
    layout = torch.channels_last if form.channels_last else torch.contiguous_format
    model = fuse_batch_norm(model) if form.fused else copy.deepcopy(model).eval()
    model = model.to(dtype=dtype, memory_format=layout)
    images = images.to(dtype=dtype, memory_format=layout)
    forward = torch.compile(model) if form.compiled else model

    def infer() -> Tensor:
        with torch.inference_mode(), _autocast(images.device, precision, dtype):
            return forward(images)

    return _capture(infer) if form.graph else infer


def create_train_step(
    model: nn.Module, form: Form, precision: str
) -> Callable[[Tensor, Tensor, float], Tensor]:
    """Builds a training step: forward, loss, backward and update, with the author's optimizer.

    Args:
      model: in float32; each step changes it.
      form: one of `TRAINING_FORMS`.
      precision: a key of `DTYPES`; other than float32 under autocast, float16 with a loss scale.

    Returns:
      A function that takes a step and returns the loss: of images f32[B, 3, H, W], labels
      i64[B, H, W], 255 where ignored, both on the model's device, and the learning rate.
    """
    layout = torch.channels_last if form.channels_last else torch.contiguous_format
    model = model.train().to(memory_format=layout)
    forward = torch.compile(model) if form.compiled else model
    device = next(model.parameters()).device
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    undecayed = [parameter for norm in norms for parameter in norm.parameters()]
    ids = {id(parameter) for parameter in undecayed}
    decayed = [parameter for parameter in model.parameters() if id(parameter) not in ids]
    groups = [{"params": decayed, "weight_decay": 1e-4}, {"params": undecayed, "weight_decay": 0}]
    optimizer = torch.optim.SGD(groups, lr=0.0, momentum=0.9)
    # A loss scale at which no step overflows: a skipped step has nothing to compare.
    scaler = torch.amp.GradScaler(device.type, init_scale=2.0**10, enabled=precision == "float16")

    def step(images: Tensor, labels: Tensor, learning_rate: float) -> Tensor:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate
        optimizer.zero_grad()
        with _autocast(device, precision, torch.float32):
            logits = forward(images.contiguous(memory_format=layout))
            loss = F.cross_entropy(logits.float(), labels, ignore_index=IGNORE_LABEL)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        return loss.detach()

    return step


def _autocast(
    device: torch.device, precision: str, weights_dtype: torch.dtype
) -> contextlib.AbstractContextManager:
    dtype = DTYPES[precision]
    if dtype == weights_dtype:
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype)


def _capture(infer: Callable[[], Tensor]) -> Callable[[], Tensor]:
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # compilation and cuDNN's choices cannot be captured
        for _ in range(3):
            infer()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        logits = infer()

    def replay() -> Tensor:
        graph.replay()
        return logits

    return replay


def exact_float32() -> contextlib.AbstractContextManager:
    """Within it, convolutions compute in float32, not in TF32 as cuDNN otherwise may."""
    return torch.backends.cudnn.flags(enabled=True, allow_tf32=False)


def has_gpu() -> bool:
    """Whether PyTorch finds a GPU."""
    return torch.cuda.is_available()


def tune_convolutions() -> None:
    """Lets cuDNN try its algorithms at the first run, as sizes stay the same."""
    torch.backends.cudnn.benchmark = True


def to_device(array: Any, device: str) -> Tensor:
    """A tensor of an array's values and dtype."""
    return torch.as_tensor(array).to(device)


def synchronize(device: torch.device) -> None:
    """Waits until the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class PeakMemory:
    """What the GPU's memory holds at most, beyond what it held at the start."""

    def __init__(self, device: torch.device):
        self._device = device if device.type == "cuda" else None
        if self._device:
            torch.cuda.reset_peak_memory_stats(device)
            self._start = torch.cuda.memory_allocated(device)

    def read(self) -> int | None:
        """Bytes since the start; None on the CPU."""
        if self._device is None:
            return None
        return torch.cuda.max_memory_allocated(self._device) - self._start
