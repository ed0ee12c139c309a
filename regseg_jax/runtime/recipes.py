"""What `--config` names: a file, or the name of a recipe in `configs/`."""

import pathlib

# Where recipes are looked for by name: here, and in the project beside the package.
_FOLDERS = (pathlib.Path("configs"), pathlib.Path(__file__).parents[2] / "configs")


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
    recipes = {path.stem: path for folder in reversed(_FOLDERS) for path in folder.glob("*.py")}
    known = ", ".join(str(recipes[stem]) for stem in sorted(recipes))
    raise ValueError(f"--config={name} is no config file; use one of {known or 'your own'}")


def default_workdir(config_path: str) -> str:
    """The folder of a recipe's run: `runs/cityscapes` for `configs/cityscapes.py`."""
    return str(pathlib.Path("runs", pathlib.Path(config_path.partition(":")[0]).stem))
