"""On the laboratory, whose truth is known: targeted strategies find a skill's rows, and random does not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import tamis
from tamis.lab import NANO, write_lab
from tamis.study.laboratory import shares, survey, truth_of
from tamis.study.signals import Settings
from tamis.study.strategies import resolve

CAN_DO = 0.8
"""A skill counts as one that the nano model can do from this share of exact answers on (training.json)."""

RDS = ("rds/top-k", "rds/round-robin", "rds/doubly-greedy")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, float]]:
    folder = tmp_path_factory.mktemp("laboratory")
    write_lab(folder)
    pool = tamis.read_pool([folder / "pool.jsonl"], store=folder / "store")
    settings = Settings(store=folder / "store", model=str(NANO), dtype="float32")
    strategies = resolve([*RDS, "ngrams/round-robin", "random"])
    return shares(survey(pool, folder, strategies, settings))


def _can_do() -> list[str]:
    exact: dict[str, float] = json.loads((NANO / "training.json").read_text())["exact_match"]
    return [skill for skill, share in exact.items() if share >= CAN_DO]


def test_rds_finds_four_fifths_of_every_skill_that_the_model_can_do(found: dict[str, Any]) -> None:
    skills = _can_do()
    assert len(skills) >= 5
    missed = {(s, name): found[s][name] for s in skills for name in RDS if found[s][name] < 0.8}
    assert not missed


def test_random_finds_a_skill_by_its_share_and_words_find_most(found: dict[str, Any]) -> None:
    mean = {
        name: sum(row[name] for row in found.values()) / len(found)
        for name in ("random", "ngrams/round-robin")
    }
    assert mean["random"] < 0.1
    assert mean["ngrams/round-robin"] > 0.5


def test_the_truth_follows_the_rows_through_merging(tmp_path: Path) -> None:
    write_lab(tmp_path, rows=400, seed=2)
    pool = tamis.read_pool([tmp_path / "pool.jsonl"], store=tmp_path / "store")
    truth = truth_of(pool, tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "truth.jsonl").read_text().splitlines()]
    duplicates = sum(line["fault"] == "duplicate" for line in lines)
    assert len(pool) == 400 - duplicates == len(truth.skills)
    assert "duplicate" not in set(truth.faults) and "wrong" in set(truth.faults)
