"""Packages that only some formats need: imported where they are used, named where they are missing."""

from __future__ import annotations

import importlib
from types import ModuleType


def needed(module: str, what: str, extra: str) -> ModuleType:
    """The module `module`; raises `ModuleNotFoundError` with one sentence that names the extra that brings it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = module.split(".")[0]
        raise ModuleNotFoundError(
            f"{what} needs the package {package!r}; pip install 'reprolib[{extra}]' brings it", name=package
        ) from error
