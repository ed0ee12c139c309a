"""train(config, workdir): a whole run, from top to bottom."""

import contextlib
import functools
import os
import pathlib

import jax
from ml_collections import ConfigDict
from tqdm import tqdm

from regseg_jax import config as config_lib
from regseg_jax.data.augment import augment
from regseg_jax.data.pipeline import ProcessShare, create_train_iterator
from regseg_jax.data.sampling import check_epoch_size
from regseg_jax.data.sources.source import Source, check_source
from regseg_jax.models.field_of_view import describe_gaps
from regseg_jax.reports.charts import draw_class_iou, draw_curves
from regseg_jax.reports.metric_writer import METRICS_FILE, MetricWriter, read_metrics
from regseg_jax.reports.pictures import save_png
from regseg_jax.reports.progress import ProgressBar
from regseg_jax.runtime.environment import describe_environment
from regseg_jax.runtime.files import write_json
from regseg_jax.search.found import save_found
from regseg_jax.runs import run
from regseg_jax.training.checkpoints import CheckpointManager, has_checkpoint
from regseg_jax.training.evaluation import (
    Evaluation,
    evaluate,
    format_evaluation,
    jit_eval_step,
    named_scores,
)
from regseg_jax.runs.initial_weights import load_initial_weights
from regseg_jax.training.precise_bn import PreciseBatchNorm
from regseg_jax.training.recent_losses import RecentLosses
from regseg_jax.training.sharding import (
    create_mesh,
    is_main_process,
    main_process_first,
    replicate,
    replicated,
    shard_batch,
)
from regseg_jax.training.steps import create_train_step
from regseg_jax.training.stop_request import StopRequest
from regseg_jax.training.train_state import create_train_state, start_from


