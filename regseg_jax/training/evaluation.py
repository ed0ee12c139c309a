"""Scores a whole split and draws some of its images."""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict
from PIL import Image
from tqdm import tqdm

from regseg_jax.config import MAY_CHANGE, check_same_run, load_config, validate_config
from regseg_jax.data.classes import IGNORE_LABEL, ClassTable
from regseg_jax.data.pipeline import Batch, EvalPlan, ProcessShare, create_eval_iterator
from regseg_jax.data.sources.source import Source
from regseg_jax.models import RegSeg
from regseg_jax.reports.pictures import draw_panel, save_png
from regseg_jax.reports.tables import format_table
from regseg_jax.runs import run
from regseg_jax.training.metrics import ConfusionMatrix, Scores, compute_scores
from regseg_jax.training.sharding import (
    batch_sharded,
    create_mesh,
    is_main_process,
    replicate,
    replicated,
    shard_batch,
)
from regseg_jax.training.steps import ScoreFn, create_eval_step


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The result of a split.

    Attributes:
      scores: over all its pixels.
      panels: pictures of image, label, prediction and error, by tag.
      worst: name and mean IoU of the images where that is lowest, the lowest first.
    """

    scores: Scores
    panels: dict[str, Image.Image]
    worst: tuple[tuple[str, float], ...] = ()


EvalStep = Callable[[dict[str, Any], Any], tuple[jax.Array, ConfusionMatrix]]


def jit_eval_step(model: RegSeg, score_fn: ScoreFn, mesh: Mesh) -> EvalStep:
    """Compiles `steps.create_eval_step`: predictions stay where their images are, counts meet."""
    return jax.jit(
        create_eval_step(model, score_fn, mesh),
        out_shardings=(batch_sharded(mesh), replicated(mesh)),
    )


def evaluate(
    eval_step: EvalStep,
    variables: dict[str, Any],
    source: Source,
    class_table: ClassTable,
    *,
    mesh: Mesh,
    global_batch_size: int,
    num_workers: int,
    num_panels: int,
    size_multiple: int = 1,
    num_worst: int = 0,
) -> Evaluation:
    """Runs every image of source through eval_step once, whatever the batch size and devices.

    Args:
      eval_step: see `jit_eval_step`.
      variables: params and batch_stats, replicated.
      source: examples; each size among them compiles once.
      class_table: for the pictures.
      mesh: of the run.
      global_batch_size: over all devices.
      num_workers: processes that decode.
      num_panels: of examples evenly spread over the split; only those that the main process
        reads are drawn.
      size_multiple: images of differing sizes are padded to multiples of it, see `EvalPlan`.
      num_worst: how many images of the lowest mean IoU, each over the classes that it or its
        prediction holds, are listed and drawn; of those that the main process reads.
    """
    share = ProcessShare(jax.process_index(), jax.process_count())
    drawn = set(np.linspace(0, len(source) - 1, num_panels, dtype=int).tolist())
    total, panels = ConfusionMatrix.empty(class_table.num_classes), {}
    worst = []
    plan = EvalPlan.create(source, global_batch_size, size_multiple)
    with create_eval_iterator(source, plan, share, num_workers=num_workers) as batches:
        for batch, predictions, confusion_matrix in tqdm(
            _run(eval_step, variables, batches, mesh),
            desc="evaluating",
            total=plan.num_batches,
            unit="batch",
            leave=False,
            disable=None if is_main_process() else True,  # None: shown in a terminal only
        ):
            total = total.merge(confusion_matrix)
            if not is_main_process():
                continue
            rows = (batch["image"], batch["label"], _local_rows(predictions))
            for index, *maps in zip(batch["index"].tolist(), *rows, strict=True):
                if index in drawn:
                    panels[f"panel_{index:04d}"] = draw_panel(*maps, class_table)
                if num_worst and index < len(source):
                    worst.append((_image_mean_iou(*maps[1:], class_table), index, maps))
                    worst = sorted(worst, key=lambda row: row[:2])[:num_worst]
    for rank, (_, _, maps) in enumerate(worst):
        panels[f"worst_{rank}"] = draw_panel(*maps, class_table)
    names = tuple((source[index]["name"], iou) for iou, index, _ in worst)
    return Evaluation(total.compute(), panels, names)


def _image_mean_iou(label: np.ndarray, prediction: np.ndarray, class_table: ClassTable) -> float:
    """Of one image; infinite, so never among the worst, where nothing is labelled."""
    n, scored = class_table.num_classes, label != IGNORE_LABEL
    cells = label[scored].astype(np.int64) * n + prediction[scored]
    mean_iou = compute_scores(np.bincount(cells, minlength=n * n).reshape(n, n)).mean_iou
    return np.inf if np.isnan(mean_iou) else mean_iou


def _run(
    eval_step: EvalStep, variables: dict[str, Any], batches: Iterator[Batch], mesh: Mesh
) -> Iterator[tuple[Batch, jax.Array, ConfusionMatrix]]:
    """Yields each batch with its results, one batch behind the device so that it never idles."""
    previous = None
    for batch in batches:
        on_device = shard_batch({k: batch[k] for k in ("image", "label")}, mesh)
        result = (batch, *eval_step(variables, on_device))
        if previous:
            yield previous
        previous = result
    if previous:
        yield previous


def _local_rows(x: jax.Array) -> np.ndarray:
    """The rows of a batch-sharded array that lie on this process's devices, in order."""
    shards = sorted(x.addressable_shards, key=lambda shard: shard.index[0].start or 0)
    return np.concatenate([np.asarray(shard.data) for shard in shards])


