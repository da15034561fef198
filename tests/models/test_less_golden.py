"""Gradients, Adam's features, cosines and scores of the LESS program on a small trained model."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import numpy as np
import pytest

from tests.conftest import Conformance, shared

torch = pytest.importorskip("torch")
pytest.importorskip("peft")

from safetensors.torch import load_file  # noqa: E402

from tamis.models.gradients import GradientEngine  # noqa: E402
from tamis.models.lm import load_model  # noqa: E402
from tamis.models.preconditioners import Constants, Moments, less  # noqa: E402
from tamis.models.projections import projection  # noqa: E402

STEPS, VARIANTS = (10, 20), ("tulu", "less")
SIDES = {"tulu": ("tulu", "tulu_promptlabel"), "less": ("less_train", "less_valid")}
WITHOUT_TARGET = 57  # a-p057: LESS gives it the momentum alone, and tamis a status


def described() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(shared("golden/less/less.json").read_text())
    return found


@cache
def encoded(variant: str, side: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Token ids and targets of the pool (side 0) or of the queries (side 1)."""
    lines = map(json.loads, shared("golden/encodings.jsonl").read_text(encoding="utf-8").splitlines())
    ids = {json.loads(line)["id"] for line in shared(f"golden/{('pool', 'query')[side]}.jsonl").open()}
    rows = [row for row in lines if row["variant"] == SIDES[variant][side] and row["id"] in ids]
    targets = [np.array(row["labels"]) != -100 for row in rows]
    for mask in targets:
        mask[0] = False
    return [np.array(row["input_ids"], np.int32) for row in rows], targets


@cache
def engine(step: int) -> GradientEngine:
    folder = shared(f"golden/less/checkpoint-{step}")
    return GradientEngine(load_model(str(folder), "float32", "cpu", base=str(shared("golden/model"))))


def gradients(step: int, ids: list[np.ndarray], targets: list[np.ndarray], adam: bool) -> np.ndarray:
    run = engine(step)
    first, second = (
        load_file(shared(f"golden/less/checkpoint-{step}/adam_{moment}.safetensors")) for moment in "mv"
    )
    known = {slot.name: Moments(first[slot.name].flatten(), second[slot.name].flatten())
             for slot in run.layout}  # fmt: skip
    plain = projection("none", run.layout, 0, 0, "cpu")
    return run.features(
        ids, targets, plain, (lambda slot, g: less(g, known[slot.name], Constants())) if adam else None
    ).features


@cache
def pool_side(step: int, variant: str) -> tuple[np.ndarray, np.ndarray]:
    """Rows that have a target, and their features by Adam."""
    ids, targets = encoded(variant, 0)
    kept = np.array([row for row, mask in enumerate(targets) if mask.any()])
    assert len(ids) == 64 and set(range(64)) - set(kept.tolist()) == {WITHOUT_TARGET}
    return kept, gradients(step, [ids[i] for i in kept], [targets[i] for i in kept], adam=True)


@cache
def query_side(step: int, variant: str) -> np.ndarray:
    return gradients(step, *encoded(variant, 1), adam=False)


def off(found: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Error of every row relative to its length."""
    return np.linalg.norm(found - wanted, axis=1) / np.linalg.norm(wanted, axis=1)


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_parameters_and_moments_are_those_of_the_reference() -> None:
    wanted = [(p["name"], tuple(p["shape"]), p["offset"]) for p in described()["parameter_order"]]
    assert [(slot.name, slot.shape, slot.offset) for slot in engine(10).layout] == wanted
    assert engine(10).mode == "packed" and engine(10).parameters == described()["n_parameters"]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("step", STEPS)
def test_published_gradients(step: int, variant: str, conforms: Conformance) -> None:
    golden = load_file(shared("golden/less/gradients.safetensors"))
    key = f"{variant}.ckpt{step}"
    kept, adam = pool_side(step, variant)
    query = query_side(step, variant)
    errors = off(query, golden[f"{key}.query_sgd"].numpy())
    if variant == "tulu":
        ids, targets = encoded(variant, 0)
        plain = gradients(step, [ids[i] for i in kept], [targets[i] for i in kept], adam=False)
        errors = np.concatenate([errors, off(plain, golden[f"{key}.pool_sgd"].numpy()[kept])])
    conforms.close("`less`, gradients of rows, error by length", errors, np.zeros_like(errors), atol=1e-5)
    errors = off(adam, golden[f"{key}.pool_adam"].numpy()[kept])
    conforms.close("`less`, features by Adam, error by length", errors, np.zeros_like(errors), atol=1e-4)


@pytest.mark.parametrize("variant", VARIANTS)
def test_published_cosines_and_scores(variant: str, conforms: Conformance) -> None:
    golden, meta = np.load(shared("golden/less/scores.npz"), allow_pickle=False), described()
    weights = [checkpoint["weight"] for checkpoint in meta["checkpoints"]]
    rates = np.array([checkpoint["avg_lr"] for checkpoint in meta["checkpoints"]])
    np.testing.assert_allclose(rates / rates.sum(), weights, rtol=1e-12)
    kept, _ = pool_side(10, variant)
    influence = np.zeros((len(kept), 12))
    for step, weight in zip(STEPS, weights, strict=True):
        cosines = unit(pool_side(step, variant)[1]) @ unit(query_side(step, variant)).T
        wanted = golden[f"{variant}.ckpt{step}.inner_products"][kept]
        conforms.close("`less`, cosines at a checkpoint", cosines, wanted, atol=1e-5)
        influence += weight * cosines
    conforms.close("`less`, influence", influence, golden[f"{variant}.influence"][kept], atol=1e-5)
    tasks = np.array(meta["task_of_query"])
    means = [influence[:, tasks == task].mean(axis=1) for task in dict.fromkeys(tasks.tolist())]
    score = np.max(means, axis=0)
    conforms.close("`less`, score (LESS's own selection)", score, golden[f"{variant}.score"][kept], atol=1e-5)
    order = [row for row in golden[f"{variant}.sorted_ids"].tolist() if row != WITHOUT_TARGET]
    wanted = golden[f"{variant}.score"]
    assert np.diff(wanted[order]).max() <= 0
    ours = kept[np.argsort(-score, kind="stable")].tolist()
    gaps = np.flatnonzero(np.array(ours) != np.array(order))
    # Equal rows (17 and 23) are in no defined order.
    assert {frozenset((ours[i], order[i])) for i in gaps} <= {frozenset((17, 23))}
    same = [row for row in order if row not in (17, 23)]
    conforms.exact("`less`, order of the rows by score", [row for row in ours if row not in (17, 23)], same)
