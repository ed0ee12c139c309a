"""Exports a run's best checkpoint, or a weights file, to safetensors, PyTorch, ONNX or StableHLO.

python -m regseg_jax.export --workdir=RUN --format=safetensors --output=regseg.safetensors
python -m regseg_jax.export --weights=camvid --format=onnx --output=camvid.onnx
"""

from absl import flags

from regseg_jax.export.export import DTYPES, FORMATS, export_run
from regseg_jax.runs.trained import Trained
from regseg_jax.runtime.arguments import parse_size
from regseg_jax.runtime.command import run_command

FLAGS = flags.FLAGS


def main(argv: list[str]) -> None:
    """Writes the file that the flags describe and prints its path."""
    if argv:
        raise ValueError(f"unexpected arguments {argv}; flags start with --")
    if bool(FLAGS.workdir) == bool(FLAGS.weights):
        raise ValueError("give either --workdir=RUN or --weights=FILE_OR_NAME")
    size = None if FLAGS.size is None else parse_size(FLAGS.size)
    trained = FLAGS.workdir
    if FLAGS.weights:
        trained = Trained.from_weights(FLAGS.weights, FLAGS.model)
    export_run(
        trained,
        FLAGS.format,
        FLAGS.output,
        size,
        class_map=FLAGS.class_map,
        dtype=FLAGS.dtype,
        ema=FLAGS.ema,
    )
    print(f"wrote {FLAGS.output}")


def run() -> None:
    """Defines the flags and runs the command."""
    flags.DEFINE_string("workdir", None, "The run whose best checkpoint is exported.")
    flags.DEFINE_string("weights", None, "A weights file, or the name of shipped ones, instead.")
    flags.DEFINE_string("model", None, "The variant, where a file of --weights leaves it open.")
    flags.DEFINE_bool("ema", False, "The weights averaged over the steps.")
    flags.DEFINE_enum("format", None, list(FORMATS), "The kind of file.")
    flags.DEFINE_string("output", None, "The file to write; it must not exist.")
    flags.DEFINE_string("size", None, "HEIGHT,WIDTH to fix the file to; else images of any size.")
    flags.DEFINE_bool("class_map", False, "Give the most likely class of each pixel, not logits.")
    flags.DEFINE_enum("dtype", "float32", DTYPES, "Of the weights; for --format=safetensors.")
    flags.mark_flags_as_required(["format", "output"])
    run_command(main, "regseg_jax.export")


if __name__ == "__main__":
    run()
