"""Times RegSeg's inference in PyTorch alone, by the paper's protocol, in each runtime variant.

python -m regseg_jax.export.torch_benchmark --weights=regseg.pt --size=1024,2048 --output=t4.json

Needs torch and no other package. It imports other modules of this project: copy the whole folder
regseg_jax, or `pip install --no-deps .`. The protocol (paper, section 4.4): batch 1, mixed
precision, upsampling to the image's size included, 10 warm-up and 100 timed runs, each
synchronised.
`regseg_jax.benchmark` times the same runtime variants next to JAX.
"""

import argparse
import platform
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

try:
    import torch
    from torch import Tensor, nn
except ImportError:
    sys.exit("regseg_jax.export.torch_benchmark: error: it needs torch; pip install torch")

from regseg_jax.export.torch_forms import (
    DTYPES,
    Form,
    PeakMemory,
    create_inference,
    create_random_model,
    exact_float32,
    get_inference_forms,
    has_gpu,
    synchronize,
    tune_convolutions,
)
from regseg_jax.export.torch_model import create_torch_model, load_weights
from regseg_jax.reports.tables import format_table
from regseg_jax.runtime.files import check_new, write_json
from regseg_jax.runtime.machine import describe_run, read_cpu_name
from regseg_jax.runtime.timing import check_difference, describe_error, summarize
from regseg_jax.weights.torch_files import load_state_dict_file

# Frames per second on a T4, version 3 and version 2 of the paper, by image size.
PAPER_FPS = {(1024, 2048): (37, 30), (720, 960): (112, 70)}
# Largest difference to float32, root mean square in units of the logits' standard
# deviation. A mistake
# gives about 1, rounding (TF32 for float32) a small part of these.
TOLERANCES = {"float32": 0.02, "bfloat16": 0.3, "float16": 0.1}
HEADERS = (
    *("runtime variant", "median ms", "5%", "95%", "FPS", "paper v3", "v2", "first run s", "MiB"),
    *("max diff", "pixels differ"),
)


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


def describe_hardware(device: torch.device) -> dict[str, Any]:
    """Names of the processor and of the GPU."""
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {"gpu": gpu, "cpu": read_cpu_name(), "torch_threads": torch.get_num_threads()}


def describe_versions() -> dict[str, str | None]:
    """Versions of what PyTorch's speed depends on."""
    cudnn = torch.backends.cudnn.version()
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": None if cudnn is None else str(cudnn),
    }


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


def format_rows(rows: Sequence[dict[str, Any]]) -> str:
    """The table of one size; the reasons of the rows that failed are below it."""
    cells, reasons = [], []
    for row in rows:
        name = f"{row['precision']}: {row['form']}"
        if "error" in row:
            reasons.append(f"not timed: {name}: {row['error']}")
            cells.append([name, *[""] * (len(HEADERS) - 1)])
            continue
        paper = PAPER_FPS.get(tuple(row["size"]), ("", ""))
        memory = row["memory_bytes"]
        cells.append(
            [
                *(name, *(f"{row[key]:.2f}" for key in ("median_ms", "p5_ms", "p95_ms"))),
                *(f"{row['fps']:.1f}", *paper, f"{row['first_run_seconds']:.1f}"),
                *("" if memory is None else f"{memory / 2**20:.0f}",),
                *(f"{row['max_difference']:.2g}", f"{row['differing_pixels']:.3%}"),
            ]
        )
    return "\n".join([format_table(HEADERS, cells), *reasons])


def format_trtexec(size: tuple[int, int]) -> str:
    """The command that times an ONNX file of any size with TensorRT, which this project lacks."""
    height, width = size
    return (
        f"trtexec --onnx=regseg.onnx --fp16 --shapes=images:1x3x{height}x{width} "
        "--useCudaGraph --noDataTransfers --warmUp=1000 --iterations=100 --avgRuns=100"
    )


def _size(text: str) -> tuple[int, int]:
    numbers = [number.strip() for number in text.split(",")]
    if len(numbers) != 2 or not all(number.isdecimal() and int(number) for number in numbers):
        raise argparse.ArgumentTypeError(f"{text!r}: it must be HEIGHT,WIDTH, such as 1024,2048")
    return int(numbers[0]), int(numbers[1])


