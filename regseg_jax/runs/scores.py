"""Scores as metric keys and as tables."""

import numpy as np

from regseg_jax.data.classes import ClassTable
from regseg_jax.reports.tables import format_table
from regseg_jax.training.evaluation import Evaluation
from regseg_jax.training.metrics import Scores


def named_scores(scores: Scores, class_table: ClassTable, split: str) -> dict[str, float]:
    """Scores by metric key: `val/mean_iou`, `val/pixel_accuracy`, `val/iou/CLASS`, in [0, 1];
    and `val/mean_iou_reduced` if the class table leaves classes out of it.
    """
    named = {f"{split}/mean_iou": scores.mean_iou, f"{split}/pixel_accuracy": scores.pixel_accuracy}
    for name, iou in zip(class_table.class_names, scores.iou_per_class, strict=True):
        named[f"{split}/iou/{name}"] = float(iou)
    if class_table.reduced_without:
        named[f"{split}/mean_iou_reduced"] = scores.mean_iou_without(class_table.reduced_without)
    return named


def format_scores(scores: Scores, class_table: ClassTable) -> str:
    """A table of each class's IoU in percent, the mean, and which classes are left out."""
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
    """`format_scores`, and a table of the worst images if any were asked for."""
    table = format_scores(evaluation.scores, class_table)
    if not evaluation.worst:
        return table
    rows = [(name, f"{100 * mean_iou:.2f}") for name, mean_iou in evaluation.worst]
    return f"{table}\n\n{format_table(('worst images', 'mean IoU %'), rows)}"
