"""What a training run tells its user: progress, metrics, pictures."""

import contextlib
import pathlib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any, Self

import jax

from regseg_jax.models.field_of_view import describe_gaps
from regseg_jax.reports.charts import draw_class_iou
from regseg_jax.reports.curves import RunCurves, draw_curves
from regseg_jax.reports.metric_writer import METRICS_FILE, MetricWriter, read_metrics
from regseg_jax.reports.pictures import save_png
from regseg_jax.reports.progress import ProgressBar
from regseg_jax.runs.found import save_found
from regseg_jax.runs.run import Run
from regseg_jax.runs.scores import format_evaluation, named_scores
from regseg_jax.training.evaluation import Evaluation
from regseg_jax.training.recent_losses import RecentLosses
from regseg_jax.training.sharding import is_main_process
from regseg_jax.training.train_state import TrainState


class Report:
    """Shows the progress of a run and writes its metrics; a context manager.

    With several processes, only the main one shows and writes.

    Args:
      run: what is trained.
      start_step: the steps that are done already.
    """

    def __init__(self, run: Run, start_step: int):
        self._run = run
        self._step = start_step
        self._losses = RecentLosses(run.workdir)
        self._writer = MetricWriter(run.workdir, is_main_process(), resume_step=start_step)
        self._progress = ProgressBar(
            run.num_steps,
            run.config.global_batch_size,
            start_step=start_step,
            enabled=is_main_process(),
        )
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        self._stack.enter_context(self._writer)
        self._stack.enter_context(self._progress)
        self._write_notices()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._stack.__exit__(*exception)

    def _write_notices(self) -> None:
        run, data = self._run, self._run.config.data
        for warning in describe_gaps(run.model.variant.backbone):
            self.write(warning)
        if run.eval_name != data.eval_split:
            self.write(
                f"the {data.eval_split} images are trained on (train_split is "
                f"{data.train_split}): their scores, {run.eval_name}/*, tell little about others"
            )
        if run.initial:
            self.write(run.initial.report)
        if self._step:
            self.write(f"going on from the checkpoint of step {self._step}")

    def write(self, text: str) -> None:
        """Prints a line above the progress bar."""
        self._progress.write(text)

    def waiting(self) -> AbstractContextManager[None]:
        """The time inside counts as waiting for input."""
        return self._progress.waiting()

    def add_step(self, step: int, state: TrainState, metrics: dict[str, jax.Array]) -> None:
        """Takes the metrics of a step; every `config.log_every_steps` it writes their means.

        Raises:
          FloatingPointError: if a loss is not finite.
        """
        self._step = step
        self._losses.add(step, metrics)
        self._progress.update(step, loss=metrics["loss"], learning_rate=metrics["learning_rate"])
        if step % self._run.config.log_every_steps and step != self._run.num_steps:
            return
        scalars = {f"train/{k}": v for k, v in self._losses.summarize().items()}
        scalars |= {f"train/{k}": v for k, v in self._progress.take_rates().items()}
        if self._run.rate_search:
            scalars |= self._run.rate_search.named_rates(state.params)
        self._writer.write_scalars(step, scalars)

    def check_losses(self) -> None:
        """Waits for every step so far; raises FloatingPointError if a loss is not finite."""
        self._losses.wait()

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        """The time inside is left out of the training's images per second."""
        with self._progress.paused():
            yield

    def add_evaluation(
        self, state: TrainState, evaluation: Evaluation, averaged: Evaluation | None
    ) -> None:
        """Writes scores, pictures and curves, and what a search has found so far.

        Args:
          state: of the run.
          evaluation: with its weights.
          averaged: with their average; None if there is none.
        """
        self._add_scores(evaluation, self._run.eval_name)
        if averaged:
            self._add_scores(averaged, f"{self._run.eval_name}_ema")
        if not is_main_process():
            return
        workdir = self._run.workdir
        curves = RunCurves(workdir.name, read_metrics(workdir / METRICS_FILE), self._run.eval_name)
        save_png(draw_curves([curves]), workdir / "pictures" / "curves.png")
        if self._run.rate_search:
            self.write(save_found(workdir, self._run.config.model, self._run.rate_search, state))

    def _add_scores(self, evaluation: Evaluation, name: str) -> None:
        scores = evaluation.scores
        self._writer.write_scalars(self._step, named_scores(scores, self._run.class_table, name))
        self._writer.write_images(
            self._step, {f"{name}/{tag}": panel for tag, panel in evaluation.panels.items()}
        )
        self.write(f"step {self._step}: {name} mean IoU {100 * scores.mean_iou:.2f} %")

    def has_evaluation(self) -> bool:
        """Whether the scores of the present step are written already."""
        records = read_metrics(self._run.workdir / METRICS_FILE)
        key = f"{self._run.eval_name}/mean_iou"
        return any(record["step"] == self._step and key in record for record in records)


def print_results(run: Run, evaluation: Evaluation) -> None:
    """Prints the scores, draws each class's IoU, prints the paths of the last pictures."""
    if not is_main_process():
        return
    print(format_evaluation(evaluation, run.class_table))
    pictures: pathlib.Path = run.workdir / "pictures"
    class_iou = draw_class_iou(evaluation.scores.iou_per_class, run.class_table)
    save_png(class_iou, pictures / "class_iou.png")
    for path in sorted(pictures.glob("*.png")):
        step = path.stem.rpartition("_")[2]
        if not step.isdigit() or int(step) == run.num_steps:
            print(path)
