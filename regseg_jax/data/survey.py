"""What is in a split: every example decoded once and counted, before training or to describe it."""

import collections
import concurrent.futures
import dataclasses
from collections.abc import Sequence

import numpy as np
from tqdm import tqdm

from regseg_jax.data.classes import IGNORE_LABEL, ClassTable
from regseg_jax.data.labels import format_raw_values
from regseg_jax.data.sources.source import FileSource, Source

_MOSTLY_IGNORED = 0.5  # a fraction of the pixels above it is worth a warning


@dataclasses.dataclass(frozen=True, eq=False)
class Survey:
    """The counts of a split.

    Attributes:
      num_images: whole examples; the others are in `errors`.
      sizes: how many of them have each (height, width).
      class_pixels: i64[num_classes], the pixels of each class.
      present_pixels: i64[num_classes], the labelled and ignored pixels of the images that show
        the class.
      ignored_pixels: pixels that are neither trained on nor scored.
      value_pixels: pixels of each raw label value, unknown ones among them, most frequent first;
        a value is a number or a colour. Empty where the source does not tell, or was not asked.
      errors: what is wrong with examples, a line each.
    """

    num_images: int
    sizes: dict[tuple[int, int], int]
    class_pixels: np.ndarray
    present_pixels: np.ndarray
    ignored_pixels: int
    value_pixels: dict[int | tuple[int, int, int], int]
    errors: tuple[str, ...]

    @property
    def labelled_pixels(self) -> int:
        """The pixels that have a class."""
        return int(self.class_pixels.sum())


def survey_source(
    source: Source, num_classes: int, description: str, *, keep_going: bool = False
) -> Survey:
    """Decodes every example in threads, under a progress bar.

    Args:
      source: a split.
      num_classes: of its class table.
      description: for the bar.
      keep_going: whether bad examples are collected in `errors`, and raw label values counted.

    Raises:
      ValueError: at the first bad example, as `FileSource.__getitem__`, or where sizes differ
        that should not; unless keep_going.
    """
    sizes, values = collections.Counter(), collections.Counter()
    pixels, present = np.zeros(256, np.int64), np.zeros(256, np.int64)
    errors, first = [], None
    with concurrent.futures.ThreadPoolExecutor() as pool:  # decoding releases Python's lock
        looks = pool.map(lambda i: _look(source, i, keep_going), range(len(source)))
        try:
            for look in tqdm(
                looks, description, len(source), unit="image", leave=False, disable=None
            ):
                values.update(look.values)
                if look.error is None and source.image_sizes is None:
                    first = first or look
                    look = look.compare_size(first)
                if look.error is not None:
                    if not keep_going:
                        raise ValueError(look.error)
                    errors.append(look.error)
                    continue
                sizes[look.size] += 1
                pixels += look.pixels
                present[look.pixels > 0] += look.pixels.sum()
        finally:
            pool.shutdown(cancel_futures=True)
    return Survey(
        num_images=sizes.total(),
        sizes=dict(sizes.most_common()),
        class_pixels=pixels[:num_classes],
        present_pixels=present[:num_classes],
        ignored_pixels=int(pixels[IGNORE_LABEL]),
        value_pixels=dict(values.most_common()),
        errors=tuple(errors),
    )


@dataclasses.dataclass(frozen=True, eq=False)
class _Look:
    """What one example shows: its name, size, pixels of each training id; or what is wrong."""

    name: str = ""
    size: tuple[int, int] = (0, 0)
    pixels: np.ndarray | None = None
    values: dict = dataclasses.field(default_factory=dict)
    error: str | None = None

    def compare_size(self, first: "_Look") -> "_Look":
        if self.size == first.size:
            return self
        error = (
            f"image {self.name} is {self.size[0]} x {self.size[1]}, the first of its split "
            f"{first.size[0]} x {first.size[1]}; resize the images to one size"
        )
        return dataclasses.replace(self, error=error)


def _look(source: Source, index: int, count_values: bool) -> _Look:
    values = _count_values(source, index) if count_values else {}
    try:
        example = source[index]
    except ValueError as error:
        return _Look(values=values, error=str(error))
    label = example["label"]
    pixels = np.bincount(label.ravel(), minlength=256)
    return _Look(example["name"], label.shape, pixels, values)


def _count_values(source: Source, index: int) -> dict:
    if not isinstance(source, FileSource):
        return {}
    try:
        raw = source.load_raw_label(index)
    except ValueError:
        return {}  # decoding the example says why
    if raw is None:
        return {}
    values, counts = np.unique(raw, return_counts=True)
    return dict(zip(format_raw_values(values, source.label_format), counts.tolist(), strict=True))


def find_warnings(survey: Survey, class_table: ClassTable, split: str) -> list[str]:
    """What is legal and yet probably a mistake, with counts: absent classes, ignored pixels."""
    warnings = []
    absent = [
        repr(name)
        for name, pixels in zip(class_table.class_names, survey.class_pixels, strict=True)
        if pixels == 0
    ]
    if absent:
        warnings.append(
            f"warning: no label of the {split} split holds {_join(absent)}: 0 of "
            f"{survey.labelled_pixels:,} labelled pixels; check the class table's values, or take "
            "out classes that are not there"
        )
    total = survey.labelled_pixels + survey.ignored_pixels
    if survey.ignored_pixels > _MOSTLY_IGNORED * total:
        warnings.append(
            f"warning: {survey.ignored_pixels / total:.1%} of the {split} split's pixels are "
            f"ignored ({survey.ignored_pixels:,} of {total:,}); where an ignored value, such as "
            "255 in a mask of 0 and 255, is a class, give it a row in the class table and take it "
            "out of the ignored ones"
        )
    return warnings


def _join(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"
