"""Runs of an earlier version of the project, see old_runs/make_old_runs.py, in today's code."""

import dataclasses
import json
import pathlib
import shutil

import numpy as np
import pytest
import torch
from ml_collections import ConfigDict
from small_import import small_backbone

from regseg_jax.config import Config, flatten_config
from regseg_jax.export.export import export_run
from regseg_jax.runs.evaluate import evaluate_run
from regseg_jax.runs.trained import TrainedRun, load_run
from regseg_jax.runs.workdir import load_config
from regseg_jax.training.evaluation import create_image_score_fn
from regseg_jax.weights.names import to_torch

OLD_RUNS = pathlib.Path(__file__).parent / "old_runs"
IMAGE = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
TINY_STAGES = (
    ("stage4", ((16, (1,), 2),)),
    ("stage8", ((16, (1,), 2),)),
    ("stage16", ((16, (1,), 2), (32, (1, 2), 1))),
)


@pytest.fixture(autouse=True, scope="module")
def tiny_backbone():
    with small_backbone("tiny", TINY_STAGES):
        yield


@pytest.fixture(scope="module", params=["plain", "search"])
def workdir(request, tmp_path_factory, tiny_backbone) -> pathlib.Path:
    folder = tmp_path_factory.mktemp(request.param)
    shutil.unpack_archive(OLD_RUNS / f"{request.param}.zip", folder)
    return folder


@pytest.fixture(scope="module")
def trained(workdir) -> TrainedRun:
    return load_run(workdir)


@pytest.fixture
def old_code(workdir) -> dict[str, list]:
    """What the earlier version computed from the run."""
    return json.loads((workdir / "old_code.json").read_text())


def test_config_and_checkpoint_are_those_of_the_run(workdir, trained):
    assert trained.step == 6
    assert trained.config.model == "tiny_decoder12"
    assert trained.config.augment.crop_size == (32, 48)
    searches = json.loads((workdir / "config.json").read_text())["search.enabled"]
    assert trained.config.search.enabled == searches
    assert (trained.ema_variables is None) == searches  # the other run averages


def test_logits_are_those_of_the_earlier_version(trained, old_code):
    score_fn = create_image_score_fn(trained.model, trained.config.eval)
    logits = score_fn(trained.variables, IMAGE[None], IMAGE.shape[:2])[0, ::16, ::16]
    expected = np.array(old_code["logits"])
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4 * expected.std())


def test_evaluates_to_the_same_scores(workdir, old_code):
    config = ConfigDict(dataclasses.asdict(load_config(workdir)))
    config.eval.batch_size = 8  # for the devices of these tests
    scores = evaluate_run(config, workdir)
    ious = np.nan_to_num(scores.iou_per_class, nan=-1)
    np.testing.assert_allclose(ious, old_code["iou_per_class"], atol=1e-3)  # ties of few pixels
    assert (workdir / "evaluation" / "panel_0000.png").exists()


def test_exports(workdir, trained, tmp_path):
    export_run(workdir, "stablehlo", tmp_path / "a.stablehlo", (48, 64))
    assert (tmp_path / "a.stablehlo").stat().st_size > 10_000
    if trained.config.search.enabled:
        return  # dilation rates that are not integers exist in JAX alone
    export_run(workdir, "torch", tmp_path / "a.pt")
    exported = torch.load(tmp_path / "a.pt", weights_only=True)["model"]
    expected = to_torch(trained.variables, num_batches_tracked=6)
    assert exported.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(exported[name], array, err_msg=name)


def test_a_config_without_newer_keys_takes_their_defaults(workdir, trained):
    """As of a version before averaged weights, precise batch norm and the search were there."""
    path = workdir / "config.json"
    content = path.read_text()
    older = {
        key: value
        for key, value in json.loads(content).items()
        if not key.startswith(("ema_decay", "search.", "eval.precise", "eval.scales", "folder."))
    }
    try:
        path.write_text(json.dumps(older))
        config = load_config(workdir)
    finally:
        path.write_text(content)
    flat, defaults = flatten_config(config), flatten_config(Config())
    assert 0 < len(older) < len(flat)
    # Of the methods of searching, the continuous one is the older.
    defaults["search.method"] = "continuous"
    assert {key: flat[key] for key in flat} == {**defaults, **older}
    assert config.model == trained.config.model
