"""Weights of the classes in the loss, from how often the training labels show each.

`median_frequency`: the median of the classes' frequencies over a class's own, where a frequency is
taken over the images that show the class (Eigen and Fergus, 2015, section 6.3.2; SegNet trains
CamVid so). `inverse_log`: 1 / ln(1.02 + p), p the fraction of the labelled pixels (ENet, section
5.1).
"""

import json
import pathlib
from collections.abc import Callable, Sequence

import numpy as np

from regseg_jax.data.classes import ClassTable
from regseg_jax.data.sources.source import Source
from regseg_jax.data.survey import Survey, survey_source
from regseg_jax.runtime.files import write_json

CLASS_WEIGHTS_FILE = "class_weights.json"


def _weigh_by_median_frequency(survey: Survey) -> np.ndarray:
    is_present = survey.class_pixels > 0
    frequencies = survey.class_pixels / np.maximum(survey.present_pixels, 1)
    # No label shows an absent class, so that its weight counts nowhere.
    median = np.median(frequencies[is_present])
    return np.where(is_present, median / np.where(is_present, frequencies, 1), 1.0)


def _weigh_by_inverse_log(survey: Survey) -> np.ndarray:
    return 1 / np.log(1.02 + survey.class_pixels / survey.labelled_pixels)


RULES: dict[str, Callable[[Survey], np.ndarray]] = {
    "median_frequency": _weigh_by_median_frequency,
    "inverse_log": _weigh_by_inverse_log,
}


def compute_class_weights(rule: str, survey: Survey) -> np.ndarray:
    """The weight of each class, f64[num_classes]; under `median_frequency` 1 for absent ones.

    Raises:
      ValueError: if no pixel has a class.
    """
    if not survey.labelled_pixels:
        raise ValueError(
            f"config.loss.class_weights is {rule!r}, but no pixel of the training labels has a "
            "class; check the class table"
        )
    return RULES[rule](survey)


def check_class_weights(setting: str | Sequence[float], class_table: ClassTable) -> None:
    """Raises ValueError unless setting is a rule, a positive number for each class, or empty."""
    if isinstance(setting, str):
        if setting and setting not in RULES:
            raise ValueError(
                f"config.loss.class_weights is {setting!r}; set numbers, one of "
                f"{', '.join(RULES)}, or '' for none"
            )
        return
    is_legal = isinstance(setting, Sequence) and all(
        isinstance(x, int | float) and 0 < x < float("inf") for x in setting
    )
    if not is_legal or len(setting) not in (0, class_table.num_classes):
        raise ValueError(
            f"config.loss.class_weights is {setting}; set a positive number for each of "
            f"the {class_table.num_classes} classes"
        )


def load_class_weights(
    setting: str | Sequence[float],
    workdir: pathlib.Path,
    source: Source,
    class_table: ClassTable,
    survey: Survey | None = None,
    *,
    write: bool = True,
) -> tuple[float, ...] | None:
    """The weights that `config.loss.class_weights` asks for.

    By a rule they are counted once and kept in `class_weights.json` of the run's folder, from
    which later starts read them.

    Args:
      setting: a number for each class, a key of `RULES`, or empty for none.
      workdir: of the run.
      source: the training images; decoded if nothing is kept and there is no survey.
      class_table: the classes.
      survey: of the source, if it was made already.
      write: whether to keep the weights; of several processes one does.

    Returns:
      A weight for each training id; None if all count the same.

    Raises:
      ValueError: if the numbers are not one positive number for each class, there is no such rule,
        or the file in workdir is of another data set, class table or rule.
    """
    check_class_weights(setting, class_table)
    if not setting:
        return None
    if not isinstance(setting, str):
        return tuple(map(float, setting))
    path = workdir / CLASS_WEIGHTS_FILE
    made_for = {"rule": setting, "data_set": source.fingerprint().data_set}
    if path.exists():
        saved = json.loads(path.read_text())
        if any(saved[key] != value for key, value in made_for.items()):
            raise ValueError(
                f"{path} holds the class weights of another rule, data set or class table; choose "
                "another workdir, or delete the file"
            )
        return tuple(saved["weights"].values())
    if survey is None:
        survey = survey_source(source, class_table.num_classes, "counting the classes")
    weights = compute_class_weights(setting, survey).tolist()
    if write:
        names = class_table.class_names
        content = {
            **made_for,
            "weights": dict(zip(names, weights, strict=True)),
            "pixels_per_class": dict(zip(names, survey.class_pixels.tolist(), strict=True)),
            "ignored_pixels": survey.ignored_pixels,
        }
        write_json(path, content)
    return tuple(weights)
