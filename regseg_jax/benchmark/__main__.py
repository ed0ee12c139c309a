"""Times inference or the training step in JAX beside PyTorch, in turns within one run.

python -m regseg_jax.benchmark --backends=jax,torch --mode=inference --size=512,1024

Both start from the same weights, and what each computes is compared with float32 before it is
timed. PyTorch is needed for `torch` among the backends only.
"""

import importlib.util
import os
from collections.abc import Sequence
from typing import Any

import jax
from absl import flags

from regseg_jax.benchmark.rows import (
    BACKENDS,
    NUM_WARMUP,
    compute_reference,
    create_rows,
    format_rows,
    measure_rows,
    to_json,
)
from regseg_jax.benchmark.workload import MODES, Workload, create_workload
from regseg_jax.config import PRECISIONS
from regseg_jax.models.regseg import create_model
from regseg_jax.runtime.arguments import parse_size
from regseg_jax.runtime.command import run_command
from regseg_jax.runtime.environment import describe_environment
from regseg_jax.runtime.files import check_new, write_json


def benchmark(
    workload: Workload,
    backends: Sequence[str],
    precisions: Sequence[str],
    num_runs: int,
    torch_model: Any = None,
) -> dict[str, Any]:
    """Measures and prints the table; see `create_rows` for the arguments.

    Returns:
      All of it as plain data.
    """
    environment = describe_environment()
    reference = compute_reference(workload, backends, torch_model)
    rows = create_rows(workload, backends, precisions, torch_model)
    measure_rows(rows, workload, reference, num_runs)
    print(format_rows(rows))
    return {
        **environment,
        "mode": workload.mode,
        "model": workload.model.variant.name,
        "num_classes": workload.model.num_classes,
        "images": workload.images.shape,
        "num_warmup": NUM_WARMUP,
        "num_runs": num_runs,
        "teraflop": workload.flops / 1e12,
        "rows": to_json(rows),
    }


def _choose(name: str, text: str, known: Sequence[str]) -> list[str]:
    values = text.split(",")
    if unknown := [value for value in values if value not in known]:
        raise ValueError(f"--{name} has {unknown}; known are {', '.join(known)}")
    return values


def main(argv: Sequence[str]) -> None:
    """Runs the benchmark that the flags name.

    Raises:
      ValueError: for a bad flag, or if PyTorch is asked for and not installed.
    """
    values = flags.FLAGS
    if argv:
        raise ValueError(f"unexpected arguments {argv}; flags start with --")
    backends = _choose("backends", values.backends, BACKENDS)
    (mode,) = _choose("mode", values.mode, MODES)
    precisions = _choose("precisions", values.precisions, tuple(PRECISIONS))
    if values.batch_size < 1 or values.num_runs < 2:
        raise ValueError(
            f"--batch_size={values.batch_size} --num_runs={values.num_runs}: at least 1 and 2"
        )
    check_new(values.output)
    if "torch" in backends and importlib.util.find_spec("torch") is None:
        raise ValueError("PyTorch is not installed: pip install torch, or --backends=jax")

    # PyTorch needs some of the GPU's memory too, and a cached program would compile in no time.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    jax.config.update("jax_enable_compilation_cache", False)
    model = create_model(values.model, values.num_classes)
    workload = create_workload(mode, model, parse_size(values.size), values.batch_size)
    torch_model = None
    if "torch" in backends:
        from regseg_jax.export import torch_forms

        torch_forms.tune_convolutions()
        torch_model = torch_forms.create_random_model(values.model, values.num_classes)
    result = benchmark(workload, backends, precisions, values.num_runs, torch_model)
    if values.output:
        write_json(values.output, result)
        print(f"wrote {values.output}")


def run() -> None:
    """Defines the flags and runs the command."""
    flags.DEFINE_string("backends", "jax,torch", "jax, torch, or both with a comma between.")
    flags.DEFINE_string("mode", "inference", "inference, or train for a whole training step.")
    flags.DEFINE_string(
        "model", "exp48_decoder26", "BACKBONE_DECODER, an alias, or a variant file."
    )
    flags.DEFINE_integer("num_classes", 19, "Classes of the model's output.")
    flags.DEFINE_string("size", "512,1024", "HEIGHT,WIDTH of the images.")
    flags.DEFINE_integer("batch_size", 1, "Images at once.")
    flags.DEFINE_string("precisions", "float32", "float32, bfloat16, float16; with commas between.")
    flags.DEFINE_integer("num_runs", 20, "Timed runs of each row.")
    flags.DEFINE_string("output", None, "JSON file to write; else none.")
    run_command(main, "regseg_jax.benchmark")


if __name__ == "__main__":
    run()
