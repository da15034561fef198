"""The documents name only commands and files that exist, and their Python runs."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tamis.cli import app

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "benchmarks" / "README.md"]
VERBS = {command.name or command.callback.__name__ for command in app.registered_commands}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_exist_with_their_flags(page: Path) -> None:
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    for line in re.findall(r"^(?:\$ )?(?:[\w./]*/)?tamis ([a-z]+)(.*)$", text, re.MULTILINE):
        verb, rest = line
        assert verb in VERBS, f"{page.name}: tamis {verb}"
        flags = set(re.findall(r"(?<!\S)--[a-z-]+", rest))
        help_text = _help(verb)
        assert not {flag for flag in flags if flag not in help_text}, f"{page.name}: tamis {verb}{rest}"


_HELP: dict[str, str] = {}


def _help(verb: str) -> str:
    if verb not in _HELP:
        done = subprocess.run(
            [sys.executable, "-m", "tamis", verb, "--help"],
            capture_output=True,
            text=True,
            check=True,
            cwd=ROOT,
        )
        _HELP[verb] = done.stdout
    return _HELP[verb]


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_every_verb_is_documented_and_has_an_example(verb: str) -> None:
    assert "Example: tamis " + verb in re.sub(r"\s+", " ", _help(verb))
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    assert f"tamis {verb}" in text


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_to_files_exist(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), f"{page.name}: {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_blocks_run(page: Path, tmp_path: Path) -> None:
    """Blocks of one page run one after another in an empty folder, as a reader would paste them."""
    blocks = re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    if not blocks:
        pytest.skip("no Python on this page")
    code = "\n".join(blocks)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.returncode == 0, done.stderr
