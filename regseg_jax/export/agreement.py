"""Runs a trained model in every export format and compares the logits with JAX's.

python -m regseg_jax.export.agreement --workdir=RUN --output=agreement.json IMAGE_OR_FOLDER ...
"""

import functools
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from absl import flags
from tqdm import tqdm

from regseg_jax.data.decode import load_image
from regseg_jax.export.forms import FORMS, REFERENCE, Forward, check_forms, create_forward
from regseg_jax.prediction.inputs import find_inputs
from regseg_jax.reports.tables import format_table
from regseg_jax.runs.trained import Trained, load_run
from regseg_jax.runtime.command import run_command
from regseg_jax.runtime.environment import describe_environment
from regseg_jax.runtime.files import check_new, write_json
from regseg_jax.training.evaluation import create_preprocess_fn

_COMPARED = [form for form in FORMS if not form.startswith("JAX")]


def create_forwards(trained: Trained, size: tuple[int, int]) -> dict[str, Forward]:
    """JAX's and one function per other form, see `forms.create_forward`."""
    return {form: create_forward(form, trained, size) for form in (REFERENCE, *_COMPARED)}


def compare(workdir: str | os.PathLike, paths: Sequence[str | os.PathLike]) -> list[dict[str, Any]]:
    """Compares the logits of a run's best checkpoint on images.

    Args:
      workdir: of a run; its precision should be float32.
      paths: images, or folders of them; as `predict` takes them.

    Returns:
      For each format its name, the largest difference of a logit, that in units of the logits'
      standard deviation, and the fraction of pixels whose class differs from JAX's.

    Raises:
      ValueError: if the run or an image cannot be read, or the run is not of float32.
    """
    check_forms(_COMPARED)
    images = [entry.path for entry in find_inputs(paths).images]
    trained = Trained.from_run(load_run(workdir))
    if trained.model.dtype != np.float32:
        raise ValueError(
            f"{workdir} computes in {np.dtype(trained.model.dtype)}: its rounding would hide the "
            "differences; compare a run of float32"
        )
    preprocess = jax.jit(create_preprocess_fn(trained.eval_config))
    forwards_of = functools.lru_cache(functools.partial(create_forwards, trained))
    largest, differing, stds = {}, {}, []
    for inputs in tqdm(_prepare(images, preprocess), total=len(images), unit="image", disable=None):
        forwards = dict(forwards_of(size=inputs.shape[1:3]))
        reference = forwards.pop(REFERENCE)(inputs)
        stds.append(reference.std())
        for name, forward in forwards.items():
            logits = forward(inputs)
            difference = float(np.abs(logits - reference).max())
            largest[name] = max(largest.get(name, 0.0), difference)
            differs = float((logits.argmax(-1) != reference.argmax(-1)).mean())
            differing[name] = differing.get(name, 0.0) + differs / len(images)
    return [
        {
            "form": name,
            "max_difference": largest[name],
            "max_difference_in_deviations": largest[name] / float(np.mean(stds)),
            "differing_pixels": differing[name],
        }
        for name in largest
    ]


def _prepare(paths: Sequence[os.PathLike], preprocess: Callable) -> Iterator[np.ndarray]:
    for path in paths:
        yield np.asarray(preprocess(load_image(path)[None]))


def main(argv: list[str]) -> None:
    """Compares, prints the table and writes the file that the flags name."""
    values = flags.FLAGS
    check_new(values.output)
    rows = compare(values.workdir, argv)
    cells = [
        [
            row["form"],
            f"{row['max_difference']:.1e}",
            f"{row['max_difference_in_deviations']:.1e}",
            f"{row['differing_pixels']:.4%}",
        ]
        for row in rows
    ]
    headers = ("format", "largest difference", "in standard deviations", "pixels differ")
    print(format_table(headers, cells))
    if values.output:
        num_images = len(find_inputs(argv).images)
        write_json(values.output, {**describe_environment(), "images": num_images, "rows": rows})
        print(f"wrote {values.output}")


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "The run whose best checkpoint is compared.")
    flags.DEFINE_string("output", None, "JSON file to write; else none.")
    flags.mark_flags_as_required(["workdir"])
    run_command(main, "regseg_jax.export.agreement")
