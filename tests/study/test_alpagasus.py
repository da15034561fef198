"""Strategy `alpagasus`: from a server to subsets and facts; and facts of published subsets (G§2.2-2.4, 7.7).

What these say and cannot be recomputed, for the files are not at hand: ratings of single rows (only the rows
at or above 4.5 were published), so the sizes of the groups of equal ratings are taken as stated and the ties
drawn from them; the 1,000 longest rows and the 1,000 best rated beside them, so their characters, words,
ratings and 28 common rows; Alpaca whole, so the thresholds on known records; and which rows Cherry dropped.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tamis
from tamis.core.errors import RequestError
from tamis.study.budget import parse_budget
from tamis.study.plan import Asked, plan
from tamis.study.signals import Settings
from tamis.study.strategies import resolve
from tamis.study.summary import drawn_by_ties
from tests.conftest import shared
from tests.models.chat_server import Running, running


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("server")) as found:
        yield found


def write(path: Path, rows: list[dict[str, str]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_from_a_server_to_subsets(server: Running, tmp_path: Path) -> None:
    rows = [{"instruction": f"say {i}", "output": f"{i}"} for i in range(60)]
    rows += [{"instruction": f"talk {i}", "output": "case:words"} for i in range(3)]
    rows += [{"instruction": "refuse", "output": "case:field"}, {"instruction": "nothing", "output": " "}]
    pool = tamis.read_pool([str(write(tmp_path / "pool.jsonl", rows))], store=tmp_path / "store")
    settings = {"model": "m", "url": server.url, "usd_per_million_input": 1.0, "pause_s": 0.01}

    def select(seed: int, where: str, **more: Any) -> Any:
        parameters = {"judge": settings, "top-k": {"tie_seed": seed, **more}}
        return tamis.select(
            pool, strategy="alpagasus", budget=20, parameters=parameters, store=tmp_path / "store",
            out=tmp_path / where, report=False,
        )  # fmt: skip

    first = select(0, "a")
    requests = len(server.requests())
    assert requests == 60 + 3 * 2 + 1
    manifest = json.loads((tmp_path / "a" / "manifest.json").read_text())
    status = manifest["subsets"][0]["status"]
    assert status == {"ok": 60, "empty_response": 1, "parse_error": 3, "refused": 1}
    told = manifest["execution"]["signals"]["alpagasus"]
    assert told["replies"] == {"none": 1, "number": 60, "no_number": 3, "refusal": 1, "asked_again": 3}
    assert "served-model" in (tmp_path / "store" / "ledger.jsonl").read_text()
    assert any("5 of 65 rows have no rating" in warning for warning in first.facts["warnings"])
    assert told["spent"]["calls"] == requests and told["spent"]["usd"] == pytest.approx(requests * 1e-4)
    assert server.url not in json.dumps(manifest["recipe"]) and "m" in json.dumps(manifest["recipe"])
    sums = list(manifest["ledger"].values())
    assert sum(entry.get("calls", 0) for entry in sums) == requests

    # Another tie seed asks nothing and draws others of the same scores; the lowest score alone is tied.
    second = select(1, "b")
    assert len(server.requests()) == requests
    assert sorted(first.score) == sorted(second.score) and set(first.positions) != set(second.positions)
    ties = first.facts["ties"]
    assert ties["rows"] == (first.score == first.score.min()).sum() and ties["among"] > ties["rows"]
    assert any("order of ties" in warning for warning in first.facts["warnings"])

    above = tamis.score(pool, "judge", parameters=settings, store=tmp_path / "store").values >= 4.5
    assert 0 < above.sum() < 20
    with pytest.raises(RequestError, match=f"can choose {above.sum()} of the 20"):
        select(0, "c", least=4.5)


def test_a_plan_asks_nothing(server: Running, tmp_path: Path) -> None:
    rows = [{"instruction": f"plan {i}", "output": f"{i}"} for i in range(30)]
    path = write(tmp_path / "pool.jsonl", rows)
    store = tmp_path / "store"
    settings = {"model": "m", "url": server.url, "usd_per_million_output": 10.0, "per_minute": 60}
    asked = Asked(
        resolve(["alpagasus"], {"judge": settings}), [parse_budget("5")], [str(path)],
        settings=Settings(store=store),
    )  # fmt: skip
    before = len(server.requests())
    made = plan(asked)
    stage = next(stage for stage in made.stages if stage.kind == "scores")
    assert (stage.state, stage.api_calls, stage.rows) == ("missing", 30, 30)
    assert made.totals["api_calls"] == 30
    assert made.totals["api_usd"] == pytest.approx(30 * 256 * 10 / 1e6)
    assert stage.seconds == pytest.approx(30, rel=0.01)  # as many a minute as may be
    assert len(server.requests()) == before and not (store / "replies").exists()
    imagined = plan(
        Asked(asked.strategies, asked.budgets, rows=52002, tokens_per_row=130, settings=Settings(store=store))
    )
    assert imagined.totals["api_calls"] == 52002
    # About (row + the words around it) a call.
    stage = next(stage for stage in imagined.stages if stage.kind == "scores")
    assert 52002 * (130 + 150 + 256) < stage.tokens < 52002 * (130 + 350 + 256)


# --- published ratings ------------------------------------------------------------------------------------


def published(name: str, store: Path) -> tamis.Pool:
    return tamis.read_pool([str(shared(f"data/published/{name}"))], store=store)


def test_the_published_subsets_and_what_they_share(tmp_path: Path) -> None:
    claude = published("alpagasus/claude_t45.json.gz", tmp_path)
    helpful = published("alpagasus/helpfulness_t45.json.gz", tmp_path)
    cherry = published("cherry/cherry_alpaca_5_percent.json.gz", tmp_path)
    assert (int(np.sum(claude.counts)), int(np.sum(helpful.counts))) == (5305, 2022)
    assert len(np.intersect1d(claude.ids, helpful.ids)) == 165
    assert round(5305 * 2022 / 52002) == 206
    assert len(np.intersect1d(claude.ids, cherry.ids)) == 170
    random = tamis.read_pool([str(shared("data/pool/alpaca_random_9k.jsonl.gz"))], store=tmp_path)
    dolly = tamis.read_pool([str(shared("data/pool/alpagasus_dolly_3k.jsonl.gz"))], store=tmp_path)
    assert (int(np.sum(random.counts)), int(np.sum(dolly.counts))) == (9229, 2996)
    assert round(100 * 2996 / 15011) == 20 and round(5305 * 3111 / 52002) == 317
    # 5 % of the file's name is int(0.06 n) of the rows that were left: 136 to 152 of 52,002 were dropped.
    assert int(np.sum(cherry.counts)) == 3111
    left = [n for n in range(51_000, 52_003) if int(0.06 * n) == 3111]
    assert (left[0], left[-1]) == (51_850, 51_866) and (52_002 - left[-1], 52_002 - left[0]) == (136, 152)


@pytest.mark.parametrize(
    ("name", "rows", "empty", "characters", "with_input"),
    [
        ("published/alpagasus/claude_t45.json.gz", 5305, 4, 182, None),
        ("published/alpagasus/helpfulness_t45.json.gz", 2022, None, 395, None),
        ("published/cherry/cherry_alpaca_5_percent.json.gz", 3111, 0, 719, 579),
        ("pool/alpaca_random_9k.jsonl.gz", 9229, 4, None, None),
    ],
)
def test_lengths_and_empty_responses_of_published_subsets(
    name: str, rows: int, empty: int | None, characters: int | None, with_input: int | None, tmp_path: Path
) -> None:
    """By `length` in characters; equal rows, which a pool merges, count as often as they were published."""
    pool = tamis.read_pool([str(shared(f"data/{name}"))], store=tmp_path)
    scores = tamis.score(pool, "length", parameters={"unit": "chars"}, store=tmp_path)
    counts = np.asarray(pool.counts)
    assert counts.sum() == rows
    blank = scores.status == "empty_response"
    if empty is not None:  # they would not be judged, nor drawn at random, by default
        assert counts[blank].sum() == empty
    assert (blank == ~np.isfinite(scores.values)).all()
    if characters is not None:
        assert round(float((np.nan_to_num(scores.values) * counts).sum() / rows)) == characters
    if with_input is not None:
        given = [bool(json.loads(raw)["input"].strip()) for raw in pool.originals(np.arange(len(pool)))]
        assert counts[given].sum() == with_input


def test_characters_of_the_random_control(tmp_path: Path) -> None:
    """273 is stated for Alpaca whole; a random 9,229 of it agree within their sampling error."""
    pool = tamis.read_pool([str(shared("data/pool/alpaca_random_9k.jsonl.gz"))], store=tmp_path)
    values = tamis.score(pool, "length", parameters={"unit": "chars"}, store=tmp_path).values
    lengths = np.repeat(np.nan_to_num(values), np.asarray(pool.counts))
    error = lengths.std(ddof=1) / np.sqrt(len(lengths))
    assert abs(lengths.mean() - 273) < 2 * error < 15


@pytest.mark.parametrize(
    ("rows", "best", "next_best", "budget", "drawn"),
    [(52002, 11, 9218, 1000, 989), (52002, 11, 9218, 5000, 4989), (70000, 3, 2993, 1000, 997)],
)
def test_published_ties_leave_the_choice_to_the_tie_seed(
    tmp_path: Path, rows: int, best: int, next_best: int, budget: int, drawn: int
) -> None:
    """Ratings with the published counts, from a file: 11 rows of 5.0 and 989 drawn of those with 4.5."""
    ratings = np.full(rows, 4.0)
    order = np.random.default_rng(0).permutation(rows)
    ratings[order[:best]], ratings[order[best : best + next_best]] = 5.0, 4.5
    chosen = [tamis.choose("top-k", ratings, budget, tie_seed=seed) for seed in range(3)]
    usable = np.ones(rows, bool)
    for positions in chosen:
        found = drawn_by_ties(ratings, usable, positions)
        assert (found["rows"], found["among"], found["score"]) == (drawn, next_best, 4.5)
        assert (ratings[positions[:best]] == 5.0).all()
    assert (chosen[0] == tamis.choose("top-k", ratings, budget, tie_seed=0)).all()
    common = len(np.intersect1d(chosen[0], chosen[1])) - best
    expected = drawn * drawn / next_best
    assert abs(common - expected) < 5 * np.sqrt(expected)  # two draws, independent


def test_ratings_from_a_file_take_part_as_our_own(tmp_path: Path) -> None:
    pool = tamis.read_pool([str(shared("data/pool/alpaca_random_9k.jsonl.gz"))], store=tmp_path / "store")
    ratings = ["5.0"] * 11 + ["4.5"] * 3000 + ["4.0"] * (len(pool) - 3011)
    lines = [f"{name},{rating}" for name, rating in zip(pool.ids, ratings, strict=True)]
    (tmp_path / "ratings.csv").write_text("\n".join(["id,accuracy", *lines]) + "\n")
    chosen = [
        tamis.select(
            pool, strategy="import-score/top-k", budget=1000, store=tmp_path / "store",
            parameters={
                "import-score": {"file": str(tmp_path / "ratings.csv"), "column": "accuracy"},
                "top-k": {"tie_seed": seed, "least": 4.5},
            },
        )
        for seed in (0, 1)
    ]  # fmt: skip
    for subset in chosen:
        assert subset.facts["ties"] == {"rows": 989, "share": 0.989, "among": 3000, "score": 4.5}
        assert sorted(subset.positions[:11]) == list(range(11))
        assert any("989 of the 1,000 rows" in warning for warning in subset.facts["warnings"])
    common = len(np.intersect1d(chosen[0].positions, chosen[1].positions)) - 11
    assert abs(common - 989 * 989 / 3000) < 100


def test_the_threshold_and_the_row_after_it(tmp_path: Path) -> None:
    """All 9,229 rows of 4.5 and more are a subset of 10,000; 771 come from the next group."""
    ratings = np.full(52002, 4.0)
    ratings[:11], ratings[11:9229] = 5.0, 4.5
    assert len(tamis.choose("top-k", ratings, 9229, least=4.5)) == 9229
    with pytest.raises(RequestError, match="can choose 9229 of the 10000"):
        tamis.choose("top-k", ratings, 10000, least=4.5)
    found = drawn_by_ties(ratings, np.ones(52002, bool), tamis.choose("top-k", ratings, 10000, tie_seed=0))
    assert found["rows"] == 771 and found["score"] == 4.0
