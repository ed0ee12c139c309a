"""Class maps and overlays of image files."""

from collections.abc import Sequence

import numpy as np
from tqdm import tqdm

from regseg_jax.data.decode import load_image, read_image_size
from regseg_jax.prediction.engine import Failures, Predictor, predict_all
from regseg_jax.prediction.inputs import Input
from regseg_jax.prediction.outputs import ImageWriter

# Larger images are left to the end and done one by one, because memory may hold only a few.
_LARGE_PIXELS = 2**25


def predict_images(
    images: Sequence[Input], predictor: Predictor, writer: ImageWriter, failures: Failures
) -> None:
    """Predicts images, of any sizes, and writes what the writer writes.

    Args:
      images: the files. One that cannot be read does not stop the rest.
      predictor: of the images.
      writer: of the predictions.
      failures: gets those that fail.
    """
    large = []

    def load_unless_large(entry: Input) -> np.ndarray | None:
        height, width = read_image_size(entry.path)
        if height * width > _LARGE_PIXELS:
            large.append(entry)
            return None
        return load_image(entry.path)

    def write(entry: Input, image: np.ndarray, prediction: np.ndarray) -> None:
        writer.write(entry.name, image, prediction)

    with tqdm(desc="predicting", total=len(images), unit="image", disable=None) as progress:
        for _ in predict_all(images, load_unless_large, predictor, write, failures):
            progress.update()
        progress.update(-len(large))
        for _ in predict_all(
            large, lambda x: load_image(x.path), predictor, write, failures, parallel=False
        ):
            progress.update()