def train(config: ConfigDict, workdir: str | os.PathLike) -> Evaluation | None:
    """Trains to the end of the config's epochs, from the newest checkpoint in workdir if any.

    Returns:
      The last evaluation; None if the run was asked to stop by SIGTERM.

    Raises:
      ValueError: if config, data or workdir do not fit; before training starts.
      FloatingPointError: if the loss is not finite; the last good checkpoint is kept.
    """
    # --- Config and data: whatever is wrong with them shows before anything long starts.
    config_lib.validate_config(config)
    augment_config = run.create_augment_config(config)
    class_table = run.get_class_table(config)
    train_source = run.create_source(config, config.data.train_split)
    eval_source = run.create_source(config, config.data.eval_split)
    mesh = create_mesh(config.global_batch_size)
    create_mesh(config.eval.batch_size)
    check_epoch_size(len(train_source), config.global_batch_size)
    share = ProcessShare(jax.process_index(), jax.process_count())
    model = run.create_run_model(config)
    is_new = not has_checkpoint(workdir)  # asked by every process, for Orbax lets them meet
    initial = None
    if config.init_from and is_new:
        initial = load_initial_weights(config.init_from, model)
    if is_main_process():
        config_lib.claim_workdir(config, workdir)
        write_json(pathlib.Path(workdir) / "environment.json", describe_environment())
        if is_new and config.data.check and config.data.source != "synthetic":
            _check(train_source, "checking the training images")
            _check(eval_source, "checking the evaluation images")
    with main_process_first():
        train_source = run.cache_source(config, train_source, config.data.train_split)
        eval_source = run.cache_source(config, eval_source, config.data.eval_split)
        sampler = run.create_sampler(config, train_source, workdir)

    # --- Model, optimizer, state.
    num_steps = config.num_epochs * sampler.steps_per_epoch
    tx, learning_rate_fn = run.create_run_optimizer(config, model, num_steps)
    rate_search = run.create_rate_search(config, model, num_steps)
    init_rng, step_rng = jax.random.split(jax.random.key(config.seed))
    with_ema = config.ema_decay > 0
    create_state = functools.partial(create_train_state, model, tx, with_ema=with_ema)
    state = jax.jit(
        create_state,
        out_shardings=replicated(mesh),
        compiler_options={"xla_backend_optimization_level": 0},  # it runs once: seconds saved
    )(init_rng)
    if initial:
        variables = initial.fill(state.variables)
        state = replicate(start_from(model, tx, variables, with_ema=with_ema), mesh)

    # --- Where an earlier start of this run stopped.
    checkpoints = CheckpointManager(workdir)
    if (latest := checkpoints.latest_step()) is not None:
        state = checkpoints.restore(latest, state)
    elif initial:
        checkpoints.save(state)  # so that no later start reads the other run again
    step = int(state.step)

    # --- The two computations, compiled at their first call.
    augment_fn = functools.partial(augment, config=augment_config)
    train_step = jax.jit(
        create_train_step(
            model,
            tx,
            learning_rate_fn,
            run.create_loss_fn(config),
            augment_fn,
            step_rng,
            mesh,
            ema_decay=config.ema_decay,
            batch_norm_per_device=config.batch_norm_per_device,
        ),
        donate_argnums=0,
        out_shardings=replicated(mesh),
    )
    eval_step = jit_eval_step(model, run.create_run_score_fn(config, model), mesh)
    run_evaluation = functools.partial(
        evaluate,
        eval_step,
        source=eval_source,
        class_table=class_table,
        mesh=mesh,
        global_batch_size=config.eval.batch_size,
        num_workers=config.data.num_workers,
        num_panels=config.eval.num_panels,
        size_multiple=config.eval.size_multiple,
        num_worst=config.eval.num_worst,
    )
    create_batches = functools.partial(
        create_train_iterator, train_source, sampler, share, num_workers=config.data.num_workers
    )
    precise_bn = PreciseBatchNorm(
        model,
        augment_fn,
        step_rng,
        create_batches,
        mesh,
        num_steps=config.eval.precise_bn_images // config.global_batch_size,
    )
    eval_every_steps = config.eval.every_epochs * sampler.steps_per_epoch
    split = run.name_evaluation(config.data.train_split, config.data.eval_split)

    # --- The loop.
    evaluation = None
    with (
        contextlib.closing(checkpoints),  # waits for what is being saved, also after an error
        create_batches(start_step=step, num_steps=num_steps) as batches,
        StopRequest() as stop_request,
        MetricWriter(workdir, is_main_process(), resume_step=step) as writer,
        ProgressBar(
            num_steps, config.global_batch_size, start_step=step, enabled=is_main_process()
        ) as progress,
    ):
        recent = RecentLosses(workdir)

        def report(evaluation: Evaluation) -> None:
            _report(writer, progress, step, evaluation, class_table, split)
            if with_ema:
                averaged = run_evaluation(state.ema_variables)
                _report(writer, progress, step, averaged, class_table, f"{split}_ema")
            if rate_search and is_main_process():
                progress.write(save_found(workdir, config.model, rate_search, state))

        for warning in describe_gaps(model.variant.backbone):
            progress.write(warning)
        if split != config.data.eval_split:
            progress.write(
                f"the {config.data.eval_split} images are trained on (train_split is "
                f"{config.data.train_split}): their scores, {split}/*, say little of other images"
            )
        if initial:
            progress.write(initial.report)
        if step:
            progress.write(f"going on from the checkpoint of step {step}")
        while step < num_steps:
            with progress.waiting():
                batch = next(batches)
            state, metrics = train_step(state, shard_batch(batch, mesh))
            step += 1
            recent.add(step, metrics)
            progress.update(step, loss=metrics["loss"], learning_rate=metrics["learning_rate"])

            if step % config.log_every_steps == 0 or step == num_steps:
                scalars = {f"train/{k}": v for k, v in recent.summarize().items()}
                scalars |= {f"train/{k}": v for k, v in progress.rates().items()}
                if rate_search:
                    scalars |= rate_search.named_rates(state.params)
                writer.write_scalars(step, scalars)

            if step % eval_every_steps == 0 or step == num_steps:
                recent.wait()  # raises where a loss is not finite: nothing bad is ever saved
                with progress.paused():
                    state = precise_bn(state)
                    evaluation = run_evaluation(state.variables)
                    checkpoints.save(state, evaluation.scores.mean_iou)
                    report(evaluation)
            elif step % config.checkpoint_every_steps == 0:
                recent.wait()
                checkpoints.save(state)

            if stop_request.agreed(step) and step < num_steps:
                recent.wait()
                checkpoints.save(state)
                progress.write(f"stopped by request at step {step}; start again to go on")
                return None

        # --- What came out. A run that was complete already is only evaluated again, and what a
        # kill right after its last checkpoint kept from the log is put there.
        if evaluation is None:
            evaluation = run_evaluation(state.variables)
            if not _is_reported(workdir, step, split):
                report(evaluation)
    if is_main_process():
        print(format_evaluation(evaluation, class_table))
        for path in _draw_results(workdir, evaluation, class_table, split):
            print(path)
    return evaluation


def _check(source: Source, description: str) -> None:
    with tqdm(total=len(source), desc=description, unit="image", leave=False, disable=None) as bar:
        for _ in check_source(source):
            bar.update()


def _report(
    writer: MetricWriter,
    progress: ProgressBar,
    step: int,
    evaluation: Evaluation,
    class_table: run.classes.ClassTable,
    split: str,
) -> None:
    writer.write_scalars(step, named_scores(evaluation.scores, class_table, split))
    writer.write_images(step, {f"{split}/{k}": v for k, v in evaluation.panels.items()})
    progress.write(f"step {step}: {split} mean IoU {100 * evaluation.scores.mean_iou:.2f} %")


def _is_reported(workdir: str | os.PathLike, step: int, split: str) -> bool:
    records = read_metrics(pathlib.Path(workdir) / METRICS_FILE)
    return any(r["step"] == step and f"{split}/mean_iou" in r for r in records)


def _draw_results(
    workdir: str | os.PathLike,
    evaluation: Evaluation,
    class_table: run.classes.ClassTable,
    split: str,
) -> list[pathlib.Path]:
    """Draws the training curves and the IoU of each class; returns every picture's path."""
    pictures = pathlib.Path(workdir) / "pictures"
    curves = draw_curves(read_metrics(pathlib.Path(workdir) / METRICS_FILE), split)
    save_png(curves, pictures / "curves.png")
    save_png(
        draw_class_iou(evaluation.scores.iou_per_class, class_table), pictures / "class_iou.png"
    )
    return sorted(pictures.glob("*.png"))
