"""What strategies find of the laboratory's truth: right rows and planted faults among the chosen."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tamis.study.budget import Budget
from tamis.study.select import Request, read_query, run
from tamis.study.signals import Settings
from tamis.study.strategies import Strategy

if TYPE_CHECKING:
    from tamis.pools.pool import Pool


@dataclass(frozen=True)
class Finding:
    """One strategy asked for one skill, with a budget of as many rows as the pool has of it."""

    strategy: str
    skill: str
    budget_rows: int
    right_rows: int  # chosen rows of the skill
    faulty_rows: int  # chosen rows with a planted fault, of any skill

    @property
    def share(self) -> float:
        """Share of the skill's rows that were found; equal to the share of chosen rows that are right."""
        return self.right_rows / self.budget_rows


@dataclass(frozen=True)
class Truth:
    """Truth about the rows of a laboratory pool, by position: skill ("" for none) and fault ("" for none)."""

    skills: np.ndarray
    faults: np.ndarray


def truth_of(pool: Pool, lab: Path) -> Truth:
    """The truth of `lab`/truth.jsonl for the rows of the pool read from `lab`/pool.jsonl."""
    lines = [json.loads(line) for line in (lab / "truth.jsonl").read_text(encoding="utf-8").splitlines()]
    rows = [lines[row.line - 1] for row in pool.iter_rows()]
    skills = np.array([row["skill"] or "" for row in rows], dtype=object)
    faults = np.array([row["fault"] or "" for row in rows], dtype=object)
    return Truth(skills, faults)


def survey(
    pool: Pool, lab: Path, strategies: Sequence[Strategy], settings: Settings, seed: int = 0
) -> list[Finding]:
    """Every strategy on every skill of a laboratory written to `lab`."""
    truth = truth_of(pool, lab)
    found = []
    for path in sorted((lab / "queries").glob("*.jsonl")):
        skill = path.stem
        query = read_query(path, None, settings.store)
        rows = int((truth.skills == skill).sum())
        request = Request(strategies, [Budget(rows, "rows")], {skill: query}, seed, settings=settings)
        for subset in run(pool, request, None):
            right = int((truth.skills[subset.positions] == skill).sum())
            faulty = int((truth.faults[subset.positions] != "").sum())
            found.append(Finding(subset.strategy.name, skill, rows, right, faulty))
    return found


def shares(findings: Sequence[Finding]) -> dict[str, dict[str, float]]:
    """{skill: {strategy: share found}} in order of first appearance."""
    found: dict[str, dict[str, float]] = {}
    for finding in findings:
        found.setdefault(finding.skill, {})[finding.strategy] = finding.share
    return found


def as_rows(findings: Sequence[Finding]) -> list[dict[str, Any]]:
    """Findings as plain rows for JSON."""
    return [{**vars(finding), "share": round(finding.share, 4)} for finding in findings]
