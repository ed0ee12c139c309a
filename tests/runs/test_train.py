"""Whole runs, in processes of their own: killed, stopped, restarted, refused."""

import dataclasses
import json
import pathlib
import shutil
import signal

import jax
import numpy as np
import pytest
import small_import
from ml_collections import ConfigDict
from small_process import (
    NUM_STEPS,
    assert_same_end,
    finish,
    kill,
    read_state,
    start,
    start_two,
    steps_saved,
    wait_for,
)

from regseg_jax.runs.train import train
from regseg_jax.runs.workdir import load_config

# Of small_run.py, which no other process can import: it hides PyTorch.
SMALL_STAGES = (
    ("stage4", ((16, (1,), 2),)),
    ("stage8", ((16, (1,), 2),)),
    ("stage16", ((32, (1, 2), 2),)),
)


def read_mean_iou(workdir: pathlib.Path, step: int) -> float:
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    return next(r["val/mean_iou"] for r in records if r["step"] == step and "val/mean_iou" in r)


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory) -> pathlib.Path:
    workdir = tmp_path_factory.mktemp("whole")
    out, _ = finish(start(workdir))
    assert "mean IoU" in out
    return workdir


def test_a_run_leaves_checkpoints_metrics_and_pictures(whole_run):
    assert NUM_STEPS in steps_saved(whole_run)
    assert len(steps_saved(whole_run)) <= 2  # the newest and the best
    records = [json.loads(line) for line in (whole_run / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in records if "train/loss" in r] == [2, 4, 6, 8, 10, 12]
    assert [r["step"] for r in records if "val/mean_iou" in r] == [6, 12]
    assert {p.name for p in (whole_run / "pictures").iterdir()} >= {"curves.png", "class_iou.png"}
    assert list((whole_run / "tensorboard").iterdir())


def test_killed_twice_and_stopped_once_ends_bit_identical(whole_run, tmp_path):
    # Killed before the first checkpoint is complete, and while one is being written.
    process = start(tmp_path)
    wait_for(lambda: (tmp_path / "metrics.jsonl").exists(), process)
    kill(process)

    def is_writing() -> bool:
        folder = tmp_path / "checkpoints"
        return folder.is_dir() and any(
            "tmp" in p.name and p.name.startswith("6") for p in folder.iterdir()
        )

    process = start(tmp_path)
    wait_for(is_writing, process)
    kill(process)
    assert 6 not in steps_saved(tmp_path)

    # Stopped by SIGTERM between two checkpoints; killed there: see the search.
    process = start(tmp_path)
    wait_for(lambda: 6 in steps_saved(tmp_path), process)
    process.send_signal(signal.SIGTERM)
    _, err = finish(process)
    assert "start again to go on" in err
    assert 6 <= max(steps_saved(tmp_path)) < NUM_STEPS

    finish(start(tmp_path))
    assert_same_end(tmp_path, whole_run)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line)["step"] for line in lines]
    assert steps == sorted(steps)


@pytest.mark.parametrize(
    ("method", "searched"),
    [
        ("relaxed", "rate_logits"),
        pytest.param("continuous", "dilation_rates", marks=pytest.mark.slow),
    ],
)
def test_a_search_killed_and_restarted_ends_bit_identical(tmp_path, method, searched):
    search = ["model=smalldilated_decoder12", "search.enabled=True", "search.warmup_steps=2"]
    search += [f"search.method={method}"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    _, err = finish(start(whole, *search))
    assert "found.json" in err
    process = start(killed, *search)
    wait_for(lambda: max(steps_saved(killed), default=0) >= 6, process)
    kill(process)
    finish(start(killed, *search))
    assert_same_end(killed, whole)

    (killed_found, whole_found) = (
        json.loads((w / "found.json").read_text()) for w in (killed, whole)
    )
    assert killed_found == whole_found
    end = read_state(whole, NUM_STEPS)["params"]["backbone"]["stage16_2"]["conv2"][searched]
    rates = end if method == "continuous" else 1 + end.argmax(1)
    np.testing.assert_array_equal(rates, whole_found["found"]["rates"][1])
    assert (end != (1 if method == "continuous" else 0)).any()
    records = [json.loads(line) for line in (killed / "metrics.jsonl").read_text().splitlines()]
    moved = [r["search/stage16_2/rate_0"] for r in records if "search/stage16_2/rate_0" in r]
    assert len(moved) == 6
    assert moved[0] == 1  # in the warm-up
    assert (killed / "pictures" / "rates.png").exists()


@pytest.mark.slow
def test_sigterm_to_one_of_two_processes_stops_both(tmp_path):
    processes = start_two(tmp_path, "num_epochs=40")
    wait_for(lambda: max(steps_saved(tmp_path), default=0) >= 3, processes[0])
    processes[1].send_signal(signal.SIGTERM)
    for process in processes:
        finish(process)
    assert 3 < max(steps_saved(tmp_path)) < 240


@pytest.mark.slow
def test_two_processes_train_as_one(whole_run, tmp_path):
    processes = start_two(tmp_path)
    ends = [process.communicate(timeout=500) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], ends
    assert "mean IoU" in ends[0][0]
    assert "mean IoU" not in ends[1][0]  # one of them reports
    assert steps_saved(tmp_path) == steps_saved(whole_run)
    first_loss, expected = (
        next(
            record["train/loss"]
            for record in map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
            if "train/loss" in record
        )
        for workdir in (tmp_path, whole_run)
    )
    # Of the first two steps: over more, the rounding of sums in another order grows.
    np.testing.assert_allclose(first_loss, expected, rtol=1e-4)


@pytest.mark.slow
def test_scores_of_images_that_were_trained_on_are_named_so(tmp_path):
    _, err = finish(start(tmp_path, "data.eval_split=train", "num_epochs=1"))
    assert "the train images are trained on" in err
    keys = set().union(*map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines()))
    assert "train_trained_on/mean_iou" in keys
    assert not any(key.startswith("train/iou") or key == "train/mean_iou" for key in keys)


