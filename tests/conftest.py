"""Shared material for tests: real pools, targets, goldens and a small model that lie beside the project."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# One thread a process: test workers share the cores, where threads mostly wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).resolve().parents[1]


def shared(relative: str = "") -> Path:
    """A path of the shared material; skips the test without it, but fails in CI, where it must be there."""
    path = ROOT.parent / "shared" / relative
    if not path.exists():
        message = f"shared material not found: ../shared/{relative}"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    return path
