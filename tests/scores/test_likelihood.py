"""Perplexity and IFD: by hand on a model of known losses, against the whole model, statuses, goldens."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tamis
from tamis.core.cost import totals
from tamis.core.status import code
from tamis.lab import NANO, write_lab
from tamis.models.losses import LossEngine
from tamis.pools.pool import Message
from tamis.representations._context import Context
from tamis.scores import ifd, perplexity
from tests.conftest import Conformance, shared
from tests.scores.test_released_ifd import prompts

torch = pytest.importorskip("torch")

USER, ANSWER = Message("user", "Write the word organ in capitals."), Message("assistant", "ORGAN")
SECOND = [Message("user", "And now small."), Message("assistant", "organ")]


def context(**given: Any) -> Context:
    options = {"model": str(NANO), "dtype": "float32", "device": "cpu", **given}
    return Context(**options)


def scored(scorer: Any, talks: Sequence[Sequence[Message]]) -> tuple[np.ndarray, np.ndarray, Any]:
    found = scorer.score(talks, lambda tokens: None)
    values, status = scorer.derive(found.columns, found.status)
    return values, status, found


def losses_slow(scorer: Any, ids: np.ndarray) -> np.ndarray:
    """Loss of every token but the first, one row through the whole model."""
    given = torch.tensor(ids[None].astype(np.int64))
    with torch.no_grad():
        found = scorer._engine.lm.model(input_ids=given).logits[0].float().log_softmax(-1)
    return -found[np.arange(len(ids) - 1), ids[1:].astype(np.int64)].double().numpy()


def test_both_passes_score_the_same_tokens() -> None:
    scorer = ifd.prepare(ifd.Config(), context())
    values, status, found = scored(scorer, [[USER, ANSWER]])
    row = scorer.renderer.render([USER, ANSWER])
    conditioned = losses_slow(scorer, row.ids)[row.mask[1:]]
    direct = losses_slow(scorer, np.concatenate([scorer.opening, row.ids[row.mask]]))[
        len(scorer.opening) - 1 :
    ]
    assert len(conditioned) == len(direct) == found.columns["tokens_response"][0]
    assert values[0] == pytest.approx(conditioned.mean() / direct.mean(), rel=1e-5)
    by_perplexity, _, _ = scored(ifd.prepare(ifd.Config(ratio="perplexity"), context()), [[USER, ANSWER]])
    assert by_perplexity[0] == pytest.approx(np.exp(conditioned.mean() - direct.mean()), rel=1e-5)
    assert status[0] == code("ok")


def test_the_two_ratios_rank_differently() -> None:
    # T1: X direct 0.5, given 0.4; Y direct 3.0, given 2.6.
    stored = {"nll_response": np.array([0.4, 2.6]), "nll_direct": np.array([0.5, 3.0])}
    status = np.zeros(2, np.uint8)
    by_loss, _ = ifd.prepare(ifd.Config(), context()).derive(stored, status)
    by_perplexity, _ = ifd.prepare(ifd.Config(ratio="perplexity"), context()).derive(stored, status)
    assert by_loss.tolist() == pytest.approx([0.8, 0.866667], abs=1e-6)
    assert by_perplexity.tolist() == pytest.approx([0.904837, 0.670320], abs=1e-6)


def test_no_number_is_made_of_nothing() -> None:
    stored = {
        "nll_response": np.array([0.4, 800.0, np.nan, np.inf]),
        "nll_direct": np.array([0.0, 1.0, 1.0, 1.0]),
    }
    for ratio, wanted in (("loss", ["non_finite", "ok", "failed", "non_finite"]),
                          ("perplexity", ["ok", "non_finite", "failed", "non_finite"])):  # fmt: skip
        status = np.array([0, 0, code("failed"), 0], np.uint8)
        values, found = ifd.prepare(ifd.Config(ratio=ratio), context()).derive(stored, status)
        assert found.tolist() == [code(word) for word in wanted]
        assert np.isnan(values).tolist() == [word != "ok" for word in wanted]


def test_turns() -> None:
    talk = [USER, ANSWER, *SECOND]
    alone = scored(ifd.prepare(ifd.Config(turns="first"), context()), [[USER, ANSWER]])[0][0]
    first, last, both = (
        scored(ifd.prepare(ifd.Config(turns=turns), context()), [talk]) for turns in ("first", "last", "all")
    )
    assert first[0][0] == pytest.approx(alone, rel=1e-5)
    columns = [found.columns for _, _, found in (first, last, both)]
    tokens = [c["tokens_response"][0] for c in columns]
    assert tokens[2] == tokens[0] + tokens[1]
    for name in ("nll_response", "nll_direct"):
        mean = (tokens[0] * columns[0][name][0] + tokens[1] * columns[1][name][0]) / tokens[2]
        assert columns[2][name][0] == pytest.approx(mean, rel=1e-5)


@pytest.mark.parametrize(
    ("talk", "word"),
    [
        ([USER, Message("assistant", "  \n")], "empty_response"),
        ([USER], "no_target_tokens"),
        ([Message("user", "word " * 200), ANSWER], "too_long"),
        ([USER, Message("assistant", "many words " * 100)], "truncated"),
        ([USER, Message("assistant", "\u200d\U0001f469\u0301\ud800")], "ok"),
        ([USER, Message("assistant", "x")], "ok"),
    ],
)
def test_statuses(talk: list[Message], word: str) -> None:
    for scorer in (ifd.prepare(ifd.Config(), context(max_tokens=64)),
                   perplexity.prepare(perplexity.Config(), context(max_tokens=64))):  # fmt: skip
        values, status, _ = scored(scorer, [[USER, ANSWER], talk, [USER, ANSWER]])
        assert status[1] == code(word)
        assert np.isfinite(values[1]) == (word in ("ok", "truncated"))
        assert values[0] == values[2] and np.isfinite(values[0])


def test_a_truncated_response_is_scored_over_the_same_tokens_in_both_passes() -> None:
    long = [USER, Message("assistant", "many words " * 100)]
    scorer = ifd.prepare(ifd.Config(), context(max_tokens=64))
    _, _, found = scored(scorer, [long])
    row = scorer.renderer.render(long)
    assert found.columns["tokens_response"][0] == row.mask.sum() == 64 - np.flatnonzero(row.mask)[0]


def test_faults_in_the_engine_are_never_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    scorer = ifd.prepare(ifd.Config(), context())
    inner = scorer._engine.losses

    def broken(sequences, wanted, advance):
        found = inner(sequences, wanted, advance)
        if len(found) == 3:
            found[1][:] = np.nan
            found[2][-1] = np.inf
            scorer._engine.executor.failed[1] = "does not fit"
        return found

    monkeypatch.setattr(scorer._engine, "losses", broken)
    values, status, found = scored(scorer, [[USER, ANSWER], [USER, *SECOND[1:]], [USER, ANSWER]])
    assert [int(s) for s in status] == [0, code("failed"), code("non_finite")]
    assert np.isnan(values).tolist() == [False, True, True] and found.reasons[1] == "does not fit"


def test_batches_change_nothing() -> None:
    talks = [[USER, ANSWER], [USER, ANSWER, *SECOND], SECOND] * 3
    one, _, _ = scored(ifd.prepare(ifd.Config(turns="all"), context(batch_tokens=1)), talks)
    many, _, _ = scored(ifd.prepare(ifd.Config(turns="all"), context(batch_tokens=4000)), talks)
    np.testing.assert_allclose(one, many, rtol=1e-5)


def test_scores_of_a_pool_are_stored_once_for_both_ratios(tmp_path: Path) -> None:
    write_lab(tmp_path, rows=60, seed=1)
    pool = tamis.read_pool([tmp_path / "pool.jsonl"], store=tmp_path / "store")
    options: dict[str, Any] = {"model": str(NANO), "dtype": "float32", "store": tmp_path / "store"}
    loss = tamis.score(pool, "ifd", **options)
    other = tamis.score(pool, "ifd", parameters={"ratio": "perplexity"}, **options)
    assert loss.digest == other.digest
    finite = np.isfinite(loss.values)
    assert finite.any() and (finite == (loss.status == "ok")).all()
    # Two things: the losses in context, which `perplexity` reads too, and the direct ones.
    assert loss.before == other.before and len(list((tmp_path / "store" / "scores").iterdir())) == 2
    context_pass = tamis.score(pool, "perplexity", parameters={"turns": "first"}, **options)
    assert loss.before == (context_pass.digest,)
    np.testing.assert_allclose(
        np.log(other.values), loss.columns["nll_response"] - loss.columns["nll_direct"]
    )


# --- one pass for several scores ------------------------------------------------------------------------

TALKS = [
    [USER, ANSWER],
    [USER, ANSWER, *SECOND],
    [USER, ANSWER, Message("user", "And then?")],
    [USER],
    [USER, Message("assistant", " ")],
    [Message("user", "word " * 200), ANSWER, *SECOND],
    [USER, Message("assistant", "many words " * 100)],
    [Message("user", "Say a."), Message("assistant", "a")],
]


def write_talks(path: Path, talks: Sequence[Sequence[Message]]) -> Path:
    rows = [{"messages": [m._asdict() for m in talk]} for talk in talks]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


class Passes:
    """Tokens that went through the model, call by call."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[int] = []
        inner = LossEngine.losses

        def counted(engine, sequences, wanted, *rest):
            self.calls.append(sum(map(len, sequences)))
            return inner(engine, sequences, wanted, *rest)

        monkeypatch.setattr(LossEngine, "losses", counted)
        monkeypatch.setattr(LossEngine, "_check", lambda engine: None)  # a row of its own

    def since(self) -> int:
        found, self.calls = sum(self.calls), []
        return found


