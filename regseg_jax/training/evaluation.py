"""Scores a whole split and draws some of its images."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jax.typing import DTypeLike
from PIL import Image
from tqdm import tqdm

from regseg_jax.data.augment import resize_and_normalize
from regseg_jax.data.classes import ClassTable
from regseg_jax.data.pipeline import Batch, EvalPlan, ProcessShard, create_eval_iterator
from regseg_jax.data.sources.source import Source
from regseg_jax.models.folding import prepare_inference
from regseg_jax.models.regseg import RegSeg
from regseg_jax.reports.pictures import draw_panel
from regseg_jax.runtime.checks import check_integer, check_number, check_size
from regseg_jax.training.eval_step import (
    ClassifyFn,
    ScoreFn,
    create_classify_fn,
    create_eval_step,
    create_score_fn,
)
from regseg_jax.training.metrics import ConfusionMatrix, Scores, compute_scores, count_confusion
from regseg_jax.training.sharding import (
    batch_sharded,
    create_eval_mesh,
    is_main_process,
    replicate,
    replicated,
    shard_batch,
)

_DEFAULT_TIMES = 10  # a run is evaluated, unless `eval.every_epochs` is set


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """How whole images are scored: `config.eval`."""

    image_size: tuple[int, ...] = ()  # images are resized to it; (): left as they are
    size_multiple: int = 1  # if sizes differ, pad to multiples of it: fewer to compile
    batch_size: int = 8  # over all devices
    every_epochs: int = 0  # 0: ten times in a run
    num_panels: int = 4  # pictures drawn at each evaluation
    num_worst: int = 0  # images of the lowest mean IoU that are listed and drawn
    # Above 0: before each evaluation the running statistics become the mean over this
    # many training images (the paper: 600).
    precise_bn_images: int = 0
    flip: bool = False  # whether probabilities are averaged with the mirrored image's
    scales: tuple[float, ...] = (1.0,)  # and over these sizes of the image

    def __post_init__(self) -> None:
        check_size("eval.image_size", self.image_size, or_empty=True)
        for key in ("size_multiple", "batch_size"):
            check_integer(f"eval.{key}", getattr(self, key), at_least=1)
        for key in ("every_epochs", "num_panels", "num_worst", "precise_bn_images"):
            check_integer(f"eval.{key}", getattr(self, key), at_least=0)
        if not self.scales:
            raise ValueError("config.eval.scales is (); set positive factors, (1.0,) for none")
        for scale in self.scales:
            check_number("eval.scales", scale, above=0)

    def is_due(self, step: int, num_steps: int, steps_per_epoch: int) -> bool:
        """Whether a run is evaluated after this step of its num_steps; the last one always is."""
        if not self.every_epochs:
            return _DEFAULT_TIMES * step // num_steps > _DEFAULT_TIMES * (step - 1) // num_steps
        return step == num_steps or step % (self.every_epochs * steps_per_epoch) == 0


def create_preprocess_fn(config: EvalConfig) -> Callable[[jax.Array], jax.Array]:
    """A function of whole images uint8[B, H, W, 3] to the model's input f32[B, h, w, 3]."""

    def preprocess(images: jax.Array) -> jax.Array:
        return resize_and_normalize(images, config.image_size or images.shape[1:3])

    return preprocess


def create_image_score_fn(model: RegSeg, config: EvalConfig) -> ScoreFn:
    """A function that scores the classes of whole images, see `eval_step.create_score_fn`."""
    return create_score_fn(
        model, create_preprocess_fn(config), scales=config.scales, flip=config.flip
    )


def create_image_classify_fn(model: RegSeg, config: EvalConfig) -> ClassifyFn:
    """A function that classifies the pixels of whole images, see `eval_step.create_classify_fn`."""
    return create_classify_fn(
        model, create_preprocess_fn(config), scales=config.scales, flip=config.flip
    )


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


