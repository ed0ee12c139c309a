"""The recipes' figures, against the paper's table."""

import ast
import pathlib

import pytest
from ml_collections import ConfigDict

from regseg_jax.config import parse_config
from regseg_jax.runs.parts import create_run_model
from regseg_jax.runtime.recipes import load_recipe

FOLDER = pathlib.Path(__file__).parents[1] / "configs"
FILES = sorted(path.stem for path in FOLDER.glob("*.py"))


def _load(recipe: str) -> ConfigDict:
    config = load_recipe(recipe)
    config.data.data_dir = config.data.data_dir or "anywhere"
    return config


@pytest.mark.parametrize("name", FILES)
def test_every_recipe_is_legal(name):
    docstring = ast.get_docstring(ast.parse((FOLDER / f"{name}.py").read_text()))
    assert f"--config=configs/{name}.py" in docstring
    config = _load(name)
    parsed = parse_config(config)
    if config.folder.classes or config.data.source != "folder":
        create_run_model(parsed)


@pytest.mark.parametrize("name", FILES)
def test_every_recipe_is_evaluated_at_least_ten_times(name):
    config = parse_config(_load(name))
    num_steps = 10 * config.num_epochs
    due = [step for step in range(1, num_steps + 1) if config.eval.is_due(step, num_steps, 10)]
    assert len(due) >= 10
    assert due[-1] == num_steps


CITYSCAPES = {
    "data.source": "cityscapes",
    "data.eval_split": "val",
    "data.class_uniform_share": 0.5,
    "data.tile_size": 1024,
    "global_batch_size": 8,
    "precision": "float16",
    "optimizer.learning_rate": 0.05,
    "optimizer.momentum": 0.9,
    "optimizer.weight_decay": 1e-4,
    "optimizer.warmup_steps": 3000,
    "optimizer.warmup_factor": 0.1,
    "optimizer.power": 0.9,
    "augment.min_shorter_side": 400,
    "augment.max_shorter_side": 1600,
    "augment.flip_probability": 0.5,
    "eval.image_size": (),
}
MAIN = {"data.train_split": "train", "augment.crop_size": (768, 768), "loss.name": "cross_entropy"}
SUBMISSION = {
    "data.train_split": "trainval",
    "augment.crop_size": (1024, 1024),
    "loss.name": "bootstrapped_cross_entropy",
    "loss.threshold": 0.3,
    "loss.min_pixel_share": 1 / 16,
}
CAMVID = {
    "data.source": "camvid",
    "num_epochs": 200,
    "global_batch_size": 12,
    "optimizer.warmup_steps": 1000,
    "data.class_uniform_share": 0.0,
}
FULL_SIZE = {
    "augment.crop_size": (720, 960),
    "augment.min_shorter_side": 288,
    "augment.max_shorter_side": 1152,
}


@pytest.mark.parametrize(
    ("recipe", "figures"),
    [
        ("cityscapes", {**CITYSCAPES, **MAIN, "num_epochs": 1000, "model": "exp48_decoder26"}),
        ("cityscapes_500", {**CITYSCAPES, **MAIN, "num_epochs": 500}),
        ("cityscapes_500:exp43_lraspp", {"num_epochs": 500, "model": "exp43_lraspp"}),
        (
            "cityscapes_trainval",
            {**CITYSCAPES, **SUBMISSION, "num_epochs": 1000, "model": "exp48_decoder26"},
        ),
        (
            "cityscapes_large",
            {**CITYSCAPES, **SUBMISSION, "num_epochs": 1000, "model": "exp53_decoder29"},
        ),
        (
            "camvid",
            {
                **CAMVID,
                **FULL_SIZE,
                "optimizer.learning_rate": 0.005,
                "data.train_split": "trainval",
                "data.eval_split": "test",
            },
        ),
        ("camvid_scratch", {**CAMVID, **FULL_SIZE, "optimizer.learning_rate": 0.05}),
        ("camvid_scratch:segnet", {**CAMVID, "augment.crop_size": (360, 480)}),
    ],
)
def test_figures_are_the_paper_s(recipe, figures):
    config = _load(recipe)
    for key, expected in figures.items():
        value = config
        for part in key.split("."):
            value = value[part]
        assert (tuple(value) if isinstance(value, list) else value) == expected, key
