"""Shared material for tests: real pools, targets, goldens and a small model that lie beside the project."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
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


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--conformance", help="write what the golden tests compared to this Markdown file")


@dataclass
class Conformance:
    """Compares with what the reference implementations gave, and remembers by how much it was off."""

    lines: dict[str, dict[str, Any]] = field(default_factory=dict)

    def close(self, what: str, found: Any, wanted: Any, *, rtol: float = 0.0, atol: float = 0.0) -> None:
        """Assert that numbers agree; `what` says which, and lines of one `what` are joined."""
        found, wanted = np.asarray(found, np.float64), np.asarray(wanted, np.float64)
        np.testing.assert_allclose(found, wanted, rtol=rtol, atol=atol)
        off = np.abs(found - wanted)
        off = off / np.abs(wanted) if rtol else off
        worst = float(off.max()) if off.size else 0.0
        tolerance = f"{rtol:g} relative" if rtol else f"{atol:g}"
        line = self.lines.setdefault(what, {"numbers": 0, "worst": 0.0, "tolerance": tolerance})
        line["numbers"] += int(found.size)
        line["worst"] = max(line["worst"], worst)

    def exact(self, what: str, found: Any, wanted: Any) -> None:
        """Assert that lists are equal, order included."""
        assert found == wanted, what
        line = self.lines.setdefault(what, {"numbers": 0, "worst": 0.0, "tolerance": "exact"})
        line["numbers"] += len(found)

    def table(self) -> str:
        """Markdown."""
        rows = ["| compared | numbers | tolerance | worst deviation |", "|---|--:|--:|--:|"]
        for what, line in sorted(self.lines.items()):
            worst = "0" if line["worst"] == 0 else f"{line['worst']:.1e}"
            rows.append(f"| {what} | {line['numbers']:,} | {line['tolerance']} | {worst} |")
        return "\n".join(rows) + "\n"


_CONFORMANCE = Conformance()
_TITLE = """# Conformance

What the reference implementations gave on small models and matrices, against what tamis gives for the same
input: the worst deviation of all numbers compared. Written by

    pytest tests -k "golden or published or reference" --conformance docs/conformance.md

Where a published program is wrong, or leaves an order undefined, the card of the method says how tamis
departs; those cases are compared in its compatible mode, or left out and named in the test.

"""


@pytest.fixture
def conforms() -> Conformance:
    """Comparison with a reference implementation."""
    return _CONFORMANCE


@pytest.hookimpl(wrapper=True)
def pytest_sessionfinish(session: pytest.Session) -> Iterator[None]:
    path = session.config.getoption("--conformance")
    if path and _CONFORMANCE.lines:
        Path(path).write_text(_TITLE + _CONFORMANCE.table(), encoding="utf-8")
    yield