@dataclasses.dataclass(frozen=True)
class Evaluator:
    """Scores one split with any weights.

    Attributes:
      eval_step: compiled, see `create_eval_step`: predictions stay on the devices of their images,
        the confusion matrix is summed over all.
      source: the split.
      class_table: its classes.
      mesh: over which the batches are sharded.
      config: sizes, batches and pictures.
      num_workers: processes that decode.
      dtype: of the model's computation.
    """

    eval_step: EvalStep
    source: Source
    class_table: ClassTable
    mesh: Mesh
    config: EvalConfig
    num_workers: int
    dtype: DTypeLike

    @classmethod
    def create(
        cls,
        model: RegSeg,
        source: Source,
        class_table: ClassTable,
        config: EvalConfig,
        num_workers: int,
        spatial_devices: int = 1,
    ) -> "Evaluator":
        """An evaluator over every device, see `create_eval_mesh`; compiles at its first use.

        Raises:
          ValueError: if config.batch_size does not divide over the devices.
        """
        mesh = create_eval_mesh(config.batch_size, spatial_devices=spatial_devices)
        eval_step = jax.jit(
            create_eval_step(model, create_image_classify_fn(model, config), mesh),
            out_shardings=(batch_sharded(mesh), replicated(mesh)),
        )
        return cls(eval_step, source, class_table, mesh, config, num_workers, model.dtype)

    def __call__(self, variables: dict[str, Any]) -> Evaluation:
        """Scores every image of the split.

        Of several processes each reads its part of every batch. All return the same scores; the
        pictures and the worst images are of those that the main process reads.

        Args:
          variables: {"params", "batch_stats"}, on any devices.
        """
        variables = prepare_inference(replicate(variables, self.mesh), self.dtype)
        num_images, num_worst = len(self.source), self.config.num_worst
        drawn = set(np.linspace(0, num_images - 1, self.config.num_panels, dtype=int).tolist())
        total, panels = ConfusionMatrix.empty(self.class_table.num_classes), {}
        worst = []
        with contextlib.closing(self._predict_batches(variables)) as results:
            for batch, predictions, confusion_matrix in results:
                total = total.merge(confusion_matrix)
                if not is_main_process():
                    continue
                rows = (batch["image"], batch["label"], _local_rows(predictions))
                for index, *maps in zip(batch["index"].tolist(), *rows, strict=True):
                    if index in drawn:
                        panels[f"panel_{index:04d}"] = draw_panel(*maps, self.class_table)
                    if num_worst and index < num_images:
                        worst.append((_image_mean_iou(*maps[1:], self.class_table), index, maps))
                        worst = sorted(worst, key=lambda row: row[:2])[:num_worst]
        for rank, (_, _, maps) in enumerate(worst):
            panels[f"worst_{rank}"] = draw_panel(*maps, self.class_table)
        names = tuple((self.source[index]["name"], iou) for iou, index, _ in worst)
        return Evaluation(total.compute(), panels, names)

    def _predict_batches(
        self, variables: dict[str, Any]
    ) -> Iterator[tuple[Batch, jax.Array, ConfusionMatrix]]:
        """Yields each batch with its results, one batch behind the device, to keep that busy."""
        plan = EvalPlan.create(self.source, self.config.batch_size, self.config.size_multiple)
        shard = ProcessShard(jax.process_index(), jax.process_count())
        previous = None
        with (
            create_eval_iterator(self.source, plan, shard, num_workers=self.num_workers) as batches,
            tqdm(
                desc="evaluating",
                total=plan.num_batches,
                unit="batch",
                leave=False,
                disable=None if is_main_process() else True,  # None: shown in a terminal only
            ) as bar,
        ):
            for batch in batches:
                on_device = shard_batch({k: batch[k] for k in ("image", "label")}, self.mesh)
                result = (batch, *self.eval_step(variables, on_device))
                if previous:
                    yield previous
                    bar.update()
                previous = result
            if previous:
                yield previous
                bar.update()


def _image_mean_iou(label: np.ndarray, prediction: np.ndarray, class_table: ClassTable) -> float:
    """Of one image; infinite if nothing is labelled, so that it is never among the worst."""
    counts = count_confusion(label, prediction, class_table.num_classes)
    mean_iou = compute_scores(counts).mean_iou
    return np.inf if np.isnan(mean_iou) else mean_iou


def _local_rows(x: jax.Array) -> np.ndarray:
    """The rows of a batch-sharded array that are on this process's devices, in order."""
    # Devices that share an image have the same rows of the batch.
    shards = {shard.index[0].start or 0: shard for shard in x.addressable_shards}
    return np.concatenate([np.asarray(shards[start].data) for start in sorted(shards)])
