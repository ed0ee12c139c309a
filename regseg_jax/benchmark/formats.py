"""What weights score in every form that they are deployed in, on the evaluation split of a recipe.

python -m regseg_jax.benchmark.formats --weights=FILE --config=camvid_scratch:segnet --page=FOLDER

Prints for each form its mean IoU and the labelled and other pixels whose class differs from JAX's
in float32. The page, `FOLDER/README.md`, shows the images of the lowest mean IoU in float32: image,
label, prediction, and where they differ.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from absl import flags
from ml_collections import config_flags
from tqdm import tqdm

from regseg_jax.benchmark.core import run_benchmark
from regseg_jax.config import parse_config
from regseg_jax.data.classes import ClassTable
from regseg_jax.data.sources.source import Source
from regseg_jax.export.forms import FORMS, REFERENCE, check_forms, create_forward
from regseg_jax.ops.resize import upsample_bilinear
from regseg_jax.reports.pictures import draw_panel, save_png
from regseg_jax.reports.tables import format_table
from regseg_jax.runs.evaluate import check_classes
from regseg_jax.runs.parts import create_dataset
from regseg_jax.runs.trained import Trained
from regseg_jax.runtime.files import replacing
from regseg_jax.training.evaluation import create_preprocess_fn
from regseg_jax.training.metrics import Scores, compute_scores, count_confusion


@dataclasses.dataclass(frozen=True)
class ScoredImage:
    """What the reference predicts of one image.

    Attributes:
      index: in its source.
      name: of the image.
      scores: of the image alone.
      prediction: training ids, uint8[H, W].
    """

    index: int
    name: str
    scores: Scores
    prediction: np.ndarray


def compare(
    trained: Trained, source: Source, indices: Sequence[int], forms: Sequence[str]
) -> tuple[list[dict[str, Any]], list[ScoredImage]]:
    """Scores images in every form.

    Args:
      trained: weights, in float32.
      source: labelled images of their classes.
      indices: of the images.
      forms: of `FORMS`; the reference is added if it is not among them.

    Returns:
      For each form its name, `mean_iou` and `iou_per_class` over all images, and the fraction of
      `differing_pixels`, whose class is not the reference's; and the images, the worst first.
    """
    classes = trained.class_table.num_classes
    preprocess = jax.jit(create_preprocess_fn(trained.eval_config))
    create = functools.lru_cache(lambda form, size: create_forward(form, trained, size))
    forms = list(dict.fromkeys((REFERENCE, *forms)))
    counts = {form: np.zeros((classes, classes), np.int64) for form in forms}
    differing, num_pixels, images = dict.fromkeys(forms, 0), 0, []
    for index in tqdm(indices, unit="image", disable=None):
        example = source[index]
        inputs, size = np.asarray(preprocess(example["image"][None])), example["label"].shape
        num_pixels += example["label"].size
        for form in forms:
            logits = create(form, inputs.shape[1:3])(inputs)
            prediction = np.asarray(_upsample(logits, size)).argmax(-1)[0].astype(np.uint8)
            matrix = count_confusion(example["label"], prediction, classes)
            counts[form] += matrix
            if form == REFERENCE:
                reference = prediction
                scores = compute_scores(matrix)
                images.append(ScoredImage(index, example["name"], scores, prediction))
            differing[form] += int((prediction != reference).sum())
    rows = []
    for form in forms:
        scores = compute_scores(counts[form])
        row = {"form": form, "mean_iou": scores.mean_iou}
        row["iou_per_class"] = [None if np.isnan(x) else x for x in scores.iou_per_class.tolist()]
        rows.append({**row, "differing_pixels": differing[form] / num_pixels})
    labelled = [image for image in images if not np.isnan(image.scores.mean_iou)]
    return rows, sorted(labelled, key=lambda image: (image.scores.mean_iou, image.index))


@functools.partial(jax.jit, static_argnums=1)
def _upsample(logits: jax.Array, size: tuple[int, int]) -> jax.Array:
    return upsample_bilinear(logits, size)


def write_page(
    folder: pathlib.Path, images: Sequence[ScoredImage], source: Source, table: ClassTable
) -> pathlib.Path:
    """Writes `README.md` and a picture of each image into a folder, in this order.

    Returns:
      The page's path.
    """
    lines = [
        f"# The {len(images)} images of the lowest mean IoU",
        "",
        "Image, label, prediction, and where they differ: wrong pixels red, ignored ones grey.",
    ]
    for rank, image in enumerate(images, 1):
        example, picture = source[image.index], f"worst_{rank:02d}.png"
        panel = draw_panel(example["image"], example["label"], image.prediction, table)
        save_png(panel, folder / picture)
        present = np.flatnonzero(~np.isnan(image.scores.iou_per_class))
        order = sorted(present, key=lambda i: image.scores.iou_per_class[i])
        classes = ", ".join(
            f"{table.class_names[i]} {100 * image.scores.iou_per_class[i]:.1f}" for i in order
        )
        lines += [
            *("", f"## {rank}. {image.name}: {100 * image.scores.mean_iou:.2f} %", ""),
            *(f"IoU in %: {classes}.", "", f"![{image.name}]({picture})"),
        ]
    with replacing(folder / "README.md") as partial:
        partial.write_text("\n".join(lines) + "\n")
    return folder / "README.md"


def measure(values: flags.FlagValues) -> dict[str, Any]:
    """Compares what the flags name, prints a table, and writes the page if there is a folder."""
    check_forms(values.forms)
    trained, config = Trained.from_weights(values.weights), parse_config(values.config)
    dataset, split, table = create_dataset(config), config.data.eval_split, trained.class_table
    check_classes(trained, dataset.class_table)
    source = dataset.create_source(split)
    count = min(values.num_images or len(source), len(source))
    indices = np.linspace(0, len(source) - 1, count).round().astype(int).tolist()
    rows, images = compare(trained, source, indices, values.forms)
    cells = [
        (row["form"], f"{100 * row['mean_iou']:.3f}", f"{row['differing_pixels']:.4%}")
        for row in rows
    ]
    print(format_table(("form", "mean IoU %", "pixels differ"), cells))
    if values.page:
        page = write_page(pathlib.Path(values.page), images[: values.num_worst], source, table)
        print(f"wrote {page}")
    worst = [{"name": x.name, "mean_iou": x.scores.mean_iou} for x in images[: values.num_worst]]
    classes = list(table.class_names)
    return {"split": split, "images": count, "classes": classes, "rows": rows, "worst": worst}


if __name__ == "__main__":
    flags.DEFINE_string("weights", None, "Exported weights: a file, or the name of shipped ones.")
    config_flags.DEFINE_config_file("config", None, "The recipe whose evaluation split is scored.")
    flags.DEFINE_multi_string("forms", list(FORMS), "A form to compare; may be repeated.")
    flags.DEFINE_integer("num_images", 0, "Evenly over the split; 0: all.", lower_bound=0)
    flags.DEFINE_integer("num_worst", 10, "Images of the page.", lower_bound=1)
    flags.DEFINE_string("page", None, "A folder for a page of the worst images; else none.")
    flags.mark_flags_as_required(["weights", "config"])
    run_benchmark(measure, "regseg_jax.benchmark.formats")
