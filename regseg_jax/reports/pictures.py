"""The pictures of a run: label maps, panels and overlays; charts.py has the charts.

Every `draw_*` function is pure and returns a picture; `save_png` is the only one that writes.
"""

import os
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from regseg_jax.data.classes import IGNORE_LABEL, ClassTable
from regseg_jax.runtime.files import replacing

Color = tuple[int, int, int]

IGNORED_COLOR: Color = (0, 0, 0)
WRONG_COLOR: Color = (255, 40, 40)
UNSCORED_COLOR: Color = (150, 150, 150)  # ignored pixels of the error map
_BACKGROUND: Color = (255, 255, 255)
_TEXT_COLOR: Color = (20, 20, 20)

_DIMMING = 0.4  # of the image under the error map
_MIN_FONT_SIZE = 14
# A panel's four pictures are enlarged to at least the one and shrunk to at most the other.
_MIN_TILE_WIDTH = 320
_MAX_TILE_WIDTH = 1024


def colorize(label: np.ndarray, class_table: ClassTable) -> np.ndarray:
    """Paints training ids in their classes' colours, and IGNORE_LABEL black.

    Args:
      label: integers [H, W]: training ids and IGNORE_LABEL.
      class_table: the classes.

    Returns:
      uint8 [H, W, 3].

    Raises:
      ValueError: if a value is neither a training id nor IGNORE_LABEL.
    """
    label = np.asarray(label)
    legal = ((label >= 0) & (label < class_table.num_classes)) | (label == IGNORE_LABEL)
    if not legal.all():
        raise ValueError(
            f"label values {np.unique(label[~legal])[:5].tolist()} are not training ids of "
            f"{class_table.name!r} (0..{class_table.num_classes - 1}, or {IGNORE_LABEL} for "
            "ignored): map raw values by the table's label_ids first"
        )
    # One row more than there are classes, for the ignored pixels.
    palette = np.array([*class_table.colors, IGNORED_COLOR], np.uint8)
    return palette[np.where(label == IGNORE_LABEL, class_table.num_classes, label)]


