"""What stands in the street of a drawn scene: trees, poles, signs, cars and people."""

import math

import numpy as np

from regseg_jax.data.classes import IGNORE_LABEL
from regseg_jax.data.synthetic.canvas import (
    BICYCLIST,
    CAR,
    PEDESTRIAN,
    POLE,
    SIGN,
    TREE,
    Color,
    Painter,
    Street,
    any_paint,
    coat_color,
    dull_color,
    shaded,
    tinted,
    vivid_color,
)


def paint_things(painter: Painter, street: Street, rng: np.random.Generator) -> None:
    """Trees, poles, cars, pedestrians and bicyclists, from far to near."""
    half, camera = street.half_width, painter.camera
    things = []

    def place(paint, x: float, reach: float) -> None:
        z = camera.nearest_visible(x) * rng.uniform(1, reach)
        things.append((z, x, paint))

    def random_side() -> int:
        return 1 if rng.random() < 0.5 else -1

    for _ in range(rng.integers(1, 3)):
        place(paint_tree, random_side() * (half + rng.uniform(0.8, 1.6)), 1.3)
    first = random_side()  # the first pole stands on one side, the first pedestrian on the other
    for side in (first, random_side())[: rng.integers(1, 3)]:
        place(_paint_pole, side * (half + rng.uniform(0.3, 0.7)), 1.15)
    parked = random_side()
    place(_paint_car, parked * rng.uniform(half - 1.2, half - 0.8), 1.3)
    if rng.random() < 0.5:
        place(_paint_car, random_side() * rng.uniform(0.8, half - 1), 1.4)
    for side in (-first, random_side())[: rng.integers(1, 3)]:
        x = side * (half + rng.uniform(0.5, min(street.sidewalks[side], 2.5) - 0.3))
        place(_paint_pedestrian, rng.uniform(-half, half) if rng.random() < 0.2 else x, 1.05)
    place(_paint_bicyclist, -parked * rng.uniform(0.2, half - 0.6), 1.15)
    for z, x, paint in sorted(things, key=lambda thing: -thing[0]):
        paint(painter, x, z, rng)


def leaf_color(rng: np.random.Generator) -> Color:
    """Mostly green, sometimes brown."""
    tint = (-10, 16, -26) if rng.random() < 0.85 else (12, 4, -20)
    return tinted(dull_color(rng, 50, 150, 16), tint)


def _paint_crown(
    painter: Painter,
    center: tuple[float, float],
    radii: tuple[float, float],
    z: float,
    rng: np.random.Generator,
) -> None:
    """A clump of overlapping leaf blobs, then lighter and darker tufts on it."""
    color = leaf_color(rng)
    (x, y), (a, b) = center, radii
    painter.ellipse(center, (0.8 * a, 0.8 * b), color, z, TREE)
    for i, (lag, growth, light) in enumerate(rng.random((6, 3)).tolist()):
        angle = i * math.pi / 3 + 0.6 * lag
        at = x + 0.55 * a * math.cos(angle), y + 0.55 * b * math.sin(angle)
        size = 0.38 + 0.17 * growth
        painter.ellipse(at, (size * a, size * b), shaded(color, 0.8 + 0.3 * light), z, TREE)
    for u, v, growth, light in rng.random((7, 4)).tolist():
        at = x + (1.2 * u - 0.6) * a, y + (1.2 * v - 0.6) * b
        size = 0.1 + 0.14 * growth
        painter.ellipse(at, (size * a, size * b), shaded(color, 0.6 + 0.8 * light), z)


def paint_tree(painter: Painter, x: float, z: float, rng: np.random.Generator) -> None:
    """A trunk, which is a tree's too, and a crown."""
    scale = painter.camera.focal / z
    foot = painter.camera.project(x, 0, z)
    height, radius = rng.uniform(3.0, 4.6), rng.uniform(1.7, 2.5)
    reach = 1.5 * radius * scale
    if not -reach < foot[0] < painter.camera.width + reach:
        return  # outside the image
    top = foot[0] + rng.uniform(-0.2, 0.2) * scale, foot[1] - height * scale
    bark = tinted(dull_color(rng, 45, 120, 14), (10, 0, -10))
    painter.limb(foot, top, 0.42 * scale, bark, z, TREE)
    painter.limb((foot[0] + 0.1 * scale, foot[1]), top, 0.1 * scale, shaded(bark, 0.6), z)
    radii = (radius * scale, radius * rng.uniform(0.8, 1.2) * scale)
    _paint_crown(painter, top, radii, z, rng)


