"""Matrices of vectors in files of others: .npy, and the gradient index that bergson builds.

A bergson index is a folder with `gradients.bin`, one row of numbers for each example with the modules one
after another, `info.json` with their sizes, the number of rows and the dtype, and `processor_config.yaml`
with the projection. Read here without that library (layout of bergson 2.x, commit 3c66bb5, and of older
stores that name no `base_dtype`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from tamis.core.digest import digest, known_file_digest
from tamis.core.errors import RequestError
from tamis.core.vectors import forget_pages

GRADIENTS, INFO, PROCESSOR = "gradients.bin", "info.json", "processor_config.yaml"


@dataclass(frozen=True, eq=False)
class Matrix:
    """Rows (n, d) of a file, memory-mapped. `layout`: what two sides must share to be compared at all."""

    path: Path
    mapped: np.ndarray
    dtype: str
    content: str  # digest of the numbers, wherever they lie
    layout: Mapping[str, Any]

    @property
    def n(self) -> int:
        return int(self.mapped.shape[0])

    @property
    def d(self) -> int:
        return int(self.mapped.shape[1])

    def take(self, rows: np.ndarray) -> np.ndarray:
        """Rows (k,) as (k, d) float32; what float32 cannot hold is infinite."""
        found = np.asarray(self.mapped[rows])
        forget_pages(self.mapped)
        if self.dtype == "bfloat16":  # the upper half of a float32, which numpy does not know
            return np.asarray((found.astype(np.uint32) << np.uint32(16)).view(np.float32))
        with np.errstate(over="ignore", invalid="ignore"):
            return np.asarray(found, dtype=np.float32)


def open_matrix(path: str) -> Matrix:
    """A .npy file or a bergson index, by what it is; raises RequestError for anything else."""
    where = Path(path).expanduser()
    if where.is_dir():
        return _bergson(where)
    if not where.is_file():
        raise RequestError(f"{path}: no such file or folder")
    try:
        mapped = np.load(where, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise RequestError(
            f"{path}: expected a .npy matrix or a folder of a bergson index: {error}"
        ) from error
    if not isinstance(mapped, np.ndarray) or mapped.ndim != 2 or mapped.dtype.kind != "f":
        shape = getattr(mapped, "shape", "several arrays")
        raise RequestError(
            f"{path}: expected floating-point numbers (rows, d); got {shape} {getattr(mapped, 'dtype', '')}"
        )
    return Matrix(where, mapped, mapped.dtype.name, known_file_digest(where), {"d": int(mapped.shape[1])})


def check_sides(pool: Matrix, query: Matrix) -> None:
    """Raise RequestError when the two cannot be compared: other modules, widths or projection."""
    for key in sorted({*pool.layout, *query.layout}):
        ours, theirs = pool.layout.get(key), query.layout.get(key)
        if ours != theirs:
            raise RequestError(
                f"{pool.path} and {query.path} differ in {key} ({_short(ours)} and {_short(theirs)}): "
                "vectors of pool and queries must come from one model, modules and projection"
            )


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


def _bergson(folder: Path) -> Matrix:
    info_path, numbers = folder / INFO, folder / GRADIENTS
    if not info_path.exists() or not numbers.exists():
        raise RequestError(
            f"{folder}: expected a bergson gradient index, with {GRADIENTS} and {INFO}; an index in parts is "
            "imported part by part"
        )
    try:
        info = json.loads(info_path.read_text(encoding="utf-8"))
        sizes = {str(name): int(size) for name, size in info["grad_sizes"].items()}
        dtype, rows = _base_dtype(info), int(info["num_grads"])
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise RequestError(f"{info_path}: not the description of a gradient index: {error!r}") from error
    if info.get("attribute_tokens"):
        raise RequestError(f"{folder}: an index of single tokens; build it without attribute_tokens")
    stored = np.dtype(np.uint16 if dtype == "bfloat16" else dtype)
    width, held = sum(sizes.values()), numbers.stat().st_size
    if held != rows * width * stored.itemsize:
        raise RequestError(
            f"{numbers}: {held} bytes, but {rows} rows of {width} {dtype} numbers ({INFO}) are "
            f"{rows * width * stored.itemsize}"
        )
    if not held:
        raise RequestError(f"{folder}: an empty index")
    layout = {"modules": list(sizes.items()), "projection": _projection(folder)}
    content = digest({"numbers": known_file_digest(numbers), "dtype": dtype, "layout": layout})
    return Matrix(folder, np.memmap(numbers, stored, "r", shape=(rows, width)), dtype, content, layout)


def _base_dtype(info: Mapping[str, Any]) -> str:
    if "base_dtype" in info:
        return str(info["base_dtype"])
    return str(
        np.dtype(info["dtype"]["formats"][0]).base.name
    )  # a structured array of modules, in older stores


def _projection(folder: Path) -> dict[str, Any]:
    """Settings of the projection, sorted; empty for an index that does not say."""
    path = folder / PROCESSOR
    if not path.exists():
        return {}
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        return {str(key): found[key] for key in sorted(found)}
    except (yaml.YAMLError, TypeError) as error:
        raise RequestError(f"{path}: not readable: {error}") from error
