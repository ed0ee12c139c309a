"""Times PyTorch's inference in each runtime variant, after checking what it computes.

Needs torch and the standard library alone, as `export.torch_benchmark` does.
"""

import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from regseg_jax.export.torch_forms import (
    Form,
    PeakMemory,
    create_inference,
    exact_float32,
    get_inference_forms,
    synchronize,
)
from regseg_jax.runtime.timing import check_difference, describe_error, summarize

# Largest difference to float32, root mean square in units of the logits' standard deviation.
# A mistake gives about 1, rounding (TF32 for float32) a small part of these.
TOLERANCES = {"float32": 0.02, "bfloat16": 0.3, "float16": 0.1}


class Agreement(NamedTuple):
    """How logits differ from the float32 ones.

    Attributes:
      max_difference: of a logit.
      relative_difference: root mean square, in units of the float32 logits' standard deviation.
      differing_pixels: fraction of pixels whose class differs.
    """

    max_difference: float
    relative_difference: float
    differing_pixels: float


def compare_logits(logits: Tensor, reference: Tensor) -> Agreement:
    """Compares logits [B, num_classes, H, W] of any dtype with float32 ones."""
    difference = logits.float() - reference
    rms = difference.square().mean().sqrt() / reference.std()
    differing = (logits.argmax(1) != reference.argmax(1)).float().mean()
    return Agreement(difference.abs().max().item(), rms.item(), differing.item())


def measure(
    run: Callable[[], Any], device: torch.device, num_warmup: int, num_runs: int
) -> list[float]:
    """Seconds of each timed run, from its start until the device is done."""
    seconds = []
    for _ in range(num_warmup + num_runs):
        synchronize(device)
        start = time.perf_counter()
        run()
        synchronize(device)
        seconds.append(time.perf_counter() - start)
    return seconds[num_warmup:]


def benchmark_size(
    model: nn.Module,
    size: tuple[int, int],
    precisions: Sequence[str],
    num_warmup: int,
    num_runs: int,
    skip_compile: bool = False,
) -> list[dict[str, Any]]:
    """Times every runtime variant on one random image of a size; checks each before timing it.

    Args:
      model: in float32 and evaluation mode, on the device to time.
      size: the image's height and width.
      precisions: keys of `DTYPES`.
      num_warmup: runs before those that count.
      num_runs: timed runs, at least 2.
      skip_compile: leaves out the runtime variants that use `torch.compile`.

    Returns:
      A row for each runtime variant: `size`, `precision`, `form` and what was measured, or
      `error` with the reason why it could not be.
    """
    device = next(model.parameters()).device
    images = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0)).to(device)
    with exact_float32():
        reference = create_inference(model, Form(), "float32", images)().clone()
    rows = []
    for precision in precisions:
        for form in get_inference_forms(precision):
            if form.compiled and skip_compile:
                continue
            row = {"size": list(size), "precision": precision, "form": str(form)}
            _show_progress(f"timing {size[0]} x {size[1]}, {precision}, {form}")
            try:
                row |= _benchmark_form(
                    model, form, precision, images, reference, num_warmup, num_runs
                )
            except Exception as error:  # one that fails must not stop the others
                row["error"] = describe_error(error)
            if device.type == "cuda":
                torch.cuda.empty_cache()
            rows.append(row)
    _show_progress("")
    return rows


def _show_progress(text: str) -> None:
    """Replaces the terminal's last line; tqdm may not be there."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


def _benchmark_form(
    model: nn.Module,
    form: Form,
    precision: str,
    images: Tensor,
    reference: Tensor,
    num_warmup: int,
    num_runs: int,
) -> dict[str, Any]:
    device = images.device
    memory, start = PeakMemory(device), time.perf_counter()
    infer = create_inference(model, form, precision, images)
    logits = infer()
    synchronize(device)
    first_run_seconds, memory_bytes = time.perf_counter() - start, memory.read()
    agreement = compare_logits(logits, reference)
    check_difference(agreement.relative_difference, TOLERANCES[precision])
    times = summarize(measure(infer, device, num_warmup, num_runs))
    return {
        **times,
        "fps": 1e3 / times["median_ms"],
        "first_run_seconds": first_run_seconds,
        "memory_bytes": memory_bytes,
        **agreement._asdict(),
    }