def _paint_pole(painter: Painter, x: float, z: float, rng: np.random.Generator) -> None:
    """A pole with a light and a dark flank: a lamp post, or a sign's."""
    scale = painter.camera.focal / z
    column, foot = painter.camera.project(x, 0, z)
    carries_sign = rng.random() < 0.7
    height = rng.uniform(2.8, 3.4) if carries_sign else rng.uniform(4.0, 8.0)
    width = max(rng.uniform(0.4, 0.5) * scale, 0.035 * painter.camera.width)
    top = foot - height * scale
    color = dull_color(rng, 150, 220, 12)
    painter.rectangle(column - width / 2, top, column + width / 2, foot, color, z, POLE)
    painter.rectangle(column, top, column + width / 2, foot, shaded(color, 0.4), z)
    if carries_sign:
        _paint_sign(painter, (column, top + 0.3 * scale), rng.uniform(0.6, 0.85) * scale, z, rng)
    elif rng.random() < 0.5:  # the lamp's arm over the road
        reach = (-1 if x > 0 else 1) * 1.4 * scale
        painter.limb((column, top), (column + reach, top), 0.8 * width, color, z, POLE)


def _paint_sign(
    painter: Painter,
    center: tuple[float, float],
    radius: float,
    z: float,
    rng: np.random.Generator,
) -> None:
    """A round, three-cornered or square board: border, face and a symbol."""
    face, border = dull_color(rng, 180, 240, 12), vivid_color(rng)
    if rng.random() < 0.4:
        face, border = border, face
    shape = rng.integers(4)
    for size, color in ((1.0, border), (0.72, face)):
        class_id = SIGN if size == 1.0 else None
        if shape == 0:
            painter.ellipse(center, (size * radius, size * radius), color, z, class_id)
            continue
        corners, turn = ((3, 0.0), (4, 0.0), (4, math.pi / 4))[shape - 1]
        angles = [turn + 2 * math.pi * i / corners for i in range(corners)]
        reach = 1.2 * size * radius
        points = [
            (center[0] + reach * math.sin(a), center[1] - reach * math.cos(a)) for a in angles
        ]
        painter.polygon(points, color, z, class_id)
    mark = shaded(border, 0.8)
    painter.ellipse(center, tuple(rng.uniform(0.1, 0.4, 2) * radius), mark, z)


def _paint_car(painter: Painter, x: float, z: float, rng: np.random.Generator) -> None:
    """A box with a cabin: the end that faces the camera and the flank that is seen."""
    camera, length = painter.camera, rng.uniform(3.6, 4.8)
    left, right = x - rng.uniform(0.8, 0.95), x + rng.uniform(0.8, 0.95)
    body, roof = rng.uniform(0.8, 1.0), rng.uniform(1.35, 1.75)
    flank = right if x < camera.offset else left
    inner = flank + (0.18 if flank == left else -0.18)
    color, glass = any_paint(rng), dull_color(rng, 20, 120)
    corners = ((left, z), (right, z), (right, z + length), (left, z + length))
    painter.shadow([camera.project(cx, 0, cz) for cx, cz in corners], 0.55)
    scale = camera.focal / z

    painter.wall((flank, flank), (0.25, body), (z, z + length), shaded(color, 0.75), CAR)
    for at in (0.2 * length, 0.8 * length):
        hub, size = camera.project(flank, 0.32, z + at), 0.32 * camera.focal / (z + at)
        painter.ellipse(hub, (0.6 * size, size), (25, 25, 28), z, CAR)
    cabin = (
        camera.project(flank, body, z),
        camera.project(inner, roof, z + 0.4),
        camera.project(inner, roof, z + 0.6 * length),
        camera.project(flank, body, z + 0.75 * length),
    )
    painter.polygon(cabin, shaded(glass, 0.8), z, CAR)
    ends = (left, right), (left + 0.18, right - 0.18)
    for inset, paint, class_id in ((0.0, color, CAR), (0.12, glass, None)):
        points = (
            camera.project(ends[0][0] + inset, body, z),
            camera.project(ends[1][0] + inset, roof - inset, z + 0.4),
            camera.project(ends[1][1] - inset, roof - inset, z + 0.4),
            camera.project(ends[0][1] - inset, body, z),
        )
        painter.polygon(points, paint, z, class_id)
    for tyre in (left + 0.05, right - 0.3):
        painter.wall((tyre, tyre + 0.25), (0, 0.4), (z, z), (25, 25, 28), CAR)
    painter.wall((left, right), (0.25, body), (z, z), color, CAR)
    painter.wall((left, right), (0.25, 0.4), (z, z), shaded(color, 0.5))
    lamp = (235, 225, 190) if rng.random() < 0.5 else (170, 40, 35)
    for at in (left + 0.25, right - 0.25):
        painter.ellipse(camera.project(at, 0.68, z), (0.16 * scale, 0.1 * scale), lamp, z)


