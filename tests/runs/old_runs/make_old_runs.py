"""Made the run folders next to this file, with the project's commit 152de92.

In a checkout of that commit: PYTHONPATH=tests:. python PATH/make_old_runs.py OUTPUT_FOLDER

Two runs of six steps of a tiny model, one with averaged weights and one that searches dilation
rates. So that they are small, the momentum is then set to zero, every other number is rounded to
a power of two, and the checkpoint is saved again by the same code; `old_code.json` holds what
that code computes from it.
"""

import json
import pathlib
import shutil
import sys

import jax
import numpy as np
import small_run
from regseg_jax.train import train
from regseg_jax.train_state import TrainState

from regseg_jax import checkpoint, config, evaluate, run
from regseg_jax.models import variants

OPTIONS = {
    "plain": {"ema_decay": 0.9, "augment.rand_augment_num_ops": 1},
    "search": {"search.enabled": True, "search.warmup_steps": 1},
}
IMAGE = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)


def add_backbone() -> None:
    """As test_old_runs.py does."""
    block = variants.Block
    stage16 = (block(16, stride=2), block(32, (1, 2)))
    variants.BACKBONES["tiny"] = variants.Backbone(
        (
            ("stage4", (block(16, stride=2),)),
            ("stage8", (block(16, stride=2),)),
            ("stage16", stage16),
        )
    )


def distil(state: TrainState) -> TrainState:
    """With arrays that compress well."""

    def round_array(x: np.ndarray) -> np.ndarray:
        if x.dtype != np.float32:
            return x
        return (x.view(np.uint32) & np.uint32(0xFF800000)).view(np.float32)

    state = jax.tree.map(lambda x: round_array(np.asarray(x)), state)
    return state.replace(opt_state=jax.tree.map(np.zeros_like, state.opt_state))


def make(name: str, output: pathlib.Path) -> None:
    new_config = small_run.create_small_config()
    new_config.model, new_config.num_epochs = "tiny_decoder12", 1
    new_config.update_from_flattened_dict(OPTIONS[name])
    trained, distilled = output / f"{name}_trained", output / name
    train(new_config, trained)

    model = run.create_run_model(new_config)
    tx, _ = run.create_run_optimizer(new_config, 6)
    like = run.abstract_train_state(model, tx, with_ema=new_config.ema_decay > 0)
    manager = checkpoint.CheckpointManager(trained, read_only=True)
    state = distil(manager.restore(6, like))
    manager.close()
    manager = checkpoint.CheckpointManager(distilled)
    manager.save(state, 0.25)
    manager.wait()
    manager.close()
    config.claim_workdir(new_config, distilled)
    for file in ("metrics.jsonl", "environment.json"):
        shutil.copy(trained / file, distilled / file)

    scores = evaluate.evaluate_run(new_config, distilled)
    shutil.rmtree(distilled / "evaluation")
    loaded = run.load_run(distilled)
    score_fn = run.create_run_score_fn(loaded.config, loaded.model)
    logits = score_fn(loaded.variables, IMAGE[None], IMAGE.shape[:2])
    numbers = {
        "iou_per_class": np.nan_to_num(scores.iou_per_class, nan=-1).tolist(),
        "logits": np.asarray(logits[0, ::16, ::16]).tolist(),
    }
    (distilled / "old_code.json").write_text(json.dumps(numbers))
    shutil.make_archive(str(output / name), "zip", distilled)


if __name__ == "__main__":
    add_backbone()
    for run_name in OPTIONS:
        make(run_name, pathlib.Path(sys.argv[1]).absolute())
