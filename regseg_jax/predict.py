"""Predicts class maps and overlays for images and videos of any size.

python -m regseg_jax.predict --workdir=RUN --output=OUT IMAGE_VIDEO_OR_FOLDER ...

with exported weights and no run by --weights=FILE_OR_NAME in place of --workdir;

or label-id PNGs for a whole split, as benchmark servers want them; start again to go on:

python -m regseg_jax.predict --workdir=RUN --output=OUT --split=test [--data_dir=FOLDER]
"""

from absl import flags

from regseg_jax.prediction.outputs import Drawing
from regseg_jax.prediction.tiles import parse_tiling
from regseg_jax.runs.predict import Options, predict, predict_split
from regseg_jax.runs.trained import Trained
from regseg_jax.runtime.command import run_command


def main(argv: list[str]) -> None:
    """Predicts and prints where the pictures are."""
    values = flags.FLAGS
    if bool(values.workdir) == bool(values.weights) or (values.weights and values.split):
        raise ValueError("give --workdir=RUN, or without --split --weights=FILE_OR_NAME")
    class_maps = True if values.labels_only else values.labels
    options = Options(
        ema=values.ema,
        flip=values.flip,
        scales=tuple(map(float, values.scales)) if values.scales else None,
        tiling=parse_tiling(values.tile, values.overlap),
        drawing=Drawing(class_maps, not values.labels_only, values.alpha, values.legend),
        train_ids=values.train_ids,
    )
    if values.split:
        if argv:
            raise ValueError(f"--split takes no images, but {argv} are given; leave out either")
        written = predict_split(
            values.workdir, values.split, values.output, values.data_dir, options
        )
        print(f"{values.output} holds the label ids of {len(written)} images")
        return
    trained = values.workdir
    if values.weights:
        trained = Trained.from_weights(values.weights, values.model)
    written = predict(trained, argv, values.output, options)
    print(f"wrote {len(written)} class maps and overlays to {values.output}")


def run() -> None:
    """Defines the flags and runs the command."""
    flags.DEFINE_string("workdir", None, "The run whose best checkpoint is used.")
    flags.DEFINE_string("weights", None, "Exported weights, or the name of shipped ones.")
    flags.DEFINE_string("model", None, "The variant, where a file of --weights leaves it open.")
    flags.DEFINE_string("split", None, "Write label ids for this split of the data set.")
    flags.DEFINE_string("data_dir", None, "Where --split is; else where the run had it.")
    flags.DEFINE_bool("ema", False, "Use the weights averaged over the steps.")
    flags.DEFINE_bool("flip", None, "Average with the mirrored image; else as the run's.")
    flags.DEFINE_list("scales", None, "Average over these scales; else as the run's.")
    flags.DEFINE_string("output", None, "The folder that the pictures are written to.")
    flags.DEFINE_bool("labels", None, "Write class maps; by default of images, not of videos.")
    flags.DEFINE_bool("labels_only", False, "Write class maps and no overlays.")
    flags.DEFINE_alias("labels-only", "labels_only")
    flags.DEFINE_float("alpha", 0.5, "The weight of the colours in overlays, from 0 to 1.")
    flags.DEFINE_bool("legend", None, "A legend under overlays; by default of images.")
    flags.DEFINE_bool("train_ids", False, "Class maps of training ids, not label values.")
    flags.DEFINE_list("tile", None, "HEIGHT,WIDTH: predict larger images in tiles, in pixels.")
    flags.DEFINE_integer("overlap", None, "Of tiles, in pixels; by default a quarter of a side.")
    flags.mark_flag_as_required("output")
    run_command(main, "regseg_jax.predict")


if __name__ == "__main__":
    run()
