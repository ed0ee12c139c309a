"""Mean IoU from one confusion matrix over a whole split."""

import dataclasses

import jax.numpy as jnp
import numpy as np
from clu import metrics
from flax import struct
from jax import Array


@struct.dataclass
class ConfusionMatrix(metrics.Metric):
    """Counts of pixels, `matrix[label, prediction]`.

    On the device the counts of one batch are int32. Merge batches on the host, where `merge` adds
    int64: a whole split has more pixels than int32 holds.
    """

    matrix: Array | np.ndarray

    @classmethod
    def empty(cls, num_classes: int) -> "ConfusionMatrix":
        """No pixels yet, on the host."""
        return cls(np.zeros((num_classes, num_classes), np.int64))

    @classmethod
    def from_model_output(
        cls, *, labels: Array, predictions: Array, num_classes: int
    ) -> "ConfusionMatrix":
        """Counts the pixels of a batch; labels outside [0, num_classes) are left out.

        Args:
          labels: i32[B, H, W].
          predictions: i32[B, H, W], in [0, num_classes).
          num_classes: the size of the matrix.
        """
        valid = (labels >= 0) & (labels < num_classes)
        cell = jnp.where(valid, labels * num_classes + predictions, num_classes**2)
        counts = jnp.bincount(cell.ravel(), length=num_classes**2 + 1)[:-1]
        return cls(counts.reshape(num_classes, num_classes))

    def merge(self, other: "ConfusionMatrix") -> "ConfusionMatrix":
        """Adds two on the host."""
        return type(self)(np.asarray(self.matrix, np.int64) + np.asarray(other.matrix))

    def compute(self) -> "Scores":
        """The scores of all that was counted."""
        return compute_scores(np.asarray(self.matrix, np.int64))


@dataclasses.dataclass(frozen=True)
class Scores:
    """The scores of a confusion matrix.

    Attributes:
      confusion_matrix: i64[num_classes, num_classes], [label, prediction].
      iou_per_class: f64[num_classes] in [0, 1]; NaN for a class in neither labels nor predictions.
      mean_iou: over the classes that are present; NaN if none is.
      pixel_accuracy: the fraction of labelled pixels whose class is right; NaN without any.
      absent_classes: ids that mean_iou leaves out.
    """

    confusion_matrix: np.ndarray
    iou_per_class: np.ndarray
    mean_iou: float
    pixel_accuracy: float
    absent_classes: tuple[int, ...]

    def mean_iou_without(self, classes: tuple[int, ...]) -> float:
        """The mean over the other classes that are present; NaN if none is."""
        others = np.delete(self.iou_per_class, list(classes))
        return float(np.mean(others[~np.isnan(others)])) if np.isfinite(others).any() else np.nan


def count_confusion(label: np.ndarray, prediction: np.ndarray, num_classes: int) -> np.ndarray:
    """Counts the pixels of one image on the host: i64[num_classes, num_classes].

    Args:
      label: integers [H, W]; values outside [0, num_classes) are left out.
      prediction: integers [H, W], in [0, num_classes).
      num_classes: the size of the matrix.
    """
    valid = (label >= 0) & (label < num_classes)
    cells = label[valid].astype(np.int64) * num_classes + prediction[valid]
    return np.bincount(cells, minlength=num_classes**2).reshape(num_classes, num_classes)


def compute_scores(confusion_matrix: np.ndarray) -> Scores:
    """IoU = intersection / union of labels and predictions, for each class, and their mean."""
    matrix = np.asarray(confusion_matrix, np.int64)
    intersection = np.diag(matrix)
    union = matrix.sum(0) + matrix.sum(1) - intersection
    present = union > 0
    iou = np.where(present, intersection / np.maximum(union, 1), np.nan)
    total = matrix.sum()
    return Scores(
        confusion_matrix=matrix,
        iou_per_class=iou,
        mean_iou=float(iou[present].mean()) if present.any() else float("nan"),
        pixel_accuracy=float(intersection.sum() / total) if total else float("nan"),
        absent_classes=tuple(int(i) for i in np.flatnonzero(~present)),
    )
