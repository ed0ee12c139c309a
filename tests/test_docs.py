"""What the pages say, against the code: keys, models, links, commands."""

import ast
import importlib.util
import pathlib
import re
import tomllib

import pytest

from regseg_jax.config import Config, flatten_config, unflatten_config
from regseg_jax.models import variants
from regseg_jax.models.field_of_view import compute_field_of_view
from regseg_jax.runs.workdir import MAY_CHANGE
from regseg_jax.runtime.recipes import find_config

ROOT = pathlib.Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def test_the_page_of_config_keys_holds_every_key_and_its_default():
    text = (ROOT / "docs" / "config.md").read_text()
    rows = re.findall(r"^\| `([\w.]+)`( \*)? \| `(.*?)` \|", text, re.MULTILINE)
    defaults = {key: ast.literal_eval(default) for key, _, default in rows}
    assert len(rows) == len(defaults)
    assert defaults.keys() == flatten_config(Config()).keys()
    assert unflatten_config(defaults) == Config()
    assert {key for key, mark, _ in rows if mark} == set(MAY_CHANGE)


def test_the_page_of_models_holds_every_model_and_its_field_of_view():
    text = (ROOT / "docs" / "models.md").read_text()
    for name in variants.DECODERS:
        assert f"`{name}`" in text
    for name, backbone in variants.BACKBONES.items():
        assert re.search(rf"`{name}`.* {compute_field_of_view(backbone)}\b.* \|$", text, re.M), name


@every_page
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
        assert (page.parent / target).exists(), target


@every_page
def test_modules_recipes_and_scripts_exist(page):
    text = page.read_text()
    for module in re.findall(r"python -m (regseg_jax[\w.]*)", text):
        assert importlib.util.find_spec(module), module
    for recipe in re.findall(r"--config=(?:configs/)?([a-z_0-9]+)", text):
        assert find_config(recipe)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for script in re.findall(r"\b(regseg-[a-z-]+)", text):
        assert script in project["scripts"], script
    for path in re.findall(r"`((?:regseg_jax|tests|configs|launch|docs|results)/[\w./]+)`", text):
        assert (ROOT / path).exists(), path
