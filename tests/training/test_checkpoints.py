import contextlib
import pathlib
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.training.dynamic_scale import DynamicScale
from jax.sharding import Mesh

from regseg_jax.training.checkpoints import CheckpointManager
from regseg_jax.training.optimizer import create_optimizer
from regseg_jax.training.sharding import create_mesh, replicate
from regseg_jax.training.train_state import TrainState


def _make_state(step: int = 1, num_classes: int = 4, *, half: bool = False) -> TrainState:
    """A state of random values, with the real optimizer's state."""
    rng = np.random.default_rng(step)
    params = {
        "conv": {"kernel": rng.standard_normal((3, 3, 2, 6)).astype(np.float32)},
        "bn": {"scale": np.ones(6, np.float32), "bias": np.full(6, 1e-42, np.float32)},
        "classifier": {
            "kernel": rng.standard_normal((1, 1, 6, num_classes)).astype(np.float32),
            "bias": np.full(num_classes, -0.0, np.float32),
        },
    }
    tx = create_optimizer(lambda step: 0.1, weight_decay=1e-4)
    grads = jax.tree.map(lambda p: p * 3, params)
    _, opt_state = tx.update(grads, tx.init(params), params, step=step)
    batch_stats = {"bn": {"mean": rng.standard_normal(6).astype(np.float32)}}
    scale = DynamicScale(scale=jnp.float32(2.0**20), fin_steps=jnp.int32(17)) if half else None
    average = {"params": params, "batch_stats": batch_stats} if half else None
    tree = (jnp.int32(step), params, batch_stats, opt_state, scale, average)
    return TrainState(*jax.tree.map(jnp.asarray, tree))


def _assert_identical(state: TrainState, other: TrainState) -> None:
    assert jax.tree.structure(state) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(other), strict=True):
        assert a.dtype == b.dtype
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def _steps_on_disk(workdir: pathlib.Path) -> set[int]:
    return {int(path.name) for path in (workdir / "checkpoints").iterdir()}


@pytest.fixture
def manager(tmp_path):
    manager = CheckpointManager(tmp_path)
    yield manager
    manager.close()


def _save(manager: CheckpointManager, step: int, mean_iou: float | None = None) -> TrainState:
    state = _make_state(step)
    manager.save(state, mean_iou)
    manager.wait()
    return state


@pytest.mark.parametrize(("half", "num_devices"), [(False, 8), (True, 8), (True, 2), (True, 1)])
def test_restored_state_is_identical_to_the_bit_on_any_number_of_devices(
    tmp_path, half, num_devices
):
    mesh = Mesh(jax.devices()[:num_devices], ("data",))
    state = replicate(_make_state(7, half=half), create_mesh(8))
    saving = CheckpointManager(tmp_path)
    saving.save(state, 0.5)
    saving.close()
    restoring = CheckpointManager(tmp_path)
    restored = restoring.restore(7, replicate(_make_state(1, half=half), mesh))
    restoring.close()
    _assert_identical(restored, state)
    leaves = jax.tree.leaves(restored)
    assert all(leaf.sharding.is_fully_replicated for leaf in leaves)
    assert all(len(leaf.sharding.device_set) == num_devices for leaf in leaves)


def test_shapes_are_enough_to_restore(tmp_path, manager):
    state = _save(manager, 3)
    reading = CheckpointManager(tmp_path, read_only=True)
    restored = reading.restore(3, jax.eval_shape(lambda: _make_state(1)))
    reading.close()
    _assert_identical(restored, state)


def test_the_two_newest_and_the_best_are_kept(tmp_path, manager):
    assert manager.latest_step() is None
    assert manager.best_step() is None
    states = {}
    for step, mean_iou in ((10, 0.3), (20, 0.6), (30, 0.5), (40, 0.4)):
        states[step] = _save(manager, step, mean_iou)
    assert _steps_on_disk(tmp_path) == {20, 30, 40}
    assert manager.latest_step() == 40
    assert manager.best_step() == 20
    _assert_identical(manager.restore(20, _make_state()), states[20])
    _save(manager, 50, 0.7)
    assert _steps_on_disk(tmp_path) == {40, 50}
    assert manager.best_step() == 50


