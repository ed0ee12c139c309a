"""The workload in JAX."""

import dataclasses
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.training.dynamic_scale import DynamicScale

from regseg_jax.benchmark.core import plan_memory
from regseg_jax.benchmark.workload import (
    LEARNING_RATE,
    LOSS_SCALE,
    NUM_LOSSES,
    Prepared,
    Workload,
)
from regseg_jax.config import PRECISIONS
from regseg_jax.models.folding import prepare_inference
from regseg_jax.training.losses import CrossEntropy
from regseg_jax.training.optimizer import create_optimizer
from regseg_jax.training.sharding import single_device_mesh
from regseg_jax.training.steps import create_train_step
from regseg_jax.training.train_state import start_from


def prepare_jax(workload: Workload, variables: Any, precision: str) -> Prepared:
    """Compiles inference or the training step for JAX's default device."""
    model = workload.model.clone(dtype=PRECISIONS[precision])
    workload = dataclasses.replace(workload, model=model)
    if workload.mode == "inference":
        return _prepare_inference(workload, variables)
    return prepare_training(
        workload, variables, create_optimizer(learning_rate_fn, weight_decay=1e-4)
    )


def _prepare_inference(workload: Workload, variables: Any) -> Prepared:
    variables, images = jax.device_put((variables, workload.images))
    variables = prepare_inference(variables, workload.model.dtype)
    infer, seconds, memory_bytes = _compile(
        jax.jit(lambda variables, x: workload.model.apply(variables, x, train=False)),
        *(variables, images),
    )

    def run() -> jax.Array:
        return jax.block_until_ready(infer(variables, images))

    return Prepared(run, np.asarray(run()), seconds, memory_bytes)


def learning_rate_fn(step: jax.Array) -> jax.Array:
    """The same at every step."""
    return jnp.float32(LEARNING_RATE)


def prepare_training(
    workload: Workload, variables: Any, tx: optax.GradientTransformationExtraArgs
) -> Prepared:
    """Compiles the training step of workload.model with any optimizer, from these weights."""
    model = workload.model
    # Copies: the step donates its state's memory.
    state = start_from(model, tx, jax.tree.map(jnp.array, variables))
    if state.dynamic_scale:
        state = state.replace(dynamic_scale=DynamicScale(scale=jnp.float32(LOSS_SCALE)))
    batch = jax.device_put({"image": workload.images, "label": workload.labels})
    train_step = create_train_step(
        model,
        tx,
        learning_rate_fn,
        loss_fn=CrossEntropy(),
        augment_fn=lambda images, labels, rng: (images, labels),
        rng=jax.random.key(0),
        mesh=single_device_mesh(),
    )
    train_step, seconds, memory_bytes = _compile(
        jax.jit(train_step, donate_argnums=0), state, batch
    )

    def run() -> jax.Array:
        nonlocal state
        state, metrics = train_step(state, batch)
        return jax.block_until_ready((state, metrics))[1]["loss"]

    losses = np.array([run() for _ in range(NUM_LOSSES)])
    return Prepared(run, losses, seconds, memory_bytes)


def _compile(jitted: Any, *arguments: Any) -> tuple[jax.stages.Compiled, float, int | None]:
    """The program, the seconds that compiling took, and what it holds in memory at most."""
    start = time.perf_counter()
    compiled = jitted.lower(*arguments).compile()
    memory = plan_memory(compiled)
    return compiled, time.perf_counter() - start, memory and memory["total"]