def draw_panel(
    image: np.ndarray, label: np.ndarray, prediction: np.ndarray, class_table: ClassTable
) -> Image.Image:
    """Draws image, label, prediction and error side by side, with titles and a legend beneath.

    Small images are enlarged and large ones shrunk, by an integer factor. On the error map wrong
    pixels are red over the dimmed image, and ignored ones grey; its title gives the fraction of
    the labelled pixels that are wrong.

    Args:
      image: uint8 [H, W, 3].
      label: training ids and IGNORE_LABEL, integers [H, W].
      prediction: training ids, integers [H, W].
      class_table: the classes.

    Returns:
      An RGB picture.

    Raises:
      ValueError: if the shapes disagree or a value is not in the class table.
    """
    image, label, prediction = np.asarray(image), np.asarray(label), np.asarray(prediction)
    _check_shapes(image, label=label, prediction=prediction)
    scored = label != IGNORE_LABEL
    wrong = scored & (prediction != label)
    error_share = wrong.sum() / max(scored.sum(), 1)
    tiles = {
        "image": image,
        "label": colorize(label, class_table),
        "prediction": colorize(prediction, class_table),
        f"error: {error_share:.1%} of pixels": _error_map(image, scored, wrong),
    }
    row = _draw_row({title: _rescale(tile) for title, tile in tiles.items()})
    legend = _draw_swatches(
        [
            *_legend_entries(class_table, range(class_table.num_classes)),
            ("ignored", IGNORED_COLOR),
            ("error: wrong", WRONG_COLOR),
            ("error: ignored", UNSCORED_COLOR),
        ],
        row.width,
        _font_size(row.width // len(tiles), divisor=32),
    )
    return _stack(row, legend)


def draw_overlay(
    image: np.ndarray,
    prediction: np.ndarray,
    class_table: ClassTable,
    alpha: float = 0.5,
    legend: bool = True,
) -> Image.Image:
    """Lays the prediction's colours over the image at full size.

    Args:
      image: uint8 [H, W, 3].
      prediction: training ids, integers [H, W]. Pixels of IGNORE_LABEL show the image alone.
      class_table: the classes.
      alpha: the weight of the colours, in [0, 1].
      legend: whether the classes that the prediction contains are named beneath.

    Returns:
      An RGB picture whose first H rows are the overlay.

    Raises:
      ValueError: if the shapes disagree, a value is not in the class table or alpha not in [0, 1].
    """
    image, prediction = np.asarray(image), np.asarray(prediction)
    _check_shapes(image, prediction=prediction)
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha is {alpha}: it must be in [0, 1]")
    ignored = prediction == IGNORE_LABEL
    colors = np.where(ignored[..., None], image, colorize(prediction, class_table))
    blended = Image.blend(Image.fromarray(image), Image.fromarray(colors), alpha)
    if not legend:
        return blended
    present = [i for i in np.unique(prediction).tolist() if i != IGNORE_LABEL]
    return _stack(blended, draw_legend(class_table, present, image.shape[1]))


def draw_legend(class_table: ClassTable, train_ids: Sequence[int], width: int) -> Image.Image:
    """A strip of this width, in pixels, with the colours and names of some classes."""
    entries = _legend_entries(class_table, train_ids)
    return _draw_swatches(entries, width, _font_size(width))


def save_png(image: Image.Image | np.ndarray, path: str | os.PathLike) -> None:
    """Writes a PNG, creating its folder; whoever reads `path` sees a whole file or the old one.

    Args:
      image: a picture, or uint8 [H, W, 3] or [H, W].
      path: the file to write.
    """
    picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
    with replacing(path) as partial:
        picture.save(partial, format="PNG")


def _check_shapes(image: np.ndarray, **label_maps: np.ndarray) -> None:
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(
            f"the image is {image.dtype}{list(image.shape)}: it must be uint8 [H, W, 3], "
            "before normalisation"
        )
    for name, label_map in label_maps.items():
        if label_map.shape != image.shape[:2]:
            raise ValueError(
                f"the {name} has shape {label_map.shape}, the image {image.shape[:2]}: "
                "resize one to the other"
            )


def _error_map(image: np.ndarray, scored: np.ndarray, wrong: np.ndarray) -> np.ndarray:
    error_map = (_DIMMING * image).astype(np.uint8)
    error_map[~scored] = UNSCORED_COLOR
    error_map[wrong] = WRONG_COLOR
    return error_map


def _rescale(tile: np.ndarray) -> Image.Image:
    """Brings a picture near the tile widths by an integer factor, so that no pixel is favoured."""
    picture = Image.fromarray(tile)
    if picture.width > _MAX_TILE_WIDTH:
        return picture.reduce(-(-picture.width // _MAX_TILE_WIDTH))
    factor = -(-_MIN_TILE_WIDTH // picture.width)
    return picture.resize(
        (factor * picture.width, factor * picture.height), Image.Resampling.NEAREST
    )


def _font_size(width: int, divisor: int = 64) -> int:
    """The font size that stays legible when a picture of this width is seen on a screen."""
    return max(_MIN_FONT_SIZE, width // divisor)


def _draw_row(tiles: dict[str, Image.Image]) -> Image.Image:
    """Puts pictures of one size side by side under their titles."""
    tile_width, tile_height = next(iter(tiles.values())).size
    font_size = _font_size(tile_width, divisor=32)
    font = ImageFont.load_default(font_size)
    gap, title_height = font_size // 2, 2 * font_size
    width = len(tiles) * (tile_width + gap) - gap
    canvas = Image.new("RGB", (width, title_height + tile_height), _BACKGROUND)
    draw = ImageDraw.Draw(canvas)
    for index, (title, tile) in enumerate(tiles.items()):
        left = index * (tile_width + gap)
        middle = (left + tile_width // 2, title_height // 2)
        draw.text(middle, title, _TEXT_COLOR, font, anchor="mm")
        canvas.paste(tile, (left, title_height))
    return canvas


def _legend_entries(class_table: ClassTable, train_ids: Sequence[int]) -> list[tuple[str, Color]]:
    return [(class_table.class_names[i], class_table.colors[i]) for i in train_ids]


def _draw_swatches(entries: Sequence[tuple[str, Color]], width: int, font_size: int) -> Image.Image:
    """Draws named swatches in as many equal columns as fit, row by row."""
    font = ImageFont.load_default(font_size)
    margin, line_height = font_size // 2, 3 * font_size // 2
    text_width = max((int(font.getlength(name)) for name, _ in entries), default=0)
    cell_width = font_size + margin + text_width + 2 * margin
    columns = min(max((width - margin) // cell_width, 1), max(len(entries), 1))
    rows = -(-len(entries) // columns)
    canvas = Image.new("RGB", (width, rows * line_height + 2 * margin), _BACKGROUND)
    draw = ImageDraw.Draw(canvas)
    for index, (name, color) in enumerate(entries):
        row, column = divmod(index, columns)
        left, middle = margin + column * cell_width, margin + row * line_height + line_height // 2
        top = middle - font_size // 2
        # The outline keeps a pale swatch apart from the background.
        draw.rectangle((left, top, left + font_size, top + font_size), color, _TEXT_COLOR)
        draw.text((left + font_size + margin, middle), name, _TEXT_COLOR, font, anchor="lm")
    return canvas


def _stack(upper: Image.Image, lower: Image.Image) -> Image.Image:
    canvas = Image.new("RGB", (upper.width, upper.height + lower.height), _BACKGROUND)
    canvas.paste(upper, (0, 0))
    canvas.paste(lower, (0, upper.height))
    return canvas
