"""Predicts class maps and overlays for images of any size.

python -m regseg_jax.predict --workdir=RUN --output=OUT IMAGE_OR_FOLDER ...

or label-id PNGs for a whole split, as benchmark servers want them; start again to go on:

python -m regseg_jax.predict --workdir=RUN --output=OUT --split=test [--data_dir=FOLDER]
"""

import dataclasses
import os
import pathlib
from collections.abc import Callable, Sequence

import jax
import numpy as np
from absl import flags
from PIL import Image
from tqdm import tqdm

from regseg_jax.data.classes import ClassTable
from regseg_jax.data.sources.source import list_images, load_image
from regseg_jax.prediction.submission import check_whole, compute_fingerprint, write_label_ids
from regseg_jax.reports.pictures import draw_overlay, save_png
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
    """

    ema: bool = False
    flip: bool | None = None
    scales: tuple[float, ...] | None = None

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


def predict(
    workdir: str | os.PathLike,
    paths: Sequence[str | os.PathLike],
    output: str | os.PathLike,
    options: Options = Options(),
) -> list[pathlib.Path]:
    """Writes `NAME.png`, a class map, and `NAME_overlay.png` for each image.

    Images are prepared as in the run's evaluation (`config.eval.image_size`) and the logits
    upsampled to the image's own size. A class map holds a training id a pixel, in the classes'
    colours as its palette. Each new image size is compiled once.

    Args:
      workdir: of a run with a checkpoint.
      paths: image files, or folders whose images are all taken.
      output: a folder; created where missing. Files of the same name are replaced.
      options: how.

    Returns:
      The paths written.

    Raises:
      ValueError: if a path does not exist, is no image, or two images would write one file.
    """
    images = find_images(paths)
    output = pathlib.Path(output)
    outputs = _name_outputs(images, output)
    trained = options.apply(load_run(workdir))
    output.mkdir(parents=True, exist_ok=True)
    class_table = trained.class_table
    predict_one = create_predict_fn(trained)
    for path in tqdm(images, desc="predicting", unit="image", disable=None):
        image = load_image(path)
        prediction = predict_one(image)
        map_path, overlay_path = outputs[path]
        save_png(to_palette_image(prediction, class_table), map_path)
        save_png(draw_overlay(image, prediction, class_table), overlay_path)
    return [path for pair in outputs.values() for path in pair]


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
    predict_one = create_predict_fn(trained)
    return write_label_ids(source, predict_one, class_table, output, fingerprint)


def find_images(paths: Sequence[str | os.PathLike]) -> list[pathlib.Path]:
    """Expands folders and checks that every image exists and has a name of its own."""
    images = []
    for path in map(pathlib.Path, paths):
        if not path.exists():
            raise ValueError(f"there is no {path}; pass image files or folders of images")
        found = list(list_images(path).values()) if path.is_dir() else [path]
        if not found:
            raise ValueError(f"the folder {path} holds no image")
        images += found
    by_stem: dict[str, pathlib.Path] = {}
    for image in images:
        if image.stem in by_stem:
            raise ValueError(
                f"{by_stem[image.stem]} and {image} would both write {image.stem}.png; "
                "predict them into different folders"
            )
        by_stem[image.stem] = image
    if not images:
        raise ValueError("no image was given; pass image files or folders of images")
    return images


def _name_outputs(
    images: Sequence[pathlib.Path], output: pathlib.Path
) -> dict[pathlib.Path, tuple[pathlib.Path, pathlib.Path]]:
    """The class map and the overlay of each image; raises where one would replace an image."""
    outputs = {
        path: (output / f"{path.stem}.png", output / f"{path.stem}_overlay.png") for path in images
    }
    inputs, maps = {path.resolve() for path in images}, {pair[0] for pair in outputs.values()}
    for path, (map_path, overlay_path) in outputs.items():
        if overlay_path in maps or {map_path.resolve(), overlay_path.resolve()} & inputs:
            raise ValueError(
                f"the predictions of {path} would replace another image or its predictions in "
                f"{output}; choose another --output"
            )
    return outputs


def create_predict_fn(trained: TrainedRun) -> Callable[[np.ndarray], np.ndarray]:
    """A function of an image uint8[H, W, 3] to its class map uint8[H, W]."""
    score_fn = create_image_score_fn(trained.model, trained.config.eval)

    @jax.jit
    def predict_batch(variables: dict, images: jax.Array) -> jax.Array:
        return score_fn(variables, images, images.shape[1:3]).argmax(-1)

    return lambda image: np.asarray(predict_batch(trained.variables, image[None])[0], np.uint8)


def to_palette_image(prediction: np.ndarray, class_table: ClassTable) -> Image.Image:
    """A PNG image whose values are the training ids and whose palette is the classes' colours."""
    image = Image.fromarray(prediction).convert("L")
    image.putpalette([channel for color in class_table.colors for channel in color])
    return image


def main(argv: list[str]) -> None:
    """Predicts and prints where the pictures are."""
    values = flags.FLAGS
    scales = tuple(map(float, values.scales)) if values.scales else None
    options = Options(values.ema, values.flip, scales)
    if values.split:
        if argv:
            raise ValueError(f"--split takes no images, but {argv} are given; leave out either")
        written = predict_split(
            values.workdir, values.split, values.output, values.data_dir, options
        )
        print(f"{values.output} holds the label ids of {len(written)} images")
        return
    written = predict(values.workdir, argv, values.output, options)
    print(f"wrote {len(written) // 2} class maps and overlays to {values.output}")


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "The run whose best checkpoint is used.")
    flags.DEFINE_string("split", None, "Write label ids for this split of the data set.")
    flags.DEFINE_string("data_dir", None, "Where --split is; else where the run had it.")
    flags.DEFINE_bool("ema", False, "Use the weights averaged over the steps.")
    flags.DEFINE_bool("flip", None, "Average with the mirrored image; else as the run's.")
    flags.DEFINE_list("scales", None, "Average over these scales; else as the run's.")
    flags.DEFINE_string("output", None, "The folder that the pictures are written to.")
    flags.mark_flags_as_required(["workdir", "output"])
    run_command(main, "regseg_jax.predict")
