"""Recipes: the files that make a config, found by name or by path."""

import importlib.util
import pathlib

from absl import flags
from ml_collections import ConfigDict, config_flags

_PACKAGE = pathlib.Path(__file__).parents[1]


def find_recipes() -> dict[str, pathlib.Path]:
    """The recipes that come with the project, by name.

    Installed, they are a part of the package; in a checkout they are the folder `configs/` beside
    it.
    """
    folder = _PACKAGE / "configs"
    if not folder.is_dir():
        folder = _PACKAGE.parent / "configs"
    return {path.stem: path for path in sorted(folder.glob("[!_]*.py"))}


def load_recipe(recipe: str) -> ConfigDict:
    """The config of a recipe.

    Args:
      recipe: a name, such as `cityscapes`, or the path of a Python file with a function
        `get_config`; after a colon its argument, if it takes one: `camvid_scratch:segnet`.

    Raises:
      ValueError: if there is no such recipe, or it refuses its argument.
    """
    name, colon, argument = recipe.partition(":")
    recipes = find_recipes()
    path = recipes.get(name, pathlib.Path(name))
    if path.suffix != ".py" or not path.is_file():
        raise ValueError(
            f"{name!r} is neither a Python file nor a recipe; the recipes are {', '.join(recipes)}"
        )
    spec = importlib.util.spec_from_file_location(f"recipe_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "get_config"):
        raise ValueError(f"{path} has no function get_config")
    return module.get_config(argument) if colon else module.get_config()


class _RecipeParser(flags.ArgumentParser):
    def parse(self, recipe: str) -> ConfigDict:
        return load_recipe(recipe).lock()

    def flag_type(self) -> str:
        return "recipe"


def define_config_flag(help_text: str) -> None:
    """Defines `--config`, a recipe, and `--config.KEY` for each of its keys."""
    config_flags.DEFINE_config_file("config", None, help_text)
    flags.FLAGS["config"].parser = _RecipeParser()  # ml_collections' own reads paths alone