def test_one_pass_in_context_serves_perplexity_and_ifd(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_talks(tmp_path / "pool.jsonl", TALKS)
    common: dict[str, Any] = {"model": str(NANO), "dtype": "float32", "max_tokens": 64}
    given = context(max_tokens=64)
    scorers = {
        "ifd": ifd.prepare(ifd.Config(), given),
        "first": perplexity.prepare(perplexity.Config(turns="first"), given),
        "perplexity": perplexity.prepare(perplexity.Config(), given),
    }
    alone = {name: scored(scorer, TALKS) for name, scorer in scorers.items()}
    read = {name: sum(scorer.count_tokens(TALKS)) for name, scorer in scorers.items()}
    # Under "all" only the rows of several exchanges, or that end with a question, are still to be read.
    several = [TALKS[1], TALKS[2], TALKS[5]]
    assert read["perplexity"] == sum(len(scorers["perplexity"].renderer.render(t).ids) for t in several)
    passes = Passes(monkeypatch)
    stored: dict[tuple[str, ...], dict[str, Any]] = {}
    for order in (("ifd", "perplexity"), ("perplexity", "ifd")):
        store = tmp_path / "-".join(order)
        pool = tamis.read_pool([path], store=store)
        assert len(pool) == len(TALKS)
        passes.since()
        found = {}
        for number, name in enumerate(order):
            found[name] = tamis.score(pool, name, store=store, **common)
            spent = passes.since()
            assert spent == read[name] + (0 if number else read["first"]), (order, name)
            np.testing.assert_allclose(found[name].values, alone[name][0], rtol=1e-5, equal_nan=True)
            assert found[name].codes.tolist() == alone[name][1].tolist()
        tamis.score(pool, "perplexity", parameters={"tokens": "response"}, store=store, **common)
        tamis.score(pool, "ifd", parameters={"ratio": "perplexity"}, store=store, **common)
        assert passes.since() == 0
        ledger = totals(store, {found["ifd"].digest, found["perplexity"].digest, *found["ifd"].before})
        assert sum(each["tokens"] for each in ledger.values()) == sum(read.values())
        stored[order] = {name: each.values.tobytes() for name, each in found.items()}
    assert len({tuple(sorted(each.items())) for each in stored.values()}) == 1  # whatever came first


def test_operations_in_the_ledger_are_those_of_both_passes(tmp_path: Path) -> None:
    pool = tamis.read_pool([write_talks(tmp_path / "pool.jsonl", TALKS[:1])], store=tmp_path)
    found = tamis.score(pool, "ifd", model=str(NANO), dtype="float32", store=tmp_path)
    scorer = ifd.prepare(ifd.Config(), context())
    lm, row = scorer._described, scorer.renderer.render(TALKS[0])
    whole, direct, response = len(row.ids), len(scorer.opening) + int(row.mask.sum()), int(row.mask.sum())
    spent = totals(tmp_path, {found.digest, *found.before})
    head = 2 * 192 * 1024
    assert spent[found.before[0]]["flops"] == pytest.approx(
        whole * lm.forward_flops(whole) + head * (whole - 1)
    )
    assert spent[found.digest]["flops"] == pytest.approx(direct * lm.forward_flops(direct) + head * response)


def test_a_reason_in_context_is_the_reason_of_ifd(tmp_path: Path) -> None:
    """A row that is refused, or too long, is so in both, with its reason."""
    talks = [[USER, ANSWER], [Message("user", "word " * 200), ANSWER]]
    pool = tamis.read_pool([write_talks(tmp_path / "pool.jsonl", talks)], store=tmp_path)
    found = tamis.score(pool, "ifd", model=str(NANO), dtype="float32", store=tmp_path, max_tokens=64)
    assert found.status.tolist() == ["ok", "too_long"] and np.isnan(found.values[1])
    assert "its prompt alone reaches" in found.thing.reasons(0)[1]


def golden_talks(golden: Path) -> list[list[Message]]:
    lines = (golden / "pool.jsonl").read_text(encoding="utf-8").splitlines()
    return [[Message(m["role"], m["content"]) for m in json.loads(line)["messages"]] for line in lines]


def test_golden_perplexity_and_ifd(conforms: Conformance) -> None:
    golden = shared("golden")
    wanted = [json.loads(line) for line in (golden / "losses.jsonl").read_text(encoding="utf-8").splitlines()]
    given = context(model=str(golden / "model"), template="tulu")
    talks = golden_talks(golden)
    values, _, _ = scored(perplexity.prepare(perplexity.Config(compatible=True), given), talks)
    conforms.close("`perplexity`, all tokens", values, [row["hamish_nll"] for row in wanted], rtol=1e-5)
    for ratio, key, tolerance in (("loss", "ifd_loss_ratio_header", 1e-5),
                                  ("perplexity", "ifd_ppl_ratio_header", 5e-5)):  # fmt: skip
        values, status, _ = scored(ifd.prepare(ifd.Config(ratio=ratio, turns="last"), given), talks)
        reference = np.array([row["tulu"].get(key) or np.nan for row in wanted])
        both = np.isfinite(values) & np.isfinite(reference)
        conforms.close(f"`ifd`, ratio of {ratio}", values[both], reference[both], rtol=tolerance)
        # Ours alone: a conversation that ends with a user turn. The reference's alone: blank responses.
        assert [wanted[i]["id"] for i in np.flatnonzero(~both & np.isfinite(values))] == ["a-p027"]
        blank = np.flatnonzero(~both & np.isfinite(reference))
        assert (status[blank] == code("empty_response")).all() and len(blank) == 2
        assert both.sum() == 60


# --- prompts alone ---------------------------------------------------------------------------------------


def test_the_prompt_alone_is_what_comes_before_the_first_answer() -> None:
    scorer = perplexity.prepare(perplexity.Config(tokens="prompt", compatible=True), context())
    talks = [[USER, ANSWER, *SECOND], [ANSWER], [USER], [USER, Message("assistant", " ")]]
    found = scorer.score(talks, lambda tokens: None)
    values, status = found.values, found.status
    row = scorer.renderer.render([USER, ANSWER])
    before = row.ids[: int(row.mask.argmax())]
    np.testing.assert_array_equal(scorer.renderer.render_prompts(talks[:1])[0].ids, before)
    assert values[0] == pytest.approx(losses_slow(scorer, before).mean(), rel=1e-5) == values[2]
    assert [int(x) for x in status] == [code("ok"), code("no_target_tokens"), code("ok"), code("ok")]
    strict = perplexity.prepare(perplexity.Config(tokens="prompt"), context())
    words = ["ok", "no_target_tokens", "no_target_tokens", "empty_response"]
    left = strict.score(talks, lambda tokens: None)
    assert [int(x) for x in left.status] == [code(word) for word in words]
    assert values[0] == left.values[0] and np.isnan(left.values[1:]).all()
    assert strict.recipe != scorer.recipe
    assert np.isnan(values[1]) and found.reasons == {1: "nothing comes before the first answer"}
    short = perplexity.prepare(perplexity.Config(tokens="prompt"), context(max_tokens=5))
    found = short.score(talks[:1], lambda tokens: None)
    assert found.status[0] == code("truncated")
    assert found.values[0] == pytest.approx(losses_slow(short, before[:5]).mean(), rel=1e-5)


def test_perplexities_of_prompts_of_the_reference(conforms: Conformance) -> None:
    golden = np.load(shared("golden/cherry_cluster.npz"))
    lines = (shared("golden") / "alpaca_rows.jsonl").read_text(encoding="utf-8").splitlines()
    rows = {row["id"]: row for row in map(json.loads, lines)}
    given = context(model=str(shared("golden/model")), template="alpaca")
    scorer = perplexity.prepare(perplexity.Config(tokens="prompt"), given)
    texts = [prompts("alpaca512", rows[name])[0] for name in golden["ids"].tolist()]
    ids = [ids[:512] for ids in scorer.renderer.token_ids(texts)]
    losses = scorer._engine.losses(ids, [np.arange(len(row)) > 0 for row in ids])
    found = np.exp([row.mean(dtype=np.float64) for row in losses])
    conforms.close("`perplexity` of prompts, given their text", found, golden["ppl"], rtol=1e-5)
