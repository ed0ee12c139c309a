"""The commands as a user types them, one after the other, on one small run."""

import json
import pathlib
import re
import subprocess
import zipfile

import jax
import numpy as np
import pytest
from PIL import Image
from small_process import finish, kill, start_script, steps_saved, wait_for

from regseg_jax.data.classes import CAMVID
from regseg_jax.data.synthetic.scenes import SyntheticScenes


def start(*arguments: object) -> subprocess.Popen:
    """`python -m ARGUMENTS`."""
    return start_script("small_main.py", "-m", *arguments)


def find_mean_iou(printed: str) -> str:
    return re.search(r"mean IoU +([0-9.]+)\n", printed)[1]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> pathlib.Path:
    path = tmp_path_factory.mktemp("recipe") / "small.py"
    path.write_text("from small_run import create_small_config as get_config\n")
    return path


@pytest.fixture(scope="module")
def workdir(recipe, tmp_path_factory) -> pathlib.Path:
    """The folder of a run that was killed once."""
    workdir = tmp_path_factory.mktemp("end_to_end") / "run"
    train = ("regseg_jax.main", f"--config={recipe}", f"--workdir={workdir}", "--config.seed=3")
    first = start(*train)
    wait_for(lambda: steps_saved(workdir), first)
    kill(first)
    out, err = finish(start(*train))
    assert find_mean_iou(out)
    assert "going on from the checkpoint of step" in err
    return workdir


def test_evaluation_prints_the_best_score_of_training(workdir, recipe, tmp_path):
    out, _ = finish(
        start(
            *("regseg_jax.main", "--mode=eval", f"--config={recipe}", f"--workdir={workdir}"),
            "--config.seed=3",
        )
    )
    step = int(re.search(r"val: checkpoint of step (\d+), 5 images", out)[1])
    records = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    scores = {r["step"]: r["val/mean_iou"] for r in records if "val/mean_iou" in r}
    assert scores.keys() == {6, 12}
    assert scores[step] == max(scores.values())
    assert find_mean_iou(out) == f"{100 * scores[step]:.2f}"

    exported = tmp_path / "a.safetensors"
    finish(
        start(
            *("regseg_jax.export", f"--workdir={workdir}", "--format=safetensors"),
            f"--output={exported}",
        )
    )
    out, _ = finish(
        start(
            *("regseg_jax.main", "--mode=eval", f"--config={recipe}", "--config.seed=3"),
            *(f"--weights={exported}", f"--workdir={tmp_path / 'pictures'}"),
        )
    )
    assert find_mean_iou(out) == f"{100 * scores[step]:.2f}"
    assert any((tmp_path / "pictures" / "evaluation").iterdir())


def test_a_prediction_is_the_exported_models(workdir, tmp_path):
    image = SyntheticScenes(num_examples=1, height=48, width=64, seed=9)[0]["image"]
    Image.fromarray(image).save(tmp_path / "street.png")
    predictions = tmp_path / "predictions"
    finish(
        start(
            *("regseg_jax.predict", f"--workdir={workdir}", f"--output={predictions}"),
            *("--train_ids", tmp_path / "street.png"),
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
