"""A run of two processes that ends in seconds, and the interpreter that it needs."""

import os
import pathlib
import socket
import sys

TESTS = pathlib.Path(__file__).parents[1]
ROOT = TESTS.parent
NUM_STEPS = 200  # long enough to be stopped on the way
SECONDS = 1500  # to wait for it, on a busy machine
CONFIG = (
    *("--config=configs/synthetic.py", "--config.model=small_decoder12"),
    *("--config.data.synthetic_size=(48, 64)", "--config.data.synthetic_train_examples=100"),
    *("--config.data.synthetic_eval_examples=4", "--config.augment.crop_size=(32, 48)"),
    *("--config.augment.min_shorter_side=24", "--config.augment.max_shorter_side=64"),
    *("--config.global_batch_size=4", "--config.num_epochs=8", "--config.eval.every_epochs=8"),
    *("--config.eval.batch_size=4", "--config.checkpoint_every_steps=25"),
)
# Two processes on few cores.
VARIABLES = {"XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false", "OMP_NUM_THREADS": "1"}
VARIABLES |= {
    name: os.environ[name]
    for name in ("JAX_PLATFORMS", "JAX_COMPILATION_CACHE_DIR", "JAX_DISABLE_MOST_OPTIMIZATIONS")
}


def write_python(path: pathlib.Path) -> pathlib.Path:
    """An interpreter that knows the small backbones, for scripts that start `python -m MODULE`.

    The project is imported from the folder that it is started in.
    """
    path.write_text(f'#!/bin/sh\nPYTHONPATH=. exec {sys.executable} {TESTS}/small_main.py "$@"\n')
    path.chmod(0o755)
    return path


def find_free_port() -> int:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]
