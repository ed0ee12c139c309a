"""Exports a run's best checkpoint to safetensors, PyTorch, ONNX or StableHLO.

python -m regseg_jax.export --workdir=RUN --format=safetensors --output=regseg.safetensors
"""

from absl import flags

from regseg_jax.export.export import DTYPES, FORMATS, export_run
from regseg_jax.runtime.arguments import parse_size
from regseg_jax.runtime.command import run_command

FLAGS = flags.FLAGS


def main(argv: list[str]) -> None:
    """Writes the file that the flags describe and prints its path."""
    if argv:
        raise ValueError(f"unexpected arguments {argv}; flags start with --")
    size = None if FLAGS.size is None else parse_size(FLAGS.size)
    export_run(
        FLAGS.workdir,
        FLAGS.format,
        FLAGS.output,
        size,
        class_map=FLAGS.class_map,
        dtype=FLAGS.dtype,
    )
    print(f"wrote {FLAGS.output}")


def run() -> None:
    """Defines the flags and runs the command."""
    flags.DEFINE_string("workdir", None, "The run whose best checkpoint is exported.")
    flags.DEFINE_enum("format", None, list(FORMATS), "The kind of file.")
    flags.DEFINE_string("output", None, "The file to write; it must not exist.")
    flags.DEFINE_string("size", None, "HEIGHT,WIDTH to fix the file to; else images of any size.")
    flags.DEFINE_bool("class_map", False, "Give the most likely class of each pixel, not logits.")
    flags.DEFINE_enum("dtype", "float32", DTYPES, "Of the weights; for --format=safetensors.")
    flags.mark_flags_as_required(["workdir", "format", "output"])
    run_command(main, "regseg_jax.export")


if __name__ == "__main__":
    run()
