"""Predicts class maps and overlays for images and videos of any size.

python -m regseg_jax.predict --workdir=RUN --output=OUT IMAGE_VIDEO_OR_FOLDER ...

or label-id PNGs for a whole split, as benchmark servers want them; start again to go on:

python -m regseg_jax.predict --workdir=RUN --output=OUT --split=test [--data_dir=FOLDER]
"""

import dataclasses
import os
import pathlib
from collections.abc import Sequence

from absl import flags

from regseg_jax.prediction.engine import Failures, Predictor
from regseg_jax.prediction.images import predict_images
from regseg_jax.prediction.inputs import find_inputs
from regseg_jax.prediction.outputs import (
    ClassMapFormat,
    Drawing,
    ImageWriter,
    check_outputs,
    write_classes,
)
from regseg_jax.prediction.submission import check_whole, compute_fingerprint, write_label_ids
from regseg_jax.prediction.tiles import Tiling, parse_tiling
from regseg_jax.prediction.video import VideoWriter, check_av, predict_video
from regseg_jax.runs.parts import create_dataset
from regseg_jax.runs.trained import TrainedRun, load_run
from regseg_jax.runtime.command import run_command
from regseg_jax.training.evaluation import create_image_score_fn


@dataclasses.dataclass(frozen=True)
class Options:
    """How to predict.

    Attributes:
      ema: whether to use the averaged weights.
      flip: as `config.eval.flip`; None: the run's.
      scales: as `config.eval.scales`; None: the run's.
      tiling: how larger images are cut; None: only those too large for one piece are.
      drawing: what is written; of a split always label ids alone.
      train_ids: whether class maps hold training ids, not the values of label files.
    """

    ema: bool = False
    flip: bool | None = None
    scales: tuple[float, ...] | None = None
    tiling: Tiling | None = None
    drawing: Drawing = dataclasses.field(default_factory=Drawing)
    train_ids: bool = False

    def apply(self, trained: TrainedRun) -> TrainedRun:
        """The run with these options as its own.

        Raises:
          ValueError: if it holds no averaged weights and they are wanted, or a scale is wrong.
        """
        if self.ema and trained.ema_variables is None:
            raise ValueError("--ema: the run has config.ema_decay=0, so no averaged weights")
        if self.scales and min(self.scales) <= 0:
            raise ValueError(f"--scales is {self.scales}; use positive factors")
        config = dataclasses.replace(
            trained.config,
            eval=dataclasses.replace(
                trained.config.eval,
                flip=trained.config.eval.flip if self.flip is None else self.flip,
                scales=self.scales or trained.config.eval.scales,
            ),
        )
        variables = trained.ema_variables if self.ema else trained.variables
        return dataclasses.replace(trained, config=config, variables=variables)

    def create_predictor(self, trained: TrainedRun) -> Predictor:
        """What predicts as the run's evaluation does; of a run with these options applied."""
        config = trained.config.eval
        score_fn = create_image_score_fn(trained.model, config)
        return Predictor(score_fn, trained.variables, self.tiling, can_tile=not config.image_size)


def predict(
    workdir: str | os.PathLike,
    paths: Sequence[str | os.PathLike],
    output: str | os.PathLike,
    options: Options = Options(),
) -> list[pathlib.Path]:
    """Writes `NAME.png`, a class map, and `NAME_overlay.png` for each image, `classes.json`
    beside them, and `NAME_overlay.mp4` for each video.

    Images are prepared as in the run's evaluation (`config.eval.image_size`) and the logits
    upsampled to the image's own size. A class map holds the values of the data set's label files,
    in the classes' colours as its palette. Each new image size is compiled once. What is left out
    of a folder is printed.

    Args:
      workdir: of a run with a checkpoint.
      paths: image and video files, or folders of them; the output mirrors their subfolders.
      output: a folder; created where missing. Files of the same name are replaced.
      options: how.

    Returns:
      The paths written.

    Raises:
      ValueError: if a path does not exist, two predictions would be one file, or, after all others
        are written, some inputs cannot be read.
    """
    folder, drawing = pathlib.Path(output), options.drawing
    inputs = find_inputs(paths, folder)
    if inputs.skipped:
        print(inputs.describe_skipped())
    if inputs.videos:
        check_av()
    outputs = {x: drawing.get_image_paths(folder, x.name) for x in inputs.images}
    outputs |= {x: drawing.get_video_paths(folder, x.name) for x in inputs.videos}
    check_outputs(outputs)
    trained = options.apply(load_run(workdir))
    class_maps = ClassMapFormat(trained.class_table, _get_values(trained, options.train_ids))
    predictor, failures = options.create_predictor(trained), Failures()
    write_classes(folder, class_maps)
    predict_images(inputs.images, predictor, ImageWriter(folder, class_maps, drawing), failures)
    for video in inputs.videos:
        predict_video(video, predictor, VideoWriter(folder, class_maps, drawing), failures)
    failures.raise_any(len(outputs))
    return [path for paths in outputs.values() for path in paths]


def _get_values(trained: TrainedRun, train_ids: bool) -> tuple[int, ...]:
    """What stands for each training id in class maps: as in the label files of the data set.

    Labels that are colours have the label ids of the class table: CamVid's original edition those
    of SegNet's. Cityscapes always has its label ids, which its server and tools want.
    """
    config, table = trained.config, trained.class_table
    own_train_ids = config.data.source == "folder" and config.folder.label_format == "train_ids"
    return tuple(range(table.num_classes)) if train_ids or own_train_ids else table.label_ids


def predict_split(
    workdir: str | os.PathLike,
    split: str,
    output: str | os.PathLike,
    data_dir: str | None = None,
    options: Options = Options(),
) -> list[pathlib.Path]:
    """Writes label ids for a whole split of the run's data set, see `write_label_ids`.

    Raises:
      ValueError: if images are missing or cannot be read; before anything is predicted where the
        split's folders show it.
    """
    trained = options.apply(load_run(workdir))
    config, class_table = trained.config, trained.class_table
    if data_dir:
        data = dataclasses.replace(config.data, data_dir=data_dir)
        config = dataclasses.replace(config, data=data)
    source = create_dataset(config).create_source(split)
    check_whole(source, class_table, split)
    fingerprint = compute_fingerprint(trained.variables)
    fingerprint += f" flip={config.eval.flip} scales={tuple(config.eval.scales)}"
    if options.tiling:
        fingerprint += f" {options.tiling}"
    predictor = options.create_predictor(trained)
    return write_label_ids(source, predictor, class_table, output, fingerprint)


def main(argv: list[str]) -> None:
    """Predicts and prints where the pictures are."""
    values = flags.FLAGS
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
    written = predict(values.workdir, argv, values.output, options)
    print(f"wrote {len(written)} class maps and overlays to {values.output}")


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "The run whose best checkpoint is used.")
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
    flags.mark_flags_as_required(["workdir", "output"])
    run_command(main, "regseg_jax.predict")
