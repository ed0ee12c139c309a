"""predict(workdir, paths, output) and predict_split(...): what a run or weights file predicts."""

import dataclasses
import os
import pathlib
from collections.abc import Sequence

from regseg_jax.models.folding import prepare_inference
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
from regseg_jax.prediction.tiles import Tiling
from regseg_jax.prediction.video import VideoWriter, predict_video
from regseg_jax.runs.parts import create_dataset
from regseg_jax.runs.trained import Trained, load_run
from regseg_jax.runtime.packages import require_packages
from regseg_jax.training.eval_step import split_images
from regseg_jax.training.evaluation import (
    EvalConfig,
    create_image_classify_fn,
    create_image_score_fn,
)
from regseg_jax.training.sharding import create_height_mesh, replicate


@dataclasses.dataclass(frozen=True)
class Options:
    """How to predict.

    Attributes:
      ema: whether to use the averaged weights.
      flip: as `config.eval.flip`; None: the run's.
      scales: as `config.eval.scales`; None: the run's.
      tiling: how larger images are cut; None: only very large ones are.
      spatial_devices: that share each image's rows.
      drawing: what is written; of a split always label ids alone.
      train_ids: whether class maps hold training ids, not the values of label files.
    """

    ema: bool = False
    flip: bool | None = None
    scales: tuple[float, ...] | None = None
    tiling: Tiling | None = None
    spatial_devices: int = 1
    drawing: Drawing = dataclasses.field(default_factory=Drawing)
    train_ids: bool = False

    def __post_init__(self) -> None:
        """Raises ValueError if a scale is not positive."""
        if self.scales and min(self.scales) <= 0:
            raise ValueError(f"--scales is {self.scales}; use positive factors")

    def create_predictor(self, trained: Trained) -> Predictor:
        """A predictor that does as the run's evaluation, except for these options.

        Raises:
          ValueError: if there are fewer devices than are to share an image.
        """
        mesh = create_height_mesh(self.spatial_devices)
        config = self.apply(trained.eval_config)
        score_fn = create_image_score_fn(trained.model, config)
        classify_fn = create_image_classify_fn(trained.model, config)
        variables = prepare_inference(replicate(trained.variables, mesh), trained.model.dtype)
        return Predictor(
            split_images(score_fn, mesh),
            variables,
            self.tiling,
            can_tile=not config.image_size,
            classify_fn=split_images(classify_fn, mesh),
        )

    def apply(self, config: EvalConfig) -> EvalConfig:
        """The run's evaluation with these options."""
        flip = config.flip if self.flip is None else self.flip
        return dataclasses.replace(config, flip=flip, scales=self.scales or config.scales)

    def compute_fingerprint(self, trained: Trained) -> str:
        """Identifies the weights and options that a prediction was made with."""
        config = self.apply(trained.eval_config)
        fingerprint = compute_fingerprint(trained.variables)
        fingerprint += f" flip={config.flip} scales={tuple(config.scales)}"
        return f"{fingerprint} {self.tiling}" if self.tiling else fingerprint


def predict(
    workdir: str | os.PathLike | Trained,
    paths: Sequence[str | os.PathLike],
    output: str | os.PathLike,
    options: Options = Options(),
) -> list[pathlib.Path]:
    """Writes `NAME.png`, a class map, and `NAME_overlay.png` for each image, `NAME_overlay.mp4`
    for each video, and `classes.json`.

    Images are prepared as in the run's evaluation (`config.eval.image_size`) and the logits
    upsampled to the image's own size. A class map holds the values of the data set's label files,
    in the classes' colours as its palette. Each new image size is compiled once. What is left out
    of a folder is printed.

    Args:
      workdir: of a run with a checkpoint; or what was already loaded.
      paths: image and video files, or folders of them; the output mirrors their subfolders.
      output: a folder; created if missing. Files of the same name are replaced.
      options: how.

    Returns:
      The paths written.

    Raises:
      ValueError: if a path does not exist, two predictions would have the same path, or, after
        all others are written, some inputs cannot be read.
    """
    folder, drawing = pathlib.Path(output), options.drawing
    inputs = find_inputs(paths, folder)
    if inputs.skipped:
        print(inputs.describe_skipped())
    if inputs.videos:
        require_packages("reading videos (the extra [video])", ("av",))
    outputs = {x: drawing.get_image_paths(folder, x.name) for x in inputs.images}
    outputs |= {x: drawing.get_video_paths(folder, x.name) for x in inputs.videos}
    check_outputs(outputs)
    trained = workdir if isinstance(workdir, Trained) else Trained.from_run(load_run(workdir))
    trained = trained.with_ema() if options.ema else trained
    table = trained.class_table
    values = tuple(range(table.num_classes)) if options.train_ids else table.label_ids
    class_maps = ClassMapFormat(table, values)
    predictor, failures = options.create_predictor(trained), Failures()
    write_classes(folder, class_maps)
    predict_images(inputs.images, predictor, ImageWriter(folder, class_maps, drawing), failures)
    for video in inputs.videos:
        predict_video(video, predictor, VideoWriter(folder, class_maps, drawing), failures)
    failures.raise_any(len(outputs))
    return [path for paths in outputs.values() for path in paths]


def predict_split(
    workdir: str | os.PathLike,
    split: str,
    output: str | os.PathLike,
    data_dir: str | None = None,
    options: Options = Options(),
) -> list[pathlib.Path]:
    """Writes label ids for a whole split of the run's data set, see `write_label_ids`.

    Raises:
      ValueError: if images are missing or cannot be read; before anything is predicted if the
        split's folders show it.
    """
    run = load_run(workdir)
    trained, config = Trained.from_run(run), run.config
    trained = trained.with_ema() if options.ema else trained
    if data_dir:
        data = dataclasses.replace(config.data, data_dir=data_dir)
        config = dataclasses.replace(config, data=data)
    source = create_dataset(config).create_source(split, workdir)
    check_whole(source, trained.class_table, split)
    predictor = options.create_predictor(trained)
    fingerprint = options.compute_fingerprint(trained)
    return write_label_ids(source, predictor, trained.class_table, output, fingerprint)
