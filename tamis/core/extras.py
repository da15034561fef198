"""Optional packages: imported when they are needed, and named with their pip line when they are missing."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

from tamis.core.errors import MissingExtra

EXTRAS = {
    "lm": ("torch", "transformers", "peft", "accelerate", "safetensors", "sklearn"),
    "embed": ("sentence_transformers",),
    "hub": ("datasets",),
    "hygiene": ("rensa",),
    "judge": ("httpx2",),
}


def need(module: str, extra: str) -> Any:
    """Import `module`, which `extra` brings.

    Raises `MissingExtra` with the pip line when it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or module.split(".")[0] != error.name.split(".")[0]:
            raise
        raise MissingExtra(
            f"this needs the package {error.name!r}, which is not installed; "
            f"add it with: pip install 'tamis[{extra}]'"
        ) from error


def installed(module: str) -> ModuleType | None:
    """The module when it can be imported, else None; used to report, never to choose a method."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError:
        return None
