"""The parts of a run, made once from its config."""

import contextlib
import dataclasses
import functools
import math
import os
import pathlib
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import jax
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from regseg_jax.config import Config, parse_config
from regseg_jax.data.augment import augment
from regseg_jax.data.class_weights import check_class_weights, load_class_weights
from regseg_jax.data.classes import ClassTable
from regseg_jax.data.dataset import name_evaluation
from regseg_jax.data.pipeline import Batch, ProcessShard, create_train_iterator
from regseg_jax.data.sampling import Sampler, check_epoch_size
from regseg_jax.data.sources.source import Source
from regseg_jax.data.survey import Survey, find_warnings, survey_source
from regseg_jax.models.regseg import RegSeg
from regseg_jax.ops.lowerings import LoweringTable
from regseg_jax.runs.conv_lowerings import load_conv_lowerings
from regseg_jax.runs.initial_weights import InitialWeights, load_initial_weights
from regseg_jax.runs.parts import (
    create_dataset,
    create_rate_search,
    create_run_learning_rate_fn,
    create_run_model,
    create_run_optimizer,
)
from regseg_jax.runs.workdir import WorkdirLock, check_free, claim_workdir, record_start
from regseg_jax.training.checkpoints import has_checkpoint
from regseg_jax.training.evaluation import Evaluator
from regseg_jax.training.losses import create_loss
from regseg_jax.training.optimizer import Schedule
from regseg_jax.training.precise_bn import PreciseBatchNorm
from regseg_jax.training.rate_search import RateSearch
from regseg_jax.training.sharding import (
    create_mesh,
    is_main_process,
    main_process_first,
    replicate,
    replicated,
)
from regseg_jax.training.steps import AugmentFn, create_train_step
from regseg_jax.training.train_state import TrainState, create_train_state, start_from

TrainStep = Callable[[TrainState, dict[str, jax.Array]], tuple[TrainState, dict[str, jax.Array]]]