def _paint_pedestrian(painter: Painter, x: float, z: float, rng: np.random.Generator) -> None:
    """A standing or walking person: two legs, a coat, arms, a head."""
    scale = painter.camera.focal / z * rng.uniform(1.35, 1.55)
    column, foot = painter.camera.project(x, 0, z)

    def at(u: float, v: float) -> tuple[float, float]:
        return column + u * scale, foot - v * scale

    coat, trousers, skin = (
        coat_color(rng, warm=True),
        dull_color(rng, 25, 110),
        dull_color(rng, 70, 200),
    )
    stride = rng.uniform(0.04, 0.26)
    for step, factor in ((-stride, 0.8), (stride, 1.0)):
        shade = shaded(trousers, factor)
        painter.limb(at(0, 0.9), at(step, 0), 0.26 * scale, shade, z, PEDESTRIAN)
    swing = rng.uniform(0.0, 0.2)
    for side in (-1, 1):
        hand = at(side * (0.28 + swing), 0.8)
        painter.limb(at(side * 0.2, 1.42), hand, 0.15 * scale, shaded(coat, 0.7), z, PEDESTRIAN)
    points = (at(-0.27, 1.46), at(0.27, 1.46), at(0.27, 0.7), at(-0.27, 0.7))
    painter.polygon(points, coat, z, PEDESTRIAN)
    painter.ellipse(at(0, 1.62), (0.15 * scale, 0.18 * scale), skin, z, PEDESTRIAN)
    painter.ellipse(at(0, 1.72), (0.14 * scale, 0.09 * scale), shaded(skin, 0.45), z)


def _paint_bicyclist(painter: Painter, x: float, z: float, rng: np.random.Generator) -> None:
    """A rider who leans over a bicycle, turned more or less to the side."""
    scale = painter.camera.focal / z * rng.uniform(1.1, 1.3)
    column, foot = painter.camera.project(x, 0, z)
    turn = rng.uniform(0.55, 1.0) * (1 if rng.random() < 0.5 else -1)

    def at(u: float, v: float) -> tuple[float, float]:
        return column + u * turn * scale, foot - v * scale

    coat, trousers, skin = (
        coat_color(rng, warm=False),
        dull_color(rng, 25, 110),
        dull_color(rng, 70, 200),
    )
    frame = dull_color(rng, 30, 220)
    radii = (0.36 * abs(turn) * scale, 0.36 * scale)
    bar = 0.09 * scale
    hull = (at(-0.55, 0.36), at(-0.2, 0.95), at(0.45, 1.0), at(0.55, 0.36))
    painter.polygon(hull, shaded(frame, 0.6), z, BICYCLIST)
    for hub in (at(-0.55, 0.36), at(0.55, 0.36)):
        painter.ellipse(hub, radii, shaded(frame, 0.4), z, BICYCLIST)
        painter.ring(hub, radii, (30, 30, 32), z)
    painter.limb(at(-0.55, 0.36), at(0.4, 0.85), bar, frame, z)
    painter.limb(at(0.55, 0.36), at(0.4, 1.0), bar, frame, z, BICYCLIST)
    hip, shoulder = at(-0.22, 0.98), at(0.2, 1.5)
    knee = at(0.16, rng.uniform(0.6, 0.85))
    painter.limb(hip, knee, 0.22 * scale, trousers, z, BICYCLIST)
    painter.limb(knee, at(0.0, 0.25), 0.18 * scale, trousers, z, BICYCLIST)
    painter.limb(hip, shoulder, 0.36 * scale, coat, z, BICYCLIST)
    painter.limb(shoulder, at(0.48, 1.02), 0.14 * scale, shaded(coat, 0.7), z, BICYCLIST)
    painter.ellipse(at(0.28, 1.66), (0.16 * scale, 0.18 * scale), skin, z, BICYCLIST)


def paint_bonnet(painter: Painter, rng: np.random.Generator) -> None:
    """The bonnet of the car that carries the camera; it is not scored."""
    camera = painter.camera
    center = (camera.width * rng.uniform(0.4, 0.6), camera.height * 1.06)
    radii = (camera.width * 0.45, camera.height * 0.13)
    painter.ellipse(center, radii, dull_color(rng, 20, 200), 0.0, IGNORE_LABEL)
