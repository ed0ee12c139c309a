"""Packages that only some uses need."""

import importlib


def require_packages(what: str, packages: tuple[str, ...]) -> None:
    """Raises ValueError with the command that installs what is missing."""
    for package in packages:
        try:
            importlib.import_module(package)
        except ImportError:
            raise ValueError(
                f"{what} needs {package}, which is not installed; pip install {package}"
            ) from None
