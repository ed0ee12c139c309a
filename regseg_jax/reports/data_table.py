"""The table of a data set: images, sizes, pixels of each class, weights, values, problems."""

from collections.abc import Mapping, Sequence
from typing import Any

from regseg_jax.data.class_weights import RULES, compute_class_weights
from regseg_jax.data.classes import ClassTable
from regseg_jax.data.labels import list_known_values
from regseg_jax.data.sources.source import FileSource, Source
from regseg_jax.data.survey import Survey, find_warnings
from regseg_jax.reports.tables import format_table

_MAX_SIZES = 5  # listed in the printed table


def summarize_data(
    surveys: Mapping[str, Survey],
    sources: Mapping[str, Source],
    class_table: ClassTable,
    problems: Sequence[str],
) -> dict[str, Any]:
    """What the surveys found, as plain data for JSON.

    Args:
      surveys: of each split, the training split first.
      sources: the same splits.
      class_table: the classes.
      problems: a line each.

    Returns:
      A dict whose keys but the last three are of a dict by split: `images`, `sizes` (images of
      each "HEIGHT x WIDTH"), `pixels_per_class`, `ignored_pixels`, `unknown_values` (pixels of
      each label value that the class table does not know), `unused_values` (those of the table
      that no label holds). `class_weights` are by rule and class name; `warnings` and `problems`
      are lines.
    """
    names = class_table.class_names
    summary: dict[str, Any] = {
        "images": {split: survey.num_images for split, survey in surveys.items()},
        "sizes": {
            split: {f"{height} x {width}": n for (height, width), n in survey.sizes.items()}
            for split, survey in surveys.items()
        },
        "pixels_per_class": {
            split: dict(zip(names, survey.class_pixels.tolist(), strict=True))
            for split, survey in surveys.items()
        },
        "ignored_pixels": {split: survey.ignored_pixels for split, survey in surveys.items()},
        "unknown_values": {},
        "unused_values": {},
        "class_weights": {},
        "warnings": [
            warning
            for split, survey in surveys.items()
            if survey.num_images
            for warning in find_warnings(survey, class_table, split)
        ],
        "problems": list(problems),
    }
    for split, source in sources.items():
        if isinstance(source, FileSource):
            values, ignored = list_known_values(class_table, source.label_format)
            known, found = (*values, *ignored), surveys[split].value_pixels
            summary["unknown_values"][split] = {
                str(value): pixels for value, pixels in found.items() if value not in known
            }
            summary["unused_values"][split] = [str(value) for value in known if value not in found]
    train_survey = next(iter(surveys.values()), None)
    if train_survey and train_survey.labelled_pixels:
        for rule in RULES:
            weights = compute_class_weights(rule, train_survey).tolist()
            summary["class_weights"][rule] = dict(zip(names, weights, strict=True))
    return summary


def format_data(summary: dict[str, Any], class_table: ClassTable) -> str:
    """One row per class with its pixels and weights, then lines for the other findings.

    Args:
      summary: as `summarize_data` returns it.
      class_table: the classes.
    """
    splits = list(summary["images"])
    labelled = {split: sum(summary["pixels_per_class"][split].values()) for split in splits}
    headers = ["class"]
    for split in splits:
        headers += [f"{split} pixels", "%"]
    rows = []
    for name in class_table.class_names:
        row = [name]
        for split in splits:
            pixels = summary["pixels_per_class"][split][name]
            row += [f"{pixels:,}", f"{100 * pixels / max(labelled[split], 1):.2f}"]
        rows.append([*row, *(f"{x[name]:.3f}" for x in summary["class_weights"].values())])
    lines = [format_table([*headers, *summary["class_weights"]], rows)] if splits else []
    for split in splits:
        lines += ["", f"{split}: {summary['images'][split]} images", *_format_split(summary, split)]
    for key in ("warnings", "problems"):
        if summary[key]:
            lines += ["", f"{len(summary[key])} {key}:", *(f"  {line}" for line in summary[key])]
    return "\n".join(lines)


def _format_split(summary: dict[str, Any], split: str) -> list[str]:
    sizes = summary["sizes"][split]
    listed = [f"{n} of {size}" for size, n in list(sizes.items())[:_MAX_SIZES]]
    if len(sizes) > _MAX_SIZES:
        listed.append(f"{len(sizes) - _MAX_SIZES} more sizes")
    ignored = summary["ignored_pixels"][split]
    total = ignored + sum(summary["pixels_per_class"][split].values())
    unknown = [f"{x} ({n:,} pixels)" for x, n in summary["unknown_values"].get(split, {}).items()]
    lines = {
        "sizes": listed,
        "ignored": [f"{ignored:,} of {total:,} pixels, {100 * ignored / max(total, 1):.2f} %"],
        "unknown label values": unknown,
        "unused label values": summary["unused_values"].get(split, []),
    }
    return [f"  {name}: {', '.join(values)}" for name, values in lines.items() if values]
