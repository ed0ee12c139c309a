"""A picture of a data set: six examples with their labels over them."""

from collections.abc import Iterator, Mapping

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from PIL import Image

from regseg_jax.data.classes import IGNORE_LABEL, ClassTable
from regseg_jax.data.sources.source import Example, Source
from regseg_jax.reports.charts import render_figure
from regseg_jax.reports.pictures import colorize

_NUM_EXAMPLES = 6
_NUM_COLUMNS = 3
_TILE_SIZE = (640, 480)  # larger images are shrunk into it: width and height
_OPACITY = 0.5  # of the labels


def draw_examples(sources: Mapping[str, Source], class_table: ClassTable) -> Image.Image | None:
    """Draws examples of the splits with their labels over them, and a legend.

    Args:
      sources: of each split; the examples are taken at even distances over each.
      class_table: the classes. Ignored pixels show the image alone.

    Returns:
      An RGB picture; None if no example can be read.
    """
    tiles = []
    for i, (split, source) in enumerate(sources.items()):
        later = list(sources.values())[i + 1 :]
        wanted = _NUM_EXAMPLES - len(tiles)
        count = max(-(-wanted // (1 + len(later))), wanted - sum(map(len, later)))
        for example in _take_readable(source, count):
            tiles.append((f"{split}: {example['name']}", _overlay(example, class_table)))
    if not tiles:
        return None
    num_rows = -(-len(tiles) // _NUM_COLUMNS)
    figure = Figure(figsize=(13, 3.5 * num_rows + 1), dpi=100, layout="constrained")
    for i, (title, picture) in enumerate(tiles):
        axes = figure.add_subplot(num_rows, _NUM_COLUMNS, i + 1)
        axes.imshow(picture)
        axes.set_title(title, fontsize=10)
        axes.set_axis_off()
    figure.legend(
        handles=[
            Patch(facecolor=np.array(color) / 255, edgecolor="black", label=name)
            for name, color in zip(class_table.class_names, class_table.colors, strict=True)
        ],
        loc="outside lower center",
        ncols=7,
    )
    return render_figure(figure)


def _take_readable(source: Source, count: int) -> Iterator[Example]:
    """Up to this many examples, evenly spaced, without those that cannot be read."""
    spread = np.linspace(0, len(source) - 1, min(count, len(source))).round().astype(int).tolist()
    others = [i for i in range(len(source)) if i not in spread]
    for i in [*spread, *others]:
        if count == 0:
            return
        try:
            yield source[i]
        except ValueError:
            continue
        count -= 1


def _overlay(example: Example, class_table: ClassTable) -> Image.Image:
    image, label = example["image"], example["label"]
    colors = np.where((label == IGNORE_LABEL)[..., None], image, colorize(label, class_table))
    picture = Image.blend(Image.fromarray(image), Image.fromarray(colors), _OPACITY)
    picture.thumbnail(_TILE_SIZE)
    return picture
