"""What is written for a prediction: the class map, the overlay, and `classes.json`."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image

from regseg_jax.data.classes import ClassTable
from regseg_jax.prediction.inputs import Input
from regseg_jax.reports.pictures import draw_overlay, save_png
from regseg_jax.runtime.files import write_json

CLASSES_FILE = "classes.json"


@dataclasses.dataclass(frozen=True)
class ClassMapFormat:
    """The values of class maps.

    Attributes:
      class_table: the classes.
      values: the value in a file for each training id.
    """

    class_table: ClassTable
    values: tuple[int, ...]

    def __post_init__(self) -> None:
        """Raises ValueError if a value does not fit 16 bits."""
        if max(self.values) > 65535:
            raise ValueError(
                f"the class table {self.class_table.name!r} has the label id {max(self.values)}; "
                "class maps hold numbers up to 65535: use --train_ids"
            )

    def encode(self, prediction: np.ndarray) -> Image.Image:
        """An image of the values: 8 bits with the classes' colours as palette, or 16-bit grey.

        Args:
          prediction: training ids, uint8 [H, W].
        """
        if max(self.values) > 255:
            return Image.fromarray(np.array(self.values, np.uint16)[prediction])
        image = Image.fromarray(np.array(self.values, np.uint8)[prediction])
        palette = np.zeros((256, 3), np.uint8)
        palette[list(self.values)] = self.class_table.colors
        image.putpalette(palette.tobytes())
        return image

    def describe(self) -> list[dict]:
        """Value, name and colour of each class, for `classes.json`."""
        table = self.class_table
        rows = zip(self.values, table.class_names, table.colors, strict=True)
        return [{"value": v, "name": n, "color": list(c)} for v, n, c in sorted(rows)]


@dataclasses.dataclass(frozen=True)
class Drawing:
    """What is drawn.

    Attributes:
      class_maps: whether class maps are written; None: for images, not for videos.
      overlays: whether overlays are.
      alpha: the weight of the classes' colours over the image, in [0, 1].
      legend: whether overlays have a legend below; None: those of images, not of videos.
    """

    class_maps: bool | None = None
    overlays: bool = True
    alpha: float = 0.5
    legend: bool | None = None

    def __post_init__(self) -> None:
        """Raises ValueError if nothing would be written, or alpha is not a weight."""
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"--alpha is {self.alpha}; set a weight from 0 to 1")
        if self.class_maps is False and not self.overlays:
            raise ValueError("neither class maps nor overlays are to be written; ask for one")

    def get_image_paths(self, folder: pathlib.Path, name: str) -> list[pathlib.Path]:
        """The paths of an image's class map and overlay, if they are written."""
        paths = [] if self.class_maps is False else [folder / f"{name}.png"]
        return paths + ([folder / f"{name}_overlay.png"] if self.overlays else [])

    def get_video_paths(self, folder: pathlib.Path, name: str) -> list[pathlib.Path]:
        """The paths of a video's folder of class maps and its overlay, if they are written."""
        paths = [folder / name] if self.class_maps else []
        return paths + ([folder / f"{name}_overlay.mp4"] if self.overlays else [])


@dataclasses.dataclass(frozen=True)
class ImageWriter:
    """Writes the class map and the overlay of images.

    Attributes:
      folder: where to.
      class_maps: how class maps are encoded.
      drawing: what is drawn.
    """

    folder: pathlib.Path
    class_maps: ClassMapFormat
    drawing: Drawing

    def write(self, name: str, image: np.ndarray, prediction: np.ndarray) -> None:
        """Writes the prediction of an image.

        Args:
          name: see `Input`.
          image: uint8 [H, W, 3].
          prediction: training ids, uint8 [H, W].
        """
        drawing, table = self.drawing, self.class_maps.class_table
        paths = drawing.get_image_paths(self.folder, name)
        if drawing.class_maps is not False:
            save_png(self.class_maps.encode(prediction), paths[0])
        if drawing.overlays:
            legend = drawing.legend is not False
            save_png(draw_overlay(image, prediction, table, drawing.alpha, legend), paths[-1])


def check_outputs(outputs: Mapping[Input, Sequence[pathlib.Path]]) -> None:
    """Raises ValueError if a prediction would replace an input or another prediction."""
    taken = {entry.path.resolve() for entry in outputs}
    for entry, paths in outputs.items():
        for path in paths:
            if path.resolve() in taken:
                raise ValueError(
                    f"the predictions of {entry.path} would replace another input or its "
                    f"predictions: {path}; choose another --output"
                )
            taken.add(path.resolve())


def write_classes(folder: pathlib.Path, class_maps: ClassMapFormat) -> None:
    """Writes `classes.json`: what each value of the class maps means.

    Raises:
      ValueError: if the folder's class maps have other values.
    """
    path, rows = folder / CLASSES_FILE, class_maps.describe()
    if path.exists():
        try:
            same = json.loads(path.read_text()) == rows
        except ValueError:
            same = False
        if not same:
            raise ValueError(
                f"{path} exists and belongs to class maps with other values; choose another "
                "--output, or remove it"
            )
    write_json(path, rows)