def _precisions(text: str) -> list[str]:
    names = text.split(",")
    if unknown := [name for name in names if name not in DTYPES]:
        raise argparse.ArgumentTypeError(f"unknown {unknown}; known are {', '.join(DTYPES)}")
    return names


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m regseg_jax.export.torch_benchmark", description=__doc__.splitlines()[0]
    )
    add = parser.add_argument
    add("--weights", help="PyTorch file of `regseg_jax.export`; else random weights")
    add("--model", help="BACKBONE_DECODER, or an alias; else as the file says, or exp48_decoder26")
    add("--num_classes", type=int, help="of the weights; else as the file says, or 19")
    add("--size", type=_size, action="append", help="HEIGHT,WIDTH; may be given several times")
    add(
        "--precisions",
        type=_precisions,
        help="float32, bfloat16, float16; with commas between: "
        "else float32, and on a GPU float16 too",
    )
    add("--num_warmup", type=int, help="untimed runs: 10 on a GPU, 2 on the CPU")
    add("--num_runs", type=int, help="timed runs: 100 on a GPU, 10 on the CPU")
    add("--skip_compile", action="store_true", help="leave out torch.compile, which takes minutes")
    add("--device", choices=("cuda", "cpu"), help="the GPU if there is one")
    add("--output", help="JSON file to write")
    return parser.parse_args(arguments)


def run(arguments: argparse.Namespace) -> None:
    """Runs the benchmark, prints its tables and writes its file.

    Raises:
      ValueError, OSError: for bad arguments or files.
    """
    check_new(arguments.output)
    device = torch.device(arguments.device or ("cuda" if has_gpu() else "cpu"))
    if device.type == "cuda" and not has_gpu():
        raise ValueError("--device=cuda: PyTorch finds no GPU here; use --device=cpu")
    on_gpu = device.type == "cuda"
    num_warmup = (10 if on_gpu else 2) if arguments.num_warmup is None else arguments.num_warmup
    num_runs = (100 if on_gpu else 10) if arguments.num_runs is None else arguments.num_runs
    if num_runs < 2 or num_warmup < 0:
        raise ValueError(f"--num_runs={num_runs} --num_warmup={num_warmup}: at least 2 and 0")
    # Processors without bfloat16 instructions take ten times as long in it as in float32.
    precisions = arguments.precisions or (["float32", "float16"] if on_gpu else ["float32"])

    file = load_state_dict_file(arguments.weights) if arguments.weights else None
    metadata = file.metadata if file else {}
    name = arguments.model or metadata.get("name", "exp48_decoder26")
    num_classes = arguments.num_classes or metadata.get("num_classes", 19)
    if file:
        print(file.report)
        model = create_torch_model(name, num_classes).eval()
        load_weights(model, file.tensors)
    else:
        model = create_random_model(name, num_classes)
    model.to(device)
    tune_convolutions()

    content = {
        **describe_run(),
        **{"model": name, "num_classes": num_classes},
        **{"weights": arguments.weights or "random", "batch_size": 1},
        **{"num_warmup": num_warmup, "num_runs": num_runs},
        **{"hardware": describe_hardware(device), "versions": describe_versions()},
        **{"rows": [], "paper_fps_on_t4": {}, "trtexec": {}},
    }
    hardware, versions = content["hardware"], content["versions"]
    print(f"{name}, {content['weights']} weights, batch 1, {num_runs} runs")
    print(f"{hardware['gpu'] or hardware['cpu']}, {versions}")
    if not on_gpu:
        print("No GPU is used: these are the CPU's times, not to be compared with the paper's.")
    for size in arguments.size or list(PAPER_FPS):
        rows = benchmark_size(model, size, precisions, num_warmup, num_runs, arguments.skip_compile)
        print(f"\n{size[0]} x {size[1]} (paper: FPS on a T4, mixed precision)\n{format_rows(rows)}")
        content["rows"] += rows
        key = f"{size[0]}x{size[1]}"
        if size in PAPER_FPS:
            content["paper_fps_on_t4"][key] = dict(zip(("v3", "v2"), PAPER_FPS[size], strict=True))
        content["trtexec"][key] = format_trtexec(size)
    print("\nTensorRT, apart from the above (the ONNX file by `python -m regseg_jax.export`):")
    print("\n".join(content["trtexec"].values()))
    if arguments.output:
        write_json(arguments.output, content)
        print(f"wrote {arguments.output}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Parses the arguments and runs; an error that the user can fix is one line."""
    try:
        run(_parse(arguments))
    except (ValueError, OSError) as error:
        message = " ".join(str(error).split())
        print(f"regseg_jax.export.torch_benchmark: error: {message}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
