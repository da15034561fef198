"""LESS over files: the worked examples, sub-tasks, the published rows; what is kept, and shortlists."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import tamis
from tamis.core.errors import RequestError
from tamis.core.similarity import FeatureSimilarity
from tamis.core.status import words
from tamis.core.store import Store
from tamis.core.summed import Part, SummedSimilarity
from tamis.core.vectors import unit
from tamis.representations import _gradient_encoder as encoder_module
from tamis.study.gradient_signal import Compared, gradient_similarity, grouped, groups_of, shortlist
from tamis.study.select import read_query
from tamis.study.signals import Settings
from tamis.study.trace import trace
from tests.conftest import Conformance, shared
from tests.study import golden_less as golden

pytest.importorskip("torch")
pytest.importorskip("peft")

PLAIN = {"projection": "none", "dtype": "float32"}

# --- by hand ---------------------------------------------------------------------------------------------


def test_cosines_are_averaged_in_the_program_and_gradients_in_the_paper_published() -> None:
    gradients = np.array([[1, 0], [0, 3]], np.float32)
    stored = {"vectors": unit(gradients), "norms": np.linalg.norm(gradients, axis=1)}
    part: Any = SimpleNamespace(thing=SimpleNamespace(joined=stored.__getitem__))
    groups, row = [np.array([0, 1])], np.array([1, 0])
    assert float((grouped(part, groups, "cosines") @ row)[0]) == pytest.approx(0.5)
    assert float((grouped(part, groups, "gradients") @ row)[0]) == pytest.approx(0.316228, abs=1e-6)
    each = grouped(part, [np.array([0]), np.array([1])], "none")
    np.testing.assert_allclose(each, [[1, 0], [0, 1]])


def test_cosines_are_weighted_by_learning_rate_published() -> None:
    weights, cosines = (0.5, 0.3, 0.15, 0.05), (0.4, 0.2, 0.1, -0.2)
    rows = [np.array([[c, (1 - c * c) ** 0.5]], np.float32) for c in cosines]
    query = np.array([[1, 0]], np.float32)
    parts = [Part(w, FeatureSimilarity(query, [row])) for w, row in zip(weights, rows, strict=True)]
    assert float(SummedSimilarity(parts).columns(np.array([0]))[0, 0]) == pytest.approx(0.265, abs=1e-6)


def test_groups_are_in_the_order_of_their_first_rows() -> None:
    found = groups_of(np.array(["b", "a", "b", "c", "a", "b"]))
    assert [group.tolist() for group in found] == [[0, 2, 5], [1, 4], [3]]


def test_a_shortlist_is_what_the_queries_choose_in_turn() -> None:
    draw = np.random.default_rng(0)
    queries, rows = (draw.normal(size=(count, 6)).astype(np.float32) for count in (3, 50))
    usable = np.arange(50) != 7
    similarity = FeatureSimilarity(queries, [rows[:20], rows[20:]])
    scores = np.where(usable, queries @ rows.T, -np.inf)
    taken: list[int] = []
    for turn in range(10):  # of 49: 0.2 of them, rounded
        left = scores[turn % 3].copy()
        left[taken] = -np.inf
        taken.append(int(left.argmax()))
    assert shortlist(similarity, usable, 0.2).tolist() == sorted(taken)
    assert shortlist(similarity, usable, 1.0).tolist() == np.flatnonzero(usable).tolist()
    assert len(shortlist(similarity, usable, 1e-6)) == 1


# --- the golden model ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """Golden files, a pool without the rows whose labels differ, and a store that the tests share."""
    folder = tmp_path_factory.mktemp("less")
    shared("golden/model")
    rows = golden.pool(folder / "pool.jsonl")
    store = folder / "store"
    pool = tamis.read_pool([folder / "pool.jsonl"], store=store)
    lines = np.array([rows[pool.row(i).line - 1] for i in range(len(pool))])  # golden row of every position
    task = {name: golden.query(folder / f"{name}.jsonl", range(4 * k, 4 * k + 4), [name] * 4)
            for k, name in enumerate(golden.TASKS)}  # fmt: skip
    found = SimpleNamespace(folder=folder, pool=pool, lines=lines, task=task, store=store)
    found.checkpoints = str(golden.checkpoints(folder / "adapter"))
    found.settings = Settings(
        store=store, model=str(shared("golden/model")), template="tulu", dtype="float32", device="cpu"
    )
    return found


def compared(
    world: SimpleNamespace, name: str = "less", query: dict[str, Path] | None = None, **parameters: Any
) -> Compared:
    queries = {task: read_query(path, None, world.store) for task, path in (query or world.task).items()}
    given = {"checkpoints": world.checkpoints, **PLAIN, **parameters}
    return gradient_similarity(name, given, world.pool, queries, world.settings)


def scores_of(found: Compared) -> np.ndarray:
    out = np.full((found.similarity.m, found.similarity.n), np.nan, np.float32)
    for start, block in found.similarity.blocks():
        out[:, start : start + block.shape[1]] = block
    return out


def test_published_influence_through_files(world: SimpleNamespace, conforms: Conformance) -> None:
    found = compared(world)
    usable = world.lines != golden.WITHOUT_TARGET
    np.testing.assert_array_equal(found.usable, usable)
    assert words(found.codes)[~usable].tolist() == ["no_target_tokens"]
    wanted = golden.scores()["tulu.influence"][world.lines].T
    conforms.close(
        "`less`, influence through files", scores_of(found)[:, usable], wanted[:, usable], atol=1e-5
    )
    assert found.task_of.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert found.query_row.tolist() == [0, 1, 2, 3] * 3
    weights = [entry["weight"] for entry in found.execution["checkpoints"]]
    np.testing.assert_allclose(weights, np.array(golden.RATES) / sum(golden.RATES))


def chosen(
    world: SimpleNamespace,
    strategy: str,
    budget: int,
    query: dict[str, Path] | None = None,
    **parameters: Any,
) -> list[int]:
    """Golden rows that were chosen."""
    given = {"checkpoints": world.checkpoints, **PLAIN, **parameters}
    settings = {**vars(world.settings), "parameters": {strategy.partition("/")[0]: given}, "report": False}
    subset = tamis.select(world.pool, strategy=strategy, budget=budget, query=query or world.task, **settings)
    found: list[int] = sorted(world.lines[subset.positions].tolist())
    return found


def test_rows_of_the_program_s_own_selection_published(world: SimpleNamespace, conforms: Conformance) -> None:
    order = [row for row in golden.scores()["tulu.sorted_ids"].tolist()
             if row in world.lines and row != golden.WITHOUT_TARGET]  # fmt: skip
    found = chosen(world, "less/doubly-greedy", 20, aggregate="cosines")
    conforms.exact("`less/doubly-greedy`, rows of LESS's own selection", found, sorted(order[:20]))


def test_rows_that_queries_choose_in_turn_published(world: SimpleNamespace, conforms: Conformance) -> None:
    left = golden.scores()["tulu.influence"].astype(float)
    left[[row for row in range(64) if row not in world.lines or row == golden.WITHOUT_TARGET]] = -np.inf
    wanted = []
    for turn in range(20):
        wanted.append(int(left[:, turn % 12].argmax()))
        left[wanted[-1]] = -np.inf
    found = chosen(world, "less/round-robin", 20, {"all": shared("golden/query.jsonl")})
    conforms.exact("`less/round-robin`, rows", found, sorted(wanted))


def test_all_rows_by_the_published_labels(world: SimpleNamespace, conforms: Conformance) -> None:
    golden.pool(world.folder / "all.jsonl", without=())
    pool = tamis.read_pool([world.folder / "all.jsonl"], store=world.store)
    parameters = {"checkpoints": world.checkpoints, **PLAIN}
    common = {**world.settings.common(), "parameters": parameters}
    made = tamis.represent(pool, "less", compatible=True, **common)
    query = tamis.represent(
        read_query(shared("golden/query.jsonl"), None, world.store), "less", role="query", **common
    )
    lines = np.array([pool.row(i).line - 1 for i in range(len(pool))])
    found = made.array() @ query.array().T
    kept = lines != golden.WITHOUT_TARGET
    wanted = golden.scores()["tulu.influence"][lines]
    conforms.close("`less`, influence by the published labels", found[kept], wanted[kept], atol=1e-5)
    assert not found[~kept].any()


# --- sub-tasks -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("aggregate", ["cosines", "gradients"])
def test_groups_of_unequal_size_are_sources_within_a_task(world: SimpleNamespace, aggregate: str) -> None:
    query = {
        "one": golden.query(world.folder / "one.jsonl", range(7), "abbabbb"),
        "two": golden.query(world.folder / "two.jsonl", range(7, 12), "aaaac"),
    }
    found = compared(world, query=query, aggregate=aggregate)
    groups = [[0, 3], [1, 2, 4, 5, 6], [7, 8, 9, 10], [11]]
    assert found.task_of.tolist() == [0, 0, 1, 1]
    assert found.query_row.tolist() == [0, 1, 0, 4]
    each = compared(world)
    if aggregate == "cosines":
        wanted = np.stack([scores_of(each)[group].mean(axis=0) for group in groups])
        np.testing.assert_allclose(scores_of(found), wanted, atol=1e-6)
        return
    golden_norms = [golden.scores()[f"tulu.ckpt{step}.query_sgd_norm"] for step in (10, 20)]
    features = [[part.similarity.queries for part in one.similarity.parts] for one in (found, each)]
    for ours, theirs, norms in zip(*features, golden_norms, strict=True):
        wanted = unit(np.stack([(theirs * norms[:, None])[group].mean(axis=0) for group in groups]))
        np.testing.assert_allclose(ours, wanted, atol=1e-5)


def test_a_query_without_a_gradient_is_an_error(world: SimpleNamespace) -> None:
    path = world.folder / "open.jsonl"
    path.write_text('{"messages": [{"role": "user", "content": "open"}]}\n')
    with pytest.raises(
        RequestError, match=r"query 'task': 1 of 1 rows have no gradient, first .*open.jsonl:1"
    ):
        compared(world, query={"task": path})


# --- what is kept ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_kept_cosines_are_the_vectors_products(world: SimpleNamespace, dtype: str) -> None:
    vectors = compared(world)
    cosines = compared(world, keep="similarity", dtype=dtype)
    np.testing.assert_allclose(
        scores_of(cosines), scores_of(vectors), atol=1e-3 if dtype == "float16" else 1e-6
    )
    np.testing.assert_array_equal(cosines.codes, vectors.codes)
    assert cosines.similarity.vectors is None and vectors.similarity.vectors is not None
    (first, _) = cosines.parts
    assert first.thing.array(0, "similarity").shape == (len(world.pool), 12)


def test_float16_vectors_change_little(world: SimpleNamespace) -> None:
    half = compared(world, dtype="float16")
    np.testing.assert_allclose(scores_of(half), scores_of(compared(world)), atol=1e-3)
    assert half.parts[0].thing.array(0, "vectors").dtype == np.float16


def test_a_selection_that_compares_rows_needs_vectors(world: SimpleNamespace) -> None:
    with pytest.raises(RequestError, match="vectors"):
        chosen(world, "less/knn-kde", 5, keep="similarity")
    assert len(chosen(world, "less/knn-kde", 5)) == 5


# --- shortlists ------------------------------------------------------------------------------------------


def test_a_shortlist_of_all_rows_is_less_itself(world: SimpleNamespace) -> None:
    full, fast = compared(world), compared(world, "less-fast", shortlist=1.0)
    np.testing.assert_array_equal(fast.usable, full.usable)
    usable = full.usable
    np.testing.assert_allclose(scores_of(fast)[:, usable], scores_of(full)[:, usable], atol=1e-6)


@pytest.mark.parametrize("keep", ["vectors", "similarity"])
def test_rows_outside_of_the_shortlist_are_never_chosen_and_counted(
    world: SimpleNamespace, keep: str
) -> None:
    found = compared(world, "less-fast", keep=keep)
    scored = words(found.codes) == "ok"
    wanted = round(0.2 * int((scored | (words(found.codes) == "truncated")).sum()))
    assert int(found.usable.sum()) == wanted
    assert found.execution["shortlist"] == {
        "rows": wanted, "of": len(world.pool), "by": "the first checkpoint",
    }  # fmt: skip
    full = scores_of(compared(world))
    np.testing.assert_allclose(scores_of(found)[:, found.usable], full[:, found.usable], atol=1e-6)
    rows = world.lines[found.usable].tolist()
    assert chosen(world, "less-fast/round-robin", wanted, keep=keep) == sorted(rows)
    with pytest.raises(RequestError, match=f"can choose {wanted} of the {wanted + 1} rows"):
        chosen(world, "less-fast/round-robin", wanted + 1, keep=keep)


@pytest.mark.parametrize("keep", ["vectors", "similarity"])
def test_trace_says_why_and_shows_no_similarity_that_it_cannot_know(
    world: SimpleNamespace, keep: str
) -> None:
    for name in ("less", "less-fast"):
        taken = chosen(world, f"{name}/round-robin", 6, keep=keep)
    looked_at = [line for line in world.lines.tolist() if line not in taken][:4]
    for line in (*looked_at, golden.WITHOUT_TARGET):
        position = int(np.flatnonzero(world.lines == line)[0])
        places = trace(str(world.pool.ids[position]), world.store)["rows"]  # one for each pool that has it
        entries = [entry for place in places for entry in place["subsets"]]
        entries = [entry for entry in entries if entry["budget"] == "6" and not entry["chosen"]]
        if line == golden.WITHOUT_TARGET:
            assert {(entry["reason"], entry["detail"]) for entry in entries} == {
                ("not usable", "no_target_tokens")
            }
        else:
            assert entries and all("best_similarity" not in entry for entry in entries)
            told = {
                (entry["strategy"], entry["reason"].partition(", or is not on the shortlist")[1] != "")
                for entry in entries
            }
            assert told <= {("less/round-robin", False), ("less-fast/round-robin", True)}
            assert all(entry["reason"].startswith("below the budget") for entry in entries)


# --- what is shared --------------------------------------------------------------------------------------


def test_one_more_checkpoint_costs_one_pass_and_queries_serve_every_preconditioner(
    world: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = (f"{world.checkpoints}/epoch-{epoch}" for epoch in (1, 2))
    passes: list[tuple[str, str, int]] = []
    inner = encoder_module.GradientEncoder.encode

    def counted(self: Any, rows: Any, advance: Any) -> Any:
        passes.append((Path(self.path).name, self.context.role, len(rows)))
        return inner(self, rows, advance)

    monkeypatch.setattr(encoder_module.GradientEncoder, "encode", counted)
    store = world.folder / "other"
    world = SimpleNamespace(
        **{**vars(world), "store": store, "settings": replace(world.settings, store=store)}
    )
    one = {"gsm8k": world.task["gsm8k"]}
    options = {"projection": "count-sketch", "dimensions": 64}
    compared(world, query=one, checkpoints=[first], learning_rates=[1.0], **options)
    count = len(world.pool)
    assert passes == [("epoch-1", "query", 4), ("epoch-1", "pool", count)]
    compared(world, query=one, checkpoints=[first, second], **options)
    assert passes[2:] == [("epoch-2", "query", 4), ("epoch-2", "pool", count)]
    compared(world, query=one, preconditioner="sign", **options)
    assert passes[4:] == [("epoch-1", "pool", count), ("epoch-2", "pool", count)]
    things = [kind for kind, _, _ in Store(world.store).things()]
    assert things.count("representation") == 6
