"""Imports point down: core ← pools, models ← representations, scores, selections ← study ← cli."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "tamis"
ABOVE_BASE = {
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "safetensors",
    "sklearn",
    "sentence_transformers",
    "datasets",
    "rensa",
    "httpx2",
    "zstandard",
}

MAY_IMPORT = {
    "core": {"core"},
    "pools": {"core", "pools"},
    "models": {"core", "pools", "models"},
    "representations": {"core", "pools", "models", "representations"},
    "scores": {"core", "pools", "models", "representations", "scores"},
    "selections": {"core", "selections"},
    "lab": {"core", "pools", "models", "lab"},
    "study": {"core", "pools", "models", "representations", "scores", "selections", "lab", "study"},
    "cli": {"core", "pools", "models", "representations", "scores", "selections", "lab", "study", "cli"},
}
"""Scores take the `Context` of representations, which both families share."""

MODULES = sorted(PACKAGE.rglob("*.py"))


def _imports(path: Path) -> list[tuple[str, bool]]:
    """(module, whether it is imported when the file is) for every import of a file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    inner = {
        id(node)
        for outer in ast.walk(tree)
        if isinstance(outer, (ast.FunctionDef, ast.AsyncFunctionDef))
        or (isinstance(outer, ast.If) and "TYPE_CHECKING" in ast.unparse(outer.test))
        for node in ast.walk(outer)
    }
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, id(node) not in inner) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.append((node.module or "", id(node) not in inner))
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_import_points_up(path: Path) -> None:
    relative = path.relative_to(PACKAGE)
    if len(relative.parts) == 1:
        return
    layer = relative.parts[0]
    for module, at_top in _imports(path):
        parts = module.split(".")
        if parts[0] == "tamis" and len(parts) > 1:
            assert parts[1] in MAY_IMPORT[layer], f"{relative} imports {module}"
        if parts[0] in ABOVE_BASE and at_top:
            assert layer == "models", f"{relative} imports {module} when it is imported itself"


@pytest.mark.parametrize("family", ["representations", "scores", "selections"])
def test_a_method_imports_no_other_method(family: str) -> None:
    """Methods share only private files of their family (`_name.py`) and lower layers."""
    methods = {path.stem for path in (PACKAGE / family).glob("*.py") if "METHOD" in path.read_text()}
    for name in methods - {"__init__"}:
        for module, _ in _imports(PACKAGE / family / f"{name}.py"):
            parts = module.split(".")
            assert not (parts[:2] == ["tamis", family] and len(parts) > 2 and parts[2] in methods - {name})


def _loaded_by(code: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", f"{code}; import sys; print(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    return {name.split(".")[0] for name in done.stdout.split()}


@pytest.mark.parametrize("code", ["import tamis", "import tamis.cli"])
def test_importing_loads_nothing_heavy(code: str) -> None:
    assert not _loaded_by(code) & (ABOVE_BASE | {"pyarrow", "scipy", "numpy"})


@pytest.mark.parametrize(
    "code",
    [
        "import tamis; tamis.choose, tamis.read_pool, tamis.select, tamis.REPRESENTATIONS",
        "from tamis.cli.methods import families; families()",
    ],
)
def test_the_base_install_needs_no_deep_learning_library(code: str) -> None:
    assert not _loaded_by(code) & ABOVE_BASE