def named_scores(scores: Scores, class_table: ClassTable, split: str) -> dict[str, float]:
    """Scores by metric key: `val/mean_iou`, `val/pixel_accuracy`, `val/iou/CLASS`, in [0, 1];
    and `val/mean_iou_reduced` where the class table says what it leaves out.
    """
    named = {f"{split}/mean_iou": scores.mean_iou, f"{split}/pixel_accuracy": scores.pixel_accuracy}
    for name, iou in zip(class_table.class_names, scores.iou_per_class, strict=True):
        named[f"{split}/iou/{name}"] = float(iou)
    if class_table.reduced_without:
        named[f"{split}/mean_iou_reduced"] = scores.mean_iou_without(class_table.reduced_without)
    return named


def format_scores(scores: Scores, class_table: ClassTable) -> str:
    """A table of IoU a class in percent, their mean, and which classes are left out."""
    rows = [
        (name, "absent" if np.isnan(iou) else f"{100 * iou:.2f}")
        for name, iou in zip(class_table.class_names, scores.iou_per_class, strict=True)
    ]
    rows.append(("mean IoU", f"{100 * scores.mean_iou:.2f}"))
    if class_table.reduced_without:
        reduced = scores.mean_iou_without(class_table.reduced_without)
        rows.append(("mean IoU, reduced", f"{100 * reduced:.2f}"))
    rows.append(("pixel accuracy", f"{100 * scores.pixel_accuracy:.2f}"))
    table = format_table(("class", "IoU %"), rows)
    if scores.absent_classes:
        absent = ", ".join(class_table.class_names[i] for i in scores.absent_classes)
        table += f"\nleft out of the mean, in neither labels nor predictions: {absent}"
    return table


def format_evaluation(evaluation: Evaluation, class_table: ClassTable) -> str:
    """`format_scores`, and a table of the worst images where some were asked for."""
    table = format_scores(evaluation.scores, class_table)
    if not evaluation.worst:
        return table
    rows = [(name, f"{100 * mean_iou:.2f}") for name, mean_iou in evaluation.worst]
    return f"{table}\n\n{format_table(('worst images', 'mean IoU %'), rows)}"


def evaluate_run(config: ConfigDict, workdir: str | os.PathLike) -> Scores:
    """Evaluates the best checkpoint of a run, prints the table and writes the pictures.

    Args:
      config: the run's; its data and eval keys may differ (an empty data_dir is the run's).
      workdir: of the run.

    Raises:
      ValueError: if workdir holds no run of this config, or the data does not fit.
    """
    saved = load_config(workdir)
    if not config.data.data_dir:
        config.data.data_dir = saved.data.data_dir
    validate_config(config)
    check_same_run(config, saved, workdir, ignored=(*MAY_CHANGE, "data.", "eval."))
    source = run.create_source(config, config.data.eval_split)
    mesh = create_mesh(config.eval.batch_size)
    trained = run.load_run(workdir)
    class_table = run.get_class_table(config)
    run_evaluation = functools.partial(
        evaluate,
        jit_eval_step(trained.model, run.create_run_score_fn(config, trained.model), mesh),
        source=source,
        class_table=class_table,
        mesh=mesh,
        global_batch_size=config.eval.batch_size,
        num_workers=config.data.num_workers,
        num_panels=config.eval.num_panels,
        size_multiple=config.eval.size_multiple,
        num_worst=config.eval.num_worst,
    )
    evaluation = run_evaluation(replicate(trained.variables, mesh))
    if trained.ema_variables:
        averaged = run_evaluation(replicate(trained.ema_variables, mesh))
        if is_main_process():
            print(f"with averaged weights\n{format_scores(averaged.scores, class_table)}")
    if is_main_process():
        name = run.name_evaluation(saved.data.train_split, config.data.eval_split)
        print(f"{name}: checkpoint of step {trained.step}, {len(source)} images")
        if name != config.data.eval_split:
            print("the run was trained on these images: the scores say little of others")
        print(format_evaluation(evaluation, class_table))
        for name, panel in evaluation.panels.items():
            path = pathlib.Path(workdir) / "evaluation" / f"{name}.png"
            save_png(panel, path)
            print(path)
    return evaluation.scores
