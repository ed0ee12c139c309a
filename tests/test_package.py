"""The wheel, built without the network: what is in it and what it installs."""

import configparser
import importlib
import pathlib
import tomllib
import zipfile

import pytest
from hatchling.builders.wheel import WheelBuilder

ROOT = pathlib.Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> zipfile.ZipFile:
    (path,) = WheelBuilder(str(ROOT)).build(directory=str(tmp_path_factory.mktemp("wheel")))
    with zipfile.ZipFile(path) as file:
        yield file


def test_it_holds_the_code_and_the_recipes_and_no_more(wheel):
    modules = {path.relative_to(ROOT) for path in (ROOT / "regseg_jax").rglob("*.py")}
    recipes = {
        pathlib.Path("regseg_jax") / path.relative_to(ROOT)
        for path in (ROOT / "configs").glob("*.py")
    }
    files = {pathlib.Path(name) for name in wheel.namelist()}
    assert {path for path in files if path.suffix == ".py"} == modules | recipes
    assert {f"regseg_jax/weights/camvid.{suffix}" for suffix in ("safetensors", "md")} <= set(
        wheel.namelist()
    )
    assert recipes
    assert {path.parts[0] for path in files} == {"regseg_jax", "regseg_jax-0.1.0.dist-info"}


def test_every_command_that_it_installs_exists(wheel):
    parser = configparser.ConfigParser()
    parser.read_string(wheel.read("regseg_jax-0.1.0.dist-info/entry_points.txt").decode())
    scripts = dict(parser["console_scripts"])
    assert scripts == PROJECT["scripts"]
    assert "regseg-train" in scripts
    for target in scripts.values():
        module, _, function = target.partition(":")
        assert callable(getattr(importlib.import_module(module), function))


def test_training_needs_neither_torch_nor_tfds():
    needed = " ".join(PROJECT["dependencies"])
    assert "jax" in needed
    assert "torch" not in needed
    assert "tensorflow" not in needed
    extras = PROJECT["optional-dependencies"]
    assert {"cuda", "tpu", "torch", "tfds", "video", "aot-gpu", "aot-tpu", "dev"} <= extras.keys()


def test_the_requirements_files_repeat_nothing():
    for name, line in (("requirements.txt", "-e ."), ("requirements-dev.txt", "-e .[dev]")):
        lines = (ROOT / name).read_text().splitlines()
        assert [x for x in lines if not x.startswith("#")] == [line]
