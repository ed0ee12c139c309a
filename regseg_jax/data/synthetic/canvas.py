"""What scenes are drawn with: camera, street, painter and colours."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from regseg_jax.data.classes import CAMVID

(
    BUILDING,
    TREE,
    _SKY,
    CAR,
    SIGN,
    ROAD,
    PEDESTRIAN,
    FENCE,
    POLE,
    SIDEWALK,
    BICYCLIST,
) = range(CAMVID.num_classes)

NEAR, FAR = 1.2, 60.0  # metres: where the lots begin and end
BUILT_UP = 30.0  # metres: all lots beyond hold buildings
DETAILED = 20.0  # metres: windows and slats beyond are too small to see

Color = tuple[float, float, float]
Points = Sequence[tuple[float, float]]


@dataclasses.dataclass(frozen=True)
class Camera:
    """A pinhole camera above the road; x to the right, y up, z ahead, in metres."""

    height: int  # of the canvas, in pixels
    width: int
    horizon: float  # row
    vanishing: float  # column
    focal: float  # pixels
    altitude: float  # metres above the road
    offset: float  # metres to the right of the road's middle
    curve: float  # the road drifts sideways by curve * z**2

    @classmethod
    def draw(cls, rng: np.random.Generator, height: int, width: int) -> "Camera":
        """Draws a camera for a canvas of the size."""
        return cls(
            height=height,
            width=width,
            horizon=height * rng.uniform(0.38, 0.5),
            vanishing=width * rng.uniform(0.4, 0.6),
            focal=width * rng.uniform(0.68, 0.9),
            altitude=rng.uniform(1.3, 2.0),
            offset=rng.uniform(-1.0, 1.0),
            curve=rng.uniform(-0.004, 0.004),
        )

    def project(self, x: float, y: float, z: float) -> tuple[float, float]:
        """The pixel (column, row) of a point of the world."""
        scale = self.focal / z
        return (
            self.vanishing + scale * (x - self.offset + self.curve * z * z),
            self.horizon + scale * (self.altitude - y),
        )

    def nearest_visible(self, x: float) -> float:
        """About the smallest z at which a thing at x is inside the picture."""
        room = self.width - self.vanishing if x > self.offset else self.vanishing
        return max(4.5, abs(x - self.offset) * self.focal / (0.85 * room))


@dataclasses.dataclass(frozen=True)
class Street:
    """The road's half width, and the width of the sidewalk on each side (-1 left, 1 right)."""

    half_width: float
    sidewalks: dict[int, float]

    @classmethod
    def draw(cls, rng: np.random.Generator) -> "Street":
        """Draws a street."""
        half_width = rng.uniform(1.9, 2.6)
        return cls(half_width, {side: rng.uniform(3.0, 5.0) for side in (-1, 1)})


