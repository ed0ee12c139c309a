"""What `--config` names: a file, or the name of a recipe in `configs/`."""

import importlib.util
import pathlib

from ml_collections import ConfigDict

# Where recipes are looked for by name: in the installed package, or next to it in a checkout.
_PACKAGE = pathlib.Path(__file__).parents[1]
_FOLDERS = (pathlib.Path("configs"), _PACKAGE / "configs", _PACKAGE.parent / "configs")


def find_config(value: str) -> str:
    """The path of a config file.

    Args:
      value: the path, or a recipe's name (`cityscapes`); an argument of `get_config` may follow
        after a colon.

    Raises:
      ValueError: if there is no such file; lists the recipes that there are.
    """
    name, colon, argument = value.partition(":")
    for path in (pathlib.Path(name), *(folder / f"{name}.py" for folder in _FOLDERS)):
        if path.is_file() and path.suffix == ".py":
            return f"{path}{colon}{argument}"
    known = ", ".join(sorted({path.stem for folder in _FOLDERS for path in folder.glob("*.py")}))
    raise ValueError(f"--config={name} is neither a config file nor a recipe; recipes are {known}")


def load_recipe(value: str) -> ConfigDict:
    """The config that a recipe makes, for a recipe that starts from another one.

    Args:
      value: as of `find_config`.

    Raises:
      ValueError: if there is no such file, or it refuses its argument.
    """
    path, colon, argument = find_config(value).partition(":")
    spec = importlib.util.spec_from_file_location("recipe", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(argument) if colon else module.get_config()


def default_workdir(path: str) -> str:
    """The folder of what has no other: `runs/cityscapes` for `configs/cityscapes.py`."""
    return str(pathlib.Path("runs", pathlib.Path(path.partition(":")[0]).stem))
