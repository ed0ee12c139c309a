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
from collections.abc import Sequence
from typing import Any

try:
    import torch
except ImportError:
    sys.exit("regseg_jax.export.torch_benchmark: error: it needs torch; pip install torch")

from regseg_jax.export.torch_forms import (
    DTYPES,
    create_random_model,
    has_gpu,
    tune_convolutions,
)
from regseg_jax.export.torch_model import create_torch_model, load_weights
from regseg_jax.export.torch_timing import benchmark_size
from regseg_jax.reports.tables import format_table
from regseg_jax.runtime.files import check_new, write_json
from regseg_jax.runtime.machine import describe_run, read_cpu_name
from regseg_jax.weights.torch_files import load_state_dict_file

# Frames per second on a T4, version 3 and version 2 of the paper, by image size.
PAPER_FPS = {(1024, 2048): (37, 30), (720, 960): (112, 70)}
HEADERS = (
    *("runtime variant", "median ms", "5%", "95%", "FPS", "paper v3", "v2", "first run s", "MiB"),
    *("max diff", "pixels differ"),
)


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