class Painter:
    """A picture and its label, drawn together from back to front."""

    def __init__(self, camera: Camera, haze: Color, haze_range: float):
        self.camera = camera
        size = (camera.width, camera.height)
        self.image = Image.new("RGB", size)
        self.label = Image.new("L", size, _SKY)
        self._image_draw = ImageDraw.Draw(self.image)
        self._glaze_draw = ImageDraw.Draw(self.image, "RGBA")
        self._label_draw = ImageDraw.Draw(self.label)
        self._haze = haze
        self._haze_range = haze_range

    def _fill(self, color: Color, z: float) -> tuple[int, int, int]:
        clear = math.exp(-z / self._haze_range)
        haze = 1 - clear
        return (  # Pillow clips to [0, 255]
            int(clear * color[0] + haze * self._haze[0]),
            int(clear * color[1] + haze * self._haze[1]),
            int(clear * color[2] + haze * self._haze[2]),
        )

    def polygon(self, points: Points, color: Color, z: float, class_id: int | None = None) -> None:
        """Fills a polygon of pixels; without a class it is a detail and leaves the label."""
        self._image_draw.polygon(points, self._fill(color, z))
        if class_id is not None:
            self._label_draw.polygon(points, class_id)

    def ellipse(
        self,
        center: tuple[float, float],
        radii: tuple[float, float],
        color: Color,
        z: float,
        class_id: int | None = None,
    ) -> None:
        """Fills an ellipse, in pixels."""
        (x, y), (a, b) = center, radii
        box = (x - a, y - b, x + a, y + b)
        self._image_draw.ellipse(box, self._fill(color, z))
        if class_id is not None:
            self._label_draw.ellipse(box, class_id)

    def ring(
        self, center: tuple[float, float], radii: tuple[float, float], color: Color, z: float
    ) -> None:
        """Draws an ellipse's outline and half darkens its inside: a wheel seen through."""
        (x, y), (a, b) = center, radii
        box = (x - a, y - b, x + a, y + b)
        width = max(1, round(b / 4))
        self._glaze_draw.ellipse(box, (40, 40, 40, 60), (*self._fill(color, z), 255), width)

    def shadow(self, points: Points, strength: float) -> None:
        """Darkens a polygon of the picture."""
        self._glaze_draw.polygon(points, (10, 10, 20, int(255 * strength)))

    def limb(
        self,
        start: tuple[float, float],
        end: tuple[float, float],
        width: float,
        color: Color,
        z: float,
        class_id: int | None = None,
    ) -> None:
        """Draws a thick line, in pixels."""
        (x0, y0), (x1, y1) = start, end
        length = math.hypot(x1 - x0, y1 - y0) or 1.0
        dx, dy = -(y1 - y0) / length * width / 2, (x1 - x0) / length * width / 2
        points = ((x0 + dx, y0 + dy), (x1 + dx, y1 + dy), (x1 - dx, y1 - dy), (x0 - dx, y0 - dy))
        self.polygon(points, color, z, class_id)

    def rectangle(
        self,
        left: float,
        top: float,
        right: float,
        bottom: float,
        color: Color,
        z: float,
        class_id: int | None = None,
    ) -> None:
        """Fills an upright rectangle, in pixels."""
        points = ((left, top), (right, top), (right, bottom), (left, bottom))
        self.polygon(points, color, z, class_id)

    def wall(
        self,
        x: tuple[float, float],
        y: tuple[float, float],
        z: tuple[float, float],
        color: Color,
        class_id: int | None = None,
    ) -> bool:
        """Fills an upright rectangle of the world that runs from (x0, z0) to (x1, z1).

        Returns whether it is in the picture: most walls near the camera are outside it.
        """
        (left, top), (right, far_top) = (
            self.camera.project(x[0], y[1], z[0]),
            self.camera.project(x[1], y[1], z[1]),
        )
        if max(left, right) < 0 or min(left, right) > self.camera.width:
            return False
        rise = (y[1] - y[0]) * self.camera.focal
        points = (
            (left, top + rise / z[0]),
            (right, far_top + rise / z[1]),
            (right, far_top),
            (left, top),
        )
        self.polygon(points, color, (z[0] + z[1]) / 2, class_id)
        return True

    def strip(
        self,
        x: tuple[float, float],
        z: tuple[float, float],
        color: Color,
        class_id: int | None = None,
        steps: int = 1,
    ) -> None:
        """Fills a piece of the ground, which follows the road's curve in steps."""
        ratio = z[1] / z[0]
        depths = [z[0] * ratio ** (i / steps) for i in range(steps + 1)]
        points = [self.camera.project(x[0], 0, depth) for depth in depths]
        points += [self.camera.project(x[1], 0, depth) for depth in reversed(depths)]
        self.polygon(points, color, z[0], class_id)


def dull_color(
    rng: np.random.Generator, low: float = 45, high: float = 215, tint: float = 32
) -> Color:
    """Some grey between low and high, each channel tinted by up to plus or minus tint."""
    level, r, g, b = rng.random(4).tolist()
    grey = low + (high - low) * level - tint
    return grey + 2 * tint * r, grey + 2 * tint * g, grey + 2 * tint * b


def vivid_color(rng: np.random.Generator) -> Color:
    """A colour of paint: one channel strong, one weak."""
    high, low, middle = rng.uniform(150, 225), rng.uniform(20, 70), rng.uniform(30, 190)
    red, green, blue = rng.permutation((high, low, middle)).tolist()
    return red, green, blue


def coat_color(rng: np.random.Generator, warm: bool) -> Color:
    """A coat, mostly vivid: red to yellow if warm, green to blue otherwise."""
    if rng.random() < 0.45:
        return dull_color(rng, 35, 225)
    high, low, middle = rng.uniform(150, 225), rng.uniform(20, 70), rng.uniform(30, 150)
    if warm:
        return high, middle, low
    return (low, high, middle) if rng.random() < 0.5 else (low, middle, high)


def any_paint(rng: np.random.Generator) -> Color:
    """What is painted or dyed: dull or vivid."""
    return vivid_color(rng) if rng.random() < 0.25 else dull_color(rng, 35, 225)


def shaded(color: Color, factor: float) -> Color:
    """The colour, times the factor."""
    return color[0] * factor, color[1] * factor, color[2] * factor


def tinted(color: Color, tint: Color) -> Color:
    """The colour, plus the tint."""
    return color[0] + tint[0], color[1] + tint[1], color[2] + tint[2]


def contrasting(color: Color, rng: np.random.Generator) -> Color:
    """The colour, made clearly lighter or darker."""
    dark = sum(color) / 3 < rng.uniform(90, 160)
    return tinted(shaded(color, 1.1), (55, 55, 55)) if dark else shaded(color, 0.5)