def test_checkpoints_between_evaluations_do_not_displace_the_best(tmp_path, manager):
    _save(manager, 10)
    assert manager.best_step() == 10  # none was evaluated: the newest
    _save(manager, 20, 0.2)
    _save(manager, 25)
    _save(manager, 30)
    assert _steps_on_disk(tmp_path) == {20, 25, 30}
    assert (manager.latest_step(), manager.best_step()) == (30, 20)
    # As another process sees it.
    reading = CheckpointManager(tmp_path, read_only=True)
    assert (reading.latest_step(), reading.best_step()) == (30, 20)
    reading.close()


def test_a_step_that_is_there_is_left_as_it_is(tmp_path, manager):
    state = _save(manager, 10, 0.5)
    manager.save(_make_state(11).replace(step=jnp.int32(10)), 0.9)
    manager.wait()
    _assert_identical(manager.restore(10, _make_state()), state)


def test_half_written_folders_are_ignored_and_cleaned(tmp_path):
    manager = CheckpointManager(tmp_path)
    _save(manager, 10, 0.5)
    manager.close()
    unfinished = tmp_path / "checkpoints" / "20.orbax-checkpoint-tmp"
    (unfinished / "default").mkdir(parents=True)
    (unfinished / "default" / "data").write_text("half")

    reading = CheckpointManager(tmp_path, read_only=True)
    assert (reading.latest_step(), reading.best_step()) == (10, 10)
    reading.close()
    assert unfinished.exists()  # a reader cleans nothing up

    again = CheckpointManager(tmp_path)
    assert again.latest_step() == 10
    _save(again, 20, 0.6)
    assert again.latest_step() == 20
    assert not unfinished.exists()
    again.close()


def test_a_save_that_fails_leaves_no_thread_to_wait_for(tmp_path):
    before = set(threading.enumerate())
    manager = CheckpointManager(tmp_path)
    _save(manager, 1)
    folder = tmp_path / "checkpoints"
    folder.rename(tmp_path / "elsewhere")
    folder.write_text("not a folder, so that nothing can be written there, not even by root")
    with pytest.raises(OSError, match=f"cannot save a checkpoint in {folder}: .*Make room"):
        _save(manager, 2)
    with contextlib.suppress(OSError):
        manager.close()
    for thread in set(threading.enumerate()) - before:
        if not thread.daemon:
            thread.join(timeout=20)
            assert not thread.is_alive(), thread.name
    assert (tmp_path / "elsewhere" / "1" / "_CHECKPOINT_METADATA").exists()


@pytest.mark.parametrize("damage", ["truncated", "emptied"])
def test_where_every_checkpoint_is_damaged_nothing_starts_from_scratch(tmp_path, damage):
    manager = CheckpointManager(tmp_path)
    for step in (1, 2):
        _save(manager, step)
    manager.close()
    for path in (tmp_path / "checkpoints").rglob("*"):
        if path.is_file():
            size = path.stat().st_size // 2 if damage == "truncated" else 0
            path.write_bytes(path.read_bytes()[:size])
    for _ in range(2):
        manager = CheckpointManager(tmp_path)
        with pytest.raises(ValueError, match=r"none of the checkpoints in .* can be read"):
            manager.restore_newest(_make_state(1))
        manager.close()
    assert len(list((tmp_path / "checkpoints").iterdir())) == 2


def test_another_class_count_is_named(manager):
    _save(manager, 10)
    with pytest.raises(ValueError, match=r"10 does not fit this model") as error:
        manager.restore(10, _make_state(num_classes=5))
    message = str(error.value)
    assert "4 arrays differ" in message  # kernel and bias, and the momentum of both
    assert "params/classifier/bias: (4,) in the checkpoint, (5,) here" in message
    assert "class count" in message


def test_another_precision_is_named(manager):
    _save(manager, 10)
    with pytest.raises(ValueError, match=r"dynamic_scale/\w+: missing in the checkpoint"):
        manager.restore(10, _make_state(half=True))


def test_reading_creates_nothing(tmp_path):
    manager = CheckpointManager(tmp_path / "absent", read_only=True)
    assert manager.latest_step() is None
    assert manager.best_step() is None
    manager.close()
    assert not (tmp_path / "absent").exists()
