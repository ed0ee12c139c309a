"""train(config, workdir): a whole training run."""

import contextlib
import os

from ml_collections import ConfigDict

from regseg_jax.ops.lowerings import use_lowerings
from regseg_jax.runs.report import Report, print_results
from regseg_jax.runs.run import Run
from regseg_jax.training.checkpoints import CheckpointManager
from regseg_jax.training.evaluation import Evaluation
from regseg_jax.training.sharding import shard_batch
from regseg_jax.training.stop_request import StopRequest


def train(config: ConfigDict, workdir: str | os.PathLike) -> Evaluation | None:
    """Trains to the end of the config's epochs, from the newest checkpoint in workdir if any.

    Returns:
      The last evaluation; None if the run was asked to stop by SIGTERM.

    Raises:
      ValueError: if config, data or workdir do not fit; before training starts.
      FloatingPointError: if the loss is not finite; the last good checkpoint is kept.
    """
    with contextlib.closing(Run.create(config, workdir)) as run:  # holds the workdir until then
        return _train(run)


def _train(run: Run) -> Evaluation | None:
    # --- The state where an earlier start of this run stopped, and the compiled parts.
    checkpoints = CheckpointManager(run.workdir)
    state = run.create_state()
    if (restored := checkpoints.restore_newest(state)) is not None:
        state = restored
    elif run.initial:
        checkpoints.save(state)  # so that no later start reads the other run again
    step = int(state.step)

    train_step = run.create_train_step()
    precise_bn = run.create_precise_bn()
    evaluator = run.create_evaluator()
    evaluation = averaged = None

    # --- The loop.
    with (
        contextlib.closing(checkpoints),  # waits for what is being saved, also after an error
        run.create_batches(start_step=step, num_steps=run.num_steps) as batches,
        StopRequest() as stop_request,
        Report(run, step) as report,
        use_lowerings(run.conv_lowerings),
    ):
        while step < run.num_steps:
            with report.waiting():
                batch = next(batches)
            state, metrics = train_step(state, shard_batch(batch, run.mesh))
            step += 1
            report.add_step(step, state, metrics)

            if run.evaluates_after(step):
                report.check_losses()  # raises if one is not finite: nothing bad is ever saved
                with report.evaluating():
                    state = precise_bn(state)
                    evaluation = evaluator(state.variables)
                    checkpoints.save(state, evaluation.scores.mean_iou)
                    averaged = evaluator(state.ema_variables) if run.with_ema else None
                    report.add_evaluation(state, evaluation, averaged)
            elif step % run.config.checkpoint_every_steps == 0:
                report.check_losses()
                checkpoints.save(state)

            if stop_request.agreed(step) and step < run.num_steps:
                report.check_losses()
                checkpoints.save(state)
                report.write(f"stopped by request at step {step}; start again to go on")
                return None

        # --- A run that was complete already is evaluated again; a kill right after its last
        # checkpoint may have kept the scores from the log.
        if evaluation is None:
            evaluation = evaluator(state.variables)
            averaged = evaluator(state.ema_variables) if run.with_ema else None
            if not report.has_evaluation():
                report.add_evaluation(state, evaluation, averaged)
    print_results(run, evaluation)
    return evaluation
