"""The workload in JAX."""

import dataclasses
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.training.dynamic_scale import DynamicScale

from regseg_jax.benchmark.workload import (
    LEARNING_RATE,
    LOSS_SCALE,
    NUM_LOSSES,
    Prepared,
    Workload,
)
from regseg_jax.config import PRECISIONS
from regseg_jax.models.folding import fold_batch_norm
from regseg_jax.training.losses import cross_entropy
from regseg_jax.training.optimizer import create_optimizer
from regseg_jax.training.sharding import single_device_mesh
from regseg_jax.training.steps import create_train_step
from regseg_jax.training.train_state import start_from


def prepare_jax(workload: Workload, variables: Any, precision: str) -> Prepared:
    """Compiles inference or the training step for JAX's default device."""
    workload = dataclasses.replace(
        workload, model=workload.model.clone(dtype=PRECISIONS[precision])
    )
    prepare = {"inference": _prepare_jax_inference, "train": _prepare_jax_train}
    return prepare[workload.mode](workload, variables)


def _prepare_jax_inference(workload: Workload, variables: Any) -> Prepared:
    variables, images = jax.device_put((variables, workload.images))
    variables = fold_batch_norm(variables, workload.model.dtype)
    start = time.perf_counter()
    infer = jax.jit(lambda variables, x: workload.model.apply(variables, x, train=False))
    infer = infer.lower(variables, images).compile()
    compile_seconds = time.perf_counter() - start
    return Prepared(
        run=lambda: jax.block_until_ready(infer(variables, images)),
        output=np.asarray(infer(variables, images)),
        compile_seconds=compile_seconds,
        memory_bytes=_count_bytes(infer),
    )


def _prepare_jax_train(workload: Workload, variables: Any) -> Prepared:
    def learning_rate_fn(step: jax.Array) -> jax.Array:
        return jnp.float32(LEARNING_RATE)

    model, tx = workload.model, create_optimizer(learning_rate_fn, weight_decay=1e-4)
    # Copies, for the step is given its state's memory.
    state = start_from(model, tx, jax.tree.map(jnp.array, variables))
    if state.dynamic_scale:
        state = state.replace(dynamic_scale=DynamicScale(scale=jnp.float32(LOSS_SCALE)))
    batch = jax.device_put({"image": workload.images, "label": workload.labels})
    train_step = create_train_step(
        model,
        tx,
        learning_rate_fn,
        loss_fn=cross_entropy,
        augment_fn=lambda images, labels, rng: (images, labels),
        rng=jax.random.key(0),
        mesh=single_device_mesh(),
    )
    start = time.perf_counter()
    train_step = jax.jit(train_step, donate_argnums=0).lower(state, batch).compile()
    compile_seconds = time.perf_counter() - start

    def run() -> jax.Array:
        nonlocal state
        state, metrics = train_step(state, batch)
        return jax.block_until_ready((state, metrics))[1]["loss"]

    output = np.array([run() for _ in range(NUM_LOSSES)])
    return Prepared(run, output, compile_seconds, _count_bytes(train_step))


def _count_bytes(compiled: jax.stages.Compiled) -> int | None:
    """What the program holds at most, by the compiler's plan: its inputs and outputs included."""
    plan = compiled.memory_analysis()
    if plan is None:
        return None
    inputs_and_outputs = plan.argument_size_in_bytes + plan.output_size_in_bytes
    return inputs_and_outputs + plan.temp_size_in_bytes - plan.alias_size_in_bytes
