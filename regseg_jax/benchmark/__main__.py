"""Times inference or the training step in JAX and PyTorch, in turns within one run.

python -m regseg_jax.benchmark --backends=jax,torch --mode=inference --size=512,1024

Both start from the same weights, and what each computes is compared with float32 before it is
timed. PyTorch is needed for `torch` among the backends only.
"""

import os
from collections.abc import Sequence
from typing import Any

import jax
from absl import flags

from regseg_jax.benchmark.core import NUM_WARMUP, define_workload_flags, run_benchmark
from regseg_jax.benchmark.rows import (
    BACKENDS,
    compute_reference,
    create_rows,
    format_rows,
    measure_rows,
    to_json,
)
from regseg_jax.benchmark.workload import MODES, Workload, create_workload
from regseg_jax.config import PRECISIONS
from regseg_jax.models.regseg import create_model
from regseg_jax.runtime.arguments import parse_choices, parse_size
from regseg_jax.runtime.packages import require_packages


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
    reference = compute_reference(workload, backends, torch_model)
    rows = create_rows(workload, backends, precisions, torch_model)
    measure_rows(rows, workload, reference, num_runs)
    print(format_rows(rows))
    return {
        "mode": workload.mode,
        "model": workload.model.variant.name,
        "num_classes": workload.model.num_classes,
        "images": workload.images.shape,
        "num_warmup": NUM_WARMUP,
        "num_runs": num_runs,
        "teraflop": workload.flops / 1e12,
        "rows": to_json(rows),
    }


def measure(values: flags.FlagValues) -> dict[str, Any]:
    """Runs the benchmark that the flags name.

    Raises:
      ValueError: for a bad flag, or if PyTorch is asked for and not installed.
    """
    backends = parse_choices(values.backends, "backends", BACKENDS)
    precisions = parse_choices(values.precisions, "precisions", tuple(PRECISIONS))
    if "torch" in backends:
        require_packages("--backends=torch", ("torch",))

    # PyTorch needs some of the GPU's memory too, and a cached program would compile in no time.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    jax.config.update("jax_enable_compilation_cache", False)
    model = create_model(values.model, values.num_classes)
    workload = create_workload(values.mode, model, parse_size(values.size), values.batch_size)
    torch_model = None
    if "torch" in backends:
        from regseg_jax.export import torch_forms

        torch_forms.tune_convolutions()
        torch_model = torch_forms.create_random_model(values.model, values.num_classes)
    return benchmark(workload, backends, precisions, values.num_runs, torch_model)


def run() -> None:
    """Defines the flags and runs the command."""
    flags.DEFINE_string("backends", "jax,torch", "jax, torch, or both with a comma between.")
    flags.DEFINE_enum("mode", "inference", MODES, "Inference, or a whole training step.")
    flags.DEFINE_integer("num_classes", 19, "Classes of the model's output.", lower_bound=1)
    flags.DEFINE_string("precisions", "float32", "float32, bfloat16, float16; with commas between.")
    flags.DEFINE_integer("num_runs", 20, "Timed runs of each row.", lower_bound=2)
    define_workload_flags("exp48_decoder26", "512,1024", batch_size=1)
    run_benchmark(measure, "regseg_jax.benchmark")


if __name__ == "__main__":
    run()