@dataclasses.dataclass(frozen=True)
class Run:
    """The parts of a training run.

    Attributes:
      config: of the run.
      workdir: its folder.
      lock: of the workdir, held by the main process until `close`.
      class_table: the classes.
      train_source: the images to train on.
      eval_source: the images to score.
      class_weights: of each training id in the loss; None: all count the same.
      sampler: the order of training.
      mesh: over which the batches are sharded.
      model: in the run's precision; with dilation rates to search if the config says so.
      tx: the optimizer.
      learning_rate_fn: of the step's number.
      rate_search: how dilation rates move; None if they are fixed.
      augment_fn: of a batch, on the device.
      conv_lowerings: measured choices for its convolutions; None: each platform's own.
      initial: weights of another run to start from; None: random ones.
      num_steps: of the whole run.
      eval_name: of the scores in logs: `val`, or `val_trained_on`.
    """

    config: Config
    workdir: pathlib.Path
    lock: WorkdirLock | None
    class_table: ClassTable
    train_source: Source
    eval_source: Source
    class_weights: tuple[float, ...] | None
    sampler: Sampler
    mesh: Mesh
    model: RegSeg
    tx: optax.GradientTransformationExtraArgs
    learning_rate_fn: Schedule
    rate_search: RateSearch | None
    augment_fn: AugmentFn
    conv_lowerings: LoweringTable | None
    initial: InitialWeights | None
    num_steps: int
    eval_name: str

    @classmethod
    def create(cls, config: ConfigDict, workdir: str | os.PathLike) -> "Run":
        """Makes every part and claims the workdir.

        Faults of config, data or workdir show here, before long work starts.
        A new run's images are all decoded once (`config.data.check`).

        Raises:
          ValueError: if config, data or workdir do not fit.
        """
        config, workdir = parse_config(config), pathlib.Path(workdir)
        dataset = create_dataset(config)
        check_class_weights(config.loss.class_weights, dataset.class_table)
        train_source = dataset.create_source(config.data.train_split, workdir)
        eval_source = dataset.create_source(config.data.eval_split, workdir)
        mesh = create_mesh(config.global_batch_size, accumulation_steps=config.accumulation_steps)
        create_mesh(config.eval.batch_size, "eval.batch_size")
        check_epoch_size(len(train_source), config.global_batch_size)
        model = create_run_model(config)
        is_new = not has_checkpoint(workdir)  # in every process: Orbax synchronises them
        initial = None
        if config.init_from and is_new:
            initial = load_initial_weights(config.init_from, model)
        with contextlib.ExitStack() as on_error:
            lock = survey = None
            if is_main_process():
                lock = on_error.enter_context(contextlib.closing(WorkdirLock(workdir)))
                check_free(config, workdir)
                if is_new and config.data.check and config.data.source != "synthetic":
                    survey = _check_images(
                        train_source, dataset.class_table, config.data.train_split
                    )
                    _check_images(eval_source, dataset.class_table, config.data.eval_split)
                # Not before the images are right, for that may take another class table.
                claim_workdir(config, workdir)
                record_start(workdir)
                dataset.keep_val_split(workdir)
            with main_process_first():
                train_source = dataset.cache_source(train_source, config.data.train_split)
                eval_source = dataset.cache_source(eval_source, config.data.eval_split)
                class_weights = load_class_weights(
                    config.loss.class_weights,
                    workdir,
                    train_source,
                    dataset.class_table,
                    survey,
                    write=is_main_process(),
                )
                sampler = dataset.create_sampler(train_source, config.global_batch_size, workdir)
            conv_lowerings = load_conv_lowerings(
                config.conv_lowerings, workdir, write=is_main_process()
            )
            on_error.pop_all()
        num_steps = config.num_epochs * sampler.steps_per_epoch
        return cls(
            config=config,
            workdir=workdir,
            lock=lock,
            class_table=dataset.class_table,
            train_source=train_source,
            eval_source=eval_source,
            class_weights=class_weights,
            sampler=sampler,
            mesh=mesh,
            model=model,
            tx=create_run_optimizer(config, model, num_steps),
            learning_rate_fn=create_run_learning_rate_fn(config, num_steps),
            rate_search=create_rate_search(config, model, num_steps),
            augment_fn=functools.partial(augment, config=config.augment),
            conv_lowerings=conv_lowerings,
            initial=initial,
            num_steps=num_steps,
            eval_name=name_evaluation(config.data.train_split, config.data.eval_split),
        )

    def close(self) -> None:
        """Lets others have the workdir."""
        if self.lock:
            self.lock.close()

    @property
    def with_ema(self) -> bool:
        """Whether averaged weights are kept and evaluated."""
        return self.config.ema_decay > 0

    @property
    def step_rng(self) -> jax.Array:
        """What the training steps fold their numbers into."""
        return jax.random.split(jax.random.key(self.config.seed))[1]

    def evaluates_after(self, step: int) -> bool:
        """Whether an evaluation is due after this step."""
        return self.config.eval.is_due(step, self.num_steps, self.sampler.steps_per_epoch)

    def create_state(self) -> TrainState:
        """The state of step 0, on every device."""
        create_state = jax.jit(
            functools.partial(create_train_state, self.model, self.tx, with_ema=self.with_ema),
            out_shardings=replicated(self.mesh),
            compiler_options={"xla_backend_optimization_level": 0},  # it runs once: seconds saved
        )
        state = create_state(jax.random.split(jax.random.key(self.config.seed))[0])
        if self.initial is None:
            return state
        variables = self.initial.fill(state.variables)
        return replicate(
            start_from(self.model, self.tx, variables, with_ema=self.with_ema), self.mesh
        )

    def create_train_step(self) -> TrainStep:
        """The training step, see `steps.create_train_step`; compiles at its first call."""
        pixels = self.config.global_batch_size * math.prod(self.config.augment.crop_size)
        return jax.jit(
            create_train_step(
                self.model,
                self.tx,
                self.learning_rate_fn,
                create_loss(self.config.loss, pixels, self.class_weights),
                self.augment_fn,
                self.step_rng,
                self.mesh,
                ema_decay=self.config.ema_decay,
                batch_norm_per_device=self.config.batch_norm_per_device,
                accumulation_steps=self.config.accumulation_steps,
            ),
            donate_argnums=0,
            out_shardings=replicated(self.mesh),
        )

    def create_batches(
        self, *, start_step: int, num_steps: int
    ) -> AbstractContextManager[Iterator[Batch]]:
        """This process's part of the batches of steps start_step to num_steps - 1."""
        return create_train_iterator(
            self.train_source,
            self.sampler,
            ProcessShard(jax.process_index(), jax.process_count()),
            start_step=start_step,
            num_steps=num_steps,
            num_workers=self.config.data.num_workers,
        )

    def create_evaluator(self) -> Evaluator:
        """Scores the evaluation split."""
        config = self.config
        return Evaluator.create(
            self.model, self.eval_source, self.class_table, config.eval, config.data.num_workers
        )

    def create_precise_bn(self) -> PreciseBatchNorm:
        """Replaces running statistics before an evaluation, if the config says so."""
        return PreciseBatchNorm(
            self.model,
            self.augment_fn,
            self.step_rng,
            self.create_batches,
            self.mesh,
            num_steps=self.config.eval.precise_bn_images // self.config.global_batch_size,
            accumulation_steps=self.config.accumulation_steps,
        )


def _check_images(source: Source, class_table: ClassTable, split: str) -> Survey:
    survey = survey_source(source, class_table.num_classes, f"checking the {split} images")
    for warning in find_warnings(survey, class_table, split):
        print(warning, file=sys.stderr)
    return survey
