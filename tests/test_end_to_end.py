"""The commands as a user types them, one after the other, on one small run."""

import json
import os
import pathlib
import re
import subprocess
import sys
import zipfile

import jax
import numpy as np
import pytest
from PIL import Image

from regseg_jax.data.classes import CAMVID
from regseg_jax.data.synthetic.scenes import SyntheticScenes

TESTS = pathlib.Path(__file__).parent


def start(*arguments: str | os.PathLike) -> subprocess.Popen:
    """`python -m ARGUMENTS`."""
    paths = os.pathsep.join(map(str, (TESTS, TESTS.parent)))
    return subprocess.Popen(
        [sys.executable, str(TESTS / "small_command.py"), "-m", *map(str, arguments)],
        env={**os.environ, "XLA_FLAGS": "", "PYTHONPATH": paths},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen) -> tuple[str, str]:
    out, err = process.communicate(timeout=500)
    assert process.returncode == 0, err
    return out, err


def find_mean_iou(printed: str) -> str:
    return re.search(r"mean IoU +([0-9.]+)\n", printed)[1]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> pathlib.Path:
    path = tmp_path_factory.mktemp("recipe") / "small.py"
    path.write_text("from small_run import create_small_config as get_config\n")
    return path


@pytest.fixture(scope="module")
def trained(recipe, tmp_path_factory) -> tuple[pathlib.Path, str]:
    """The folder of a run that was killed once, and what the second start printed."""
    workdir = tmp_path_factory.mktemp("end_to_end") / "run"
    train = ("regseg_jax.main", f"--config={recipe}", f"--workdir={workdir}", "--config.seed=3")
    first = start(*train)
    while not any(path.name.isdigit() for path in workdir.glob("checkpoints/*")):
        assert first.poll() is None, first.communicate()[1]
    first.kill()
    first.communicate()
    out, err = finish(start(*train))
    assert "going on from the checkpoint of step" in err
    return workdir, out


def test_evaluation_prints_the_score_of_training(trained, recipe):
    workdir, printed = trained
    out, _ = finish(
        start(
            *("regseg_jax.main", "--mode=eval", f"--config={recipe}", f"--workdir={workdir}"),
            "--config.seed=3",
        )
    )
    step = int(re.search(r"val: checkpoint of step (\d+), 5 images", out)[1])
    assert step in (6, 12)
    if step == 12:  # the last evaluation was the best
        assert find_mean_iou(out) == find_mean_iou(printed)


def test_a_prediction_is_the_exported_models(trained, tmp_path):
    workdir, _ = trained
    image = SyntheticScenes(num_examples=1, height=48, width=64, seed=9)[0]["image"]
    Image.fromarray(image).save(tmp_path / "street.png")
    predictions = tmp_path / "predictions"
    finish(
        start(
            *("regseg_jax.predict", f"--workdir={workdir}", f"--output={predictions}"),
            tmp_path / "street.png",
        )
    )
    assert (predictions / "street_overlay.png").exists()
    with Image.open(predictions / "street.png") as file:
        class_map = np.array(file)
    assert class_map.shape == image.shape[:2]
    assert class_map.max() < CAMVID.num_classes

    finish(
        start(
            *("regseg_jax.export", f"--workdir={workdir}", "--format=stablehlo"),
            *(f"--output={tmp_path / 'model.zip'}", "--size=48,64", "--class_map"),
        )
    )
    with zipfile.ZipFile(tmp_path / "model.zip") as file:
        exported = jax.export.deserialize(bytearray(file.read("model.bin")))
        metadata = json.loads(file.read("metadata.json"))
    normalized = (image / 255 - np.array(metadata["mean"])) / np.array(metadata["std"])
    (theirs,) = np.asarray(exported.call(normalized[None].astype(np.float32)))
    assert len(np.unique(theirs)) > 1
    assert (theirs == class_map).mean() > 0.995  # ties
