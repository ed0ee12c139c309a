"""What stays in a drawn scene: the sky, the ground, and the lots along the road."""

import numpy as np
from PIL import Image

from regseg_jax.data.synthetic.canvas import (
    BUILDING,
    BUILT_UP,
    DETAILED,
    FAR,
    FENCE,
    NEAR,
    ROAD,
    SIDEWALK,
    TREE,
    Color,
    Painter,
    Street,
    any_paint,
    contrasting,
    dull_color,
    shaded,
    tinted,
)
from regseg_jax.data.synthetic.things import leaf_color, paint_tree


def paint_sky(painter: Painter, rng: np.random.Generator) -> None:
    """A vertical gradient, and clouds in some scenes."""
    camera = painter.camera
    low = np.array(dull_color(rng, 140, 230, 16))
    high = low + rng.uniform(-50, 20) + rng.uniform(0, 1) * np.array((-25, 0, 25))
    ramp = np.linspace(0, 1, 16)[:, None, None]
    sky = high + (low - high) * ramp + np.zeros((16, 24, 3))
    sky += (rng.uniform(0, 1, (16, 24, 1)) - 0.5) * rng.uniform(0, 50)
    small = Image.fromarray(np.clip(sky, 0, 255).astype(np.uint8))
    size = (camera.width, max(int(camera.horizon) + 2, 2))
    painter.image.paste(small.resize(size, Image.Resampling.BILINEAR), (0, 0))


def paint_backdrop(painter: Painter, rng: np.random.Generator) -> None:
    """The skyline beyond the lots: blocks and tree tops along the horizon."""
    camera = painter.camera
    bottom = camera.horizon + 0.03 * camera.height
    x = 0.0
    while x < camera.width:
        width = camera.width * rng.uniform(0.12, 0.3)
        top = camera.horizon - camera.height * rng.uniform(0.02, 0.1)
        if rng.random() < 0.75:
            color = _facade_color(rng)
            painter.rectangle(x, top, x + width, bottom, color, FAR, BUILDING)
            painter.rectangle(x, top, x + width, top + 2, shaded(color, 0.6), FAR)
        else:
            color, middle = leaf_color(rng), (top + bottom) / 2
            for at in (0.1, 0.5, 0.9):
                radii = (0.3 * width, rng.uniform(0.5, 1.0) * (bottom - top))
                shade = shaded(color, rng.uniform(0.7, 1.1))
                painter.ellipse((x + at * width, middle), radii, shade, FAR, TREE)
            painter.rectangle(x, middle, x + width, bottom, color, FAR, TREE)
        x += width


def paint_ground(painter: Painter, street: Street, rng: np.random.Generator) -> None:
    """Road with markings; paved ground on both sides of it, which is all sidewalk."""
    half = street.half_width
    road = dull_color(rng, 50, 120, 10)
    paving = dull_color(rng, 130, 220, 14)
    camera = painter.camera
    painter.rectangle(0, camera.horizon + 2, camera.width, camera.height, paving, 20.0, SIDEWALK)
    for side in (-1, 1):
        painter.strip((side * half, side * 80), (0.4, FAR), paving, SIDEWALK, steps=10)
        edge = half + street.sidewalks[side]
        for i in range(9):
            z = 2.5 * 1.28**i
            painter.strip((side * half, side * edge), (z, z * 1.025), shaded(paving, 0.75))
        kerb = contrasting(paving, rng)
        painter.strip((side * half, side * (half + 0.22)), (0.4, FAR), kerb, steps=10)
    painter.strip((-half, half), (0.4, FAR * 1.5), road, ROAD, steps=12)
    _paint_markings(painter, half, contrasting(road, rng), rng)
    if rng.random() < 0.6:  # the shadow of something out of sight
        near, side = rng.uniform(3, 10), rng.choice((-1, 1))
        points = [
            camera.project(x, 0, z)
            for x, z in (
                (-20 * side, near),
                (half * side, near * 1.2),
                (half * side * rng.uniform(0, 1), near * 2),
                (-20 * side, near * 3),
            )
        ]
        painter.shadow(points, rng.uniform(0.2, 0.5))


def _paint_markings(painter: Painter, half: float, color: Color, rng: np.random.Generator) -> None:
    """Edge lines, a dashed middle line, a zebra crossing: all are road."""
    for side in (-1, 1):
        if rng.random() < 0.5:
            x = side * (half - 0.35)
            painter.strip((x - 0.07, x + 0.07), (1.5, 40), color, steps=8)
    period, middle = rng.uniform(3, 7), rng.uniform(-0.6, 0.6)
    for i in range(6):
        z = 1.5 + (i + 0.5) * period
        painter.strip((middle - 0.08, middle + 0.08), (z, z + 0.5 * period), color)
    if rng.random() < 0.3:  # a zebra crossing
        z = rng.uniform(5, 12)
        for x in np.arange(-half + 0.3, half - 0.5, 0.9):
            painter.strip((x, x + 0.5), (z, z + 2.5), color)


