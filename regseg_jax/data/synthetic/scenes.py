"""Street scenes drawn by a generator: the default data set, which needs no file.

A scene is a small world in metres: a road with sidewalks on both sides, lots behind them
(buildings, fences, trees), and things that stand on the road and the sidewalks. A camera
projects it, and a painter draws it from back to front, the picture and its label together.

Classes have most colours in common, so colour alone says little: shape, texture and place decide
the class. (tests/data/test_synthetic.py holds that: a classifier of colours stays under 30 % mean
IoU.)
"""

import dataclasses

import numpy as np
from PIL import Image, ImageFilter

from regseg_jax.data.classes import CAMVID
from regseg_jax.data.sources.source import Fingerprint
from regseg_jax.data.synthetic.canvas import Camera, Painter, Street, dull_color
from regseg_jax.data.synthetic.street import paint_backdrop, paint_ground, paint_lots, paint_sky
from regseg_jax.data.synthetic.things import paint_bonnet, paint_things

MIN_SIZE = 32

# Scenes are drawn at twice the size: pictures are averaged down, labels take every second pixel.
_SUPERSAMPLING = 2
# How strongly (blotches, grain) modulate the light on each class; the last row is for 255.
_BLOTCHES = np.zeros(256, np.float32)
_BLOTCHES[: CAMVID.num_classes] = (0.1, 0.25, 0.06, 0.05, 0.05, 0.12, 0.1, 0.1, 0.1, 0.12, 0.1)
_GRAIN = np.zeros(256, np.float32)
_GRAIN[: CAMVID.num_classes] = (0.05, 0.1, 0.02, 0.03, 0.03, 0.07, 0.05, 0.05, 0.04, 0.07, 0.05)


@dataclasses.dataclass(frozen=True)
class SyntheticScenes:
    """A random-access source of drawn street scenes.

    Example `i` is `draw_scene(i)`. Splits are told apart by their seeds.

    Attributes:
      num_examples: how many scenes there are, at least 1.
      height: rows of a scene, at least 32.
      width: columns of a scene, at least 32.
      seed: another seed gives another world of scenes.
    """

    num_examples: int
    height: int
    width: int
    seed: int = 0
    image_sizes: None = dataclasses.field(default=None, init=False)  # all are of one size

    def __post_init__(self):
        if self.num_examples < 1:
            raise ValueError(f"num_examples is {self.num_examples}: give at least 1")
        _check_arguments(0, self.height, self.width, self.seed)

    def __len__(self) -> int:
        return self.num_examples

    def __getitem__(self, index: int) -> dict[str, np.ndarray | str]:
        """Returns {"image": uint8 [H, W, 3], "label": uint8 [H, W], "name": str}.

        Raises:
          IndexError: if index is not in [0, num_examples).
        """
        if not 0 <= index < self.num_examples:
            raise IndexError(f"scene {index} of a source of {self.num_examples}")
        image, label = draw_scene(int(index), height=self.height, width=self.width, seed=self.seed)
        return {"image": image, "label": label, "name": f"scene_{self.seed}_{index:06d}"}

    def fingerprint(self) -> Fingerprint:
        """See `Source`."""
        return Fingerprint("synthetic", repr(self))


def draw_scene(
    index: int, *, height: int, width: int, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Draws one street scene; a pure function of its arguments.

    The same index at another size is the same scene, drawn finer or coarser.

    Args:
      index: which scene, at least 0.
      height: rows, at least 32.
      width: columns, at least 32.
      seed: which world of scenes, at least 0.

    Returns:
      The image, uint8 [height, width, 3], and the label, uint8 [height, width]: a training id
      of `CAMVID` in [0, 10], or 255 for the car's own bonnet, which a few scenes show.

    Raises:
      ValueError: if an argument is out of range.
    """
    _check_arguments(index, height, width, seed)
    rng = np.random.default_rng((seed, index))
    camera = Camera.draw(rng, height * _SUPERSAMPLING, width * _SUPERSAMPLING)
    street = Street.draw(rng)
    painter = Painter(camera, haze=dull_color(rng, 150, 235, 12), haze_range=rng.uniform(80, 300))
    paint_sky(painter, rng)
    paint_backdrop(painter, rng)
    paint_ground(painter, street, rng)
    for side in (-1, 1):
        paint_lots(painter, street, side, rng)
    paint_things(painter, street, rng)
    if rng.random() < 0.12:
        paint_bonnet(painter, rng)
    label = np.asarray(painter.label)[::_SUPERSAMPLING, ::_SUPERSAMPLING].copy()
    return _photograph(painter.image.reduce(_SUPERSAMPLING), label, rng), label


def _check_arguments(index: int, height: int, width: int, seed: int) -> None:
    if min(height, width) < MIN_SIZE:
        raise ValueError(f"a scene of {height} x {width}: both must be at least {MIN_SIZE}")
    if index < 0:
        raise ValueError(f"scene index {index}: it must not be negative")
    if seed < 0:
        raise ValueError(f"scene seed {seed}: it must not be negative")


def _photograph(image: Image.Image, label: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Adds surface texture, light, colour cast, blur and sensor noise; uint8 [H, W, 3]."""
    height, width = label.shape
    blotches = rng.uniform(-1, 1, (24, 32)).astype(np.float32)
    light = rng.uniform(-1, 1, (3, 4)).astype(np.float32) * rng.uniform(0, 0.3)
    coarse = _enlarge(blotches, height, width) * _BLOTCHES[label] + _enlarge(light, height, width)
    cast = (rng.uniform(0.75, 1.15) * rng.uniform(0.94, 1.06, 3)).astype(np.float32)
    offset = np.float32(rng.uniform(-10, 35))
    blur = rng.uniform(0, 0.4) * height / 120
    noise = np.float32(rng.uniform(1, 5))
    grain = rng.random((height, width), np.float32) * 2 - 1
    if blur > 0.1:
        image = image.filter(ImageFilter.BoxBlur(blur))
    picture = np.array(image, np.float32)
    picture *= (1 + coarse + grain * _GRAIN[label])[..., None]
    picture *= cast
    picture += rng.random((height, width, 3), np.float32) * (2 * noise)
    picture += offset - noise
    return np.clip(picture, 0, 255, out=picture).astype(np.uint8)


def _enlarge(field: np.ndarray, height: int, width: int) -> np.ndarray:
    enlarged = Image.fromarray(field).resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(enlarged)