def test_another_config_is_refused_and_nothing_changes(whole_run):
    before = (whole_run / "config.json").read_bytes()
    with small_import.small_backbone("small", SMALL_STAGES):
        config = ConfigDict(dataclasses.asdict(load_config(whole_run)))
        # In this process, whose devices take batches of 8.
        config.global_batch_size = config.eval.batch_size = 8
        config.optimizer.learning_rate = 0.5
        message = r"another config.*size was 4 and is 8;.*learning_rate was 0\.05 and is 0\.5"
        with pytest.raises(ValueError, match=message):
            train(config, whole_run)
    assert (whole_run / "config.json").read_bytes() == before


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_checkpoint(tmp_path):
    process = start(tmp_path, "optimizer.learning_rate=1e30", "checkpoint_every_steps=1")
    _, err = process.communicate(timeout=200)
    assert process.returncode == 1
    assert "the loss of step" in err
    assert "Traceback" not in err
    state = read_state(tmp_path, max(steps_saved(tmp_path)))
    assert all(np.isfinite(np.asarray(leaf)).all() for leaf in jax.tree.leaves(state["opt_state"]))


@pytest.mark.slow
def test_a_run_starts_from_another_once(whole_run, tmp_path):
    other = shutil.copytree(whole_run, tmp_path / "other")
    overrides = (f"init_from={other}", "optimizer.learning_rate=0.0", "num_epochs=1")
    process = start(tmp_path / "run", f"init_from={tmp_path / 'nowhere'}")
    assert "nowhere; set the folder of a run" in process.communicate(timeout=200)[1]
    assert not (tmp_path / "run").exists()

    _, err = finish(start(tmp_path / "run", *overrides))
    assert f"run {other}: loaded" in err
    # Without learning, a run ends with the weights that it started with.
    best = max(steps_saved(other), key=lambda step: read_mean_iou(other, step))
    expected, params = read_state(other, best)["params"], read_state(tmp_path / "run", 6)["params"]
    jax.tree.map(np.testing.assert_array_equal, params, expected)

    shutil.rmtree(other)
    _, err = finish(start(tmp_path / "run", *overrides))  # from its own checkpoint
    assert "loaded" not in err


@pytest.mark.slow
def test_with_every_option_a_killed_run_ends_bit_identical(tmp_path):
    options = ("ema_decay=0.9", "augment.rand_augment_num_ops=2", "optimizer.schedule=cosine")
    options += ("eval.precise_bn_images=8", "eval.num_worst=2", "eval.flip=1")
    out, _ = finish(start(tmp_path / "whole", *options))
    assert "worst images" in out
    records = [
        json.loads(line) for line in (tmp_path / "whole/metrics.jsonl").read_text().splitlines()
    ]
    assert [r["step"] for r in records if "val_ema/mean_iou" in r] == [6, 12]
    pictures = {path.name for path in (tmp_path / "whole/pictures").iterdir()}
    assert sum(name.startswith("val_worst_1") for name in pictures) == 2

    process = start(tmp_path / "killed", *options)
    wait_for(lambda: max(steps_saved(tmp_path / "killed"), default=0) >= 6, process)
    kill(process)
    finish(start(tmp_path / "killed", *options))
    assert_same_end(tmp_path / "killed", tmp_path / "whole")