def paint_lots(painter: Painter, street: Street, side: int, rng: np.random.Generator) -> None:
    """What stands behind one sidewalk, lot by lot from far to near."""
    x = side * (street.half_width + street.sidewalks[side])
    edges = [NEAR]
    while edges[-1] < FAR:
        edges.append(edges[-1] + rng.uniform(9, 15))
    is_built_up = rng.random() < 0.35
    fence_color, fence_height = _fence_color(rng), rng.uniform(2.4, 3.2)
    for near, far in zip(edges[-2::-1], edges[:0:-1], strict=True):
        if is_built_up or near > BUILT_UP:
            _paint_building(painter, x, (near, far), rng)
            continue
        if rng.random() < 0.7:
            _paint_building(painter, x + side * rng.uniform(4, 8), (near, far), rng)
        if rng.random() < 0.2:
            z = max((near + far) / 2, 5.0)
            paint_tree(painter, x + side * rng.uniform(1.5, 3), z, rng)
        _paint_fence(painter, x, fence_height, (near, far), fence_color)


def _paint_building(
    painter: Painter, x: float, z: tuple[float, float], rng: np.random.Generator
) -> None:
    """A front along the road with rows of windows, and the gable that faces the camera."""
    side = 1 if x > 0 else -1
    top, color = rng.uniform(5, 13), _facade_color(rng)
    trim, glass = contrasting(color, rng), dull_color(rng, 30, 190)
    gable, gable_x, gable_z = (
        shaded(color, rng.uniform(0.65, 0.95)),
        (x, x + side * 12),
        (z[0],) * 2,
    )
    storey, pitch = rng.uniform(2.5, 3.2), (z[1] - z[0]) / rng.integers(4, 7)
    bricks, poster, poster_color = rng.random() < 0.5, rng.random() < 0.4, any_paint(rng)

    if painter.wall(gable_x, (0, top), gable_z, gable, BUILDING):
        painter.wall(gable_x, (top - 0.35, top), gable_z, shaded(trim, 0.9))
        if z[0] < DETAILED:
            for y, column in _windows(top, storey, 3):
                near = x + side * (0.8 + 2.6 * column)
                painter.wall((near, near + side * 1.3), (y, y + 1.3), gable_z, glass)
    if not painter.wall((x, x), (0, top), z, color, BUILDING):
        return
    painter.wall((x, x), (top - 0.35, top), z, trim)
    if z[0] > DETAILED:
        return
    if bricks:
        for y in np.arange(0.5, min(top, 6.5), 1.1).tolist():
            painter.wall((x, x), (y, y + 0.12), z, shaded(color, 0.88))
    for y, column in _windows(top, storey, round((z[1] - z[0]) / pitch)):
        near = z[0] + (column + 0.28) * pitch
        painter.wall((x, x), (y, y + 1.3), (near, near + 0.48 * pitch), glass)
    if poster:  # it looks like a sign, and is none
        painter.wall((x, x), (1.6, 2.9), (z[0] + pitch, z[0] + pitch + 1.2), poster_color)


def _facade_color(rng: np.random.Generator) -> Color:
    """Mostly brick or plaster, sometimes any grey."""
    tint = (30, -4, -28) if rng.random() < 0.9 else (0, 0, 0)
    return tinted(dull_color(rng, 60, 170, 14), tint)


def _windows(top: float, storey: float, columns: int) -> list[tuple[float, int]]:
    """The height of the sill, and the column, of each window below top."""
    return [(y, i) for y in np.arange(1.0, top - 1.6, storey).tolist() for i in range(columns)]


def _fence_color(rng: np.random.Generator) -> Color:
    tint = (-30, 2, 22) if rng.random() < 0.75 else (0, 0, 0)  # mostly painted blue
    return tinted(dull_color(rng, 150, 225, 14), tint)


def _paint_fence(
    painter: Painter, x: float, top: float, z: tuple[float, float], color: Color
) -> None:
    """Slats with dark gaps between them, and two rails."""
    visible = painter.wall((x, x), (0, top), z, shaded(color, 0.4), FENCE)
    if not visible or z[0] > DETAILED:
        return
    pitch = 0.45 if z[0] < 12 else 0.9
    for near in np.arange(z[0], z[1] - 0.6 * pitch, pitch).tolist():
        painter.wall((x, x), (0, top), (near, near + 0.6 * pitch), color)
    for y in (0.2 * top, 0.75 * top):
        painter.wall((x, x), (y, y + 0.12), z, shaded(color, 1.2))
