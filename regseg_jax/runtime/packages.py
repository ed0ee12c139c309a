"""Packages that only some uses need."""

import importlib
from collections.abc import Sequence


def require_packages(what: str, modules: Sequence[str], install: str | None = None) -> None:
    """Raises ValueError with the command that installs what is missing.

    Args:
      what: the feature that needs them, for the message.
      modules: to import.
      install: what to install; None if the packages have the modules' names.
    """
    for module in modules:
        try:
            importlib.import_module(module)
        except ImportError:
            raise ValueError(
                f"{what} needs {module}, which is not installed; pip install {install or module}"
            ) from None
