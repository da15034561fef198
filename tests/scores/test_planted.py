"""Rows that break a scorer have their documented status, and faults in the engine are never a number."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tamis
from tamis.core.status import code
from tamis.lab import NANO
from tamis.models.losses import LossEngine
from tamis.models.packing import Executor
from tamis.pools.pool import Message
from tamis.representations._context import Context
from tamis.scores import ifd, perplexity

torch = pytest.importorskip("torch")
import transformers  # noqa: E402

MOST = 64
POISON = "Z"  # whose embedding is not a number in the model below

PROMPT = "Write the word organ in capitals."
PLANTED: dict[str, tuple[str, str]] = {
    "sound": (PROMPT, "ORGAN"),
    "empty": (PROMPT, ""),
    "blank": ("Write the word piano in capitals.", " \n\t"),
    "one token": (PROMPT, "7"),
    "10,000 tokens of response": (PROMPT, "word " * 10_000),
    "10,000 tokens of prompt": ("word " * 10_000, "ORGAN"),
    "unicode only": (PROMPT, "\u200d\U0001f469\u200d\U0001f467 \u0645\u0631\u062d\u0628\u0627 \u65e5\u672c"),
    "unicode prompt": ("\u0301\u202e\ufeff\U0001f469", "ORGAN"),
    "makes a NaN": (PROMPT, f"OR{POISON}AN"),
    "sound again": ("Write the word lute in capitals.", "LUTE"),
}
CUT, LONG, NONE = "truncated", "too_long", "empty_response"
EXPECTED = {
    "length": {"empty": NONE, "blank": NONE},
    "perplexity": {
        "empty": NONE, "blank": NONE, "10,000 tokens of response": CUT, "10,000 tokens of prompt": LONG,
        "makes a NaN": "non_finite",
    },
    "quality": {
        "empty": NONE, "blank": NONE, "10,000 tokens of response": CUT, "10,000 tokens of prompt": LONG,
        "makes a NaN": "non_finite",
    },
}  # fmt: skip
EXPECTED["ifd"] = EXPECTED["perplexity"]
"""Statuses other than ok."""


def write(path: Path, pairs: Sequence[tuple[str, str]]) -> Path:
    rows = [{"prompt": prompt, "completion": response} for prompt, response in pairs]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def poisoned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The nano model with a head of its own, and NaN as the embedding of one token."""
    folder = tmp_path_factory.mktemp("poisoned")
    tokenizer = transformers.AutoTokenizer.from_pretrained(NANO)
    tied = transformers.AutoModelForCausalLM.from_pretrained(NANO, dtype=torch.float32)
    config = transformers.AutoConfig.from_pretrained(NANO)
    config.tie_word_embeddings, config.dtype = False, torch.float32
    model = transformers.AutoModelForCausalLM.from_config(config)
    model.load_state_dict(tied.state_dict())
    (token,) = tokenizer.encode(POISON, add_special_tokens=False)
    with torch.no_grad():
        model.get_input_embeddings().weight[token] = float("nan")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("mode", ["packed", "padded", "single"])
@pytest.mark.parametrize(
    ("method", "parameters"),
    [
        ("length", {}),
        ("perplexity", {}),
        ("perplexity", {"tokens": "response"}),
        ("ifd", {}),
        ("ifd", {"ratio": "perplexity"}),
        ("quality", {"prompt": "plain"}),
    ],
)
def test_planted_rows_have_their_status_and_spoil_no_other(
    method: str, parameters: dict[str, Any], mode: str, poisoned: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    inner = Executor.__init__
    monkeypatch.setattr(
        Executor, "__init__", lambda self, lm, tokens=None, asked=mode: inner(self, lm, tokens, asked)
    )
    most = 4 * MOST if method == "quality" else MOST  # its prompt alone has more than 64 tokens
    options: dict[str, Any] = {"model": str(poisoned), "dtype": "float32", "max_tokens": most}
    if method == "quality":
        parameters = {**parameters, "model": str(poisoned)}
    pool = tamis.read_pool([write(tmp_path / "pool.jsonl", list(PLANTED.values()))], store=tmp_path)
    found = tamis.score(pool, method, parameters=parameters, store=tmp_path, **options)
    wanted = [EXPECTED[method].get(name, "ok") for name in PLANTED]
    assert found.status.tolist() == wanted
    assert np.isfinite(found.values).tolist() == [word in ("ok", CUT) for word in wanted]
    sound = [i for i, (name, word) in enumerate(zip(PLANTED, wanted, strict=True)) if word == "ok"]
    alone = tamis.read_pool(
        [write(tmp_path / "sound.jsonl", [list(PLANTED.values())[i] for i in sound])], store=tmp_path
    )
    same = tamis.score(alone, method, parameters=parameters, store=tmp_path, **options)
    np.testing.assert_allclose(found.values[sound], same.values, rtol=1e-5)


# --- faults in the engine --------------------------------------------------------------------------------

FAULTLESS = [(f"Write the word {word} in capitals.", word.upper()) for word in ("organ", "piano", "lute")]
FAULTLESS += [(f"Say {n}.", f"{n}") for n in range(20)]


def scores(tmp_path: Path, store: str, **given: Any) -> Any:
    pool = tamis.read_pool([write(tmp_path / "pool.jsonl", FAULTLESS)], store=tmp_path / store)
    options: dict[str, Any] = {"model": str(NANO), "dtype": "float32", "batch_tokens": 60, **given}
    return tamis.score(pool, "ifd", store=tmp_path / store, **options)


@pytest.mark.parametrize("at", [0, 1, 3])
def test_out_of_memory_at_a_batch_is_a_smaller_batch_or_a_failed_row(
    at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on CUDA: batch k does not fit; and one row never fits, not even alone."""
    undisturbed = scores(tmp_path, "whole")
    never = 2
    (prompt, response) = FAULTLESS[never]
    scorer = ifd.prepare(ifd.Config(), Context(model=str(NANO), dtype="float32"))
    talk = [Message("user", prompt), Message("assistant", response)]
    unlucky = scorer.renderer.render(talk).ids.tolist()
    calls = [0]
    inner = Executor._forward

    def short(executor: Any, rows: Any, mode: str) -> Any:
        calls[0] += 1
        if calls[0] == at + 1 and len(rows) > 1:
            raise torch.OutOfMemoryError("batch does not fit")
        if any(row.tolist() == unlucky for row in rows):
            raise torch.OutOfMemoryError("row does not fit")
        return inner(executor, rows, mode)

    scorer._engine  # noqa: B018 - loaded and checked before faults begin
    monkeypatch.setattr(Executor, "_forward", short)
    monkeypatch.setattr(Executor, "_side_by_side", Executor._in_turn)
    found = scores(tmp_path, "short")
    assert found.status.tolist() == ["ok" if row != never else "failed" for row in range(len(FAULTLESS))]
    assert np.isnan(found.values[never])
    assert "do not fit into memory" in found.thing.reasons(0)[never]
    kept = np.arange(len(FAULTLESS)) != never
    np.testing.assert_allclose(found.values[kept], undisturbed.values[kept], rtol=1e-5)


@pytest.mark.parametrize("at", [0, 4])
def test_an_exception_at_a_batch_leaves_no_number_behind(
    at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends the run; nothing of the shard is stored, and the next run gives an undisturbed one's bytes."""
    undisturbed = scores(tmp_path, "whole")
    calls = [0]
    inner = LossEngine._of_batch

    def broken(engine: Any, *given: Any) -> Any:
        calls[0] += 1
        if calls[0] == at + 1:
            raise RuntimeError("a kernel failed")
        return inner(engine, *given)

    with monkeypatch.context() as patch:
        patch.setattr(LossEngine, "_check", lambda engine: None)
        patch.setattr(LossEngine, "_of_batch", broken)
        with pytest.raises(RuntimeError, match="a kernel failed"):
            scores(tmp_path, "broken")
    assert not list((tmp_path / "broken" / "scores").glob("*/*.npy"))
    found = scores(tmp_path, "broken")
    for path in undisturbed.thing.folder.iterdir():
        assert (found.thing.folder / path.name).read_bytes() == path.read_bytes()


# --- T15: batches, padding, edges ------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["packed", "padded", "single"])
def test_t15_ifd_of_batches_is_ifd_one_by_one(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """1 token, empty, n_p = L - 1, n_p >= L, a response longer than the room. Padding is on the right, where
    alone tamis pads."""
    inner = Executor.__init__
    monkeypatch.setattr(
        Executor, "__init__", lambda self, lm, tokens=None, asked=mode: inner(self, lm, tokens, asked)
    )
    talk = [Message("user", PROMPT), Message("assistant", "ORGAN and more of it")]
    probe = ifd.prepare(ifd.Config(), Context(model=str(NANO), dtype="float32"))
    before = int(probe.renderer.render(talk).mask.argmax())
    for room, word in ((1, "truncated"), (0, "too_long"), (-3, "too_long"), (3, "truncated"), (200, "ok")):
        most = before + room
        texts = [*((p, r) for p, r in PLANTED.values()), (PROMPT, "ORGAN and more of it"), (PROMPT, "a")]
        talks = [[Message("user", p), Message("assistant", r)] for p, r in texts]
        given = {"model": str(NANO), "dtype": "float32", "max_tokens": most}
        one = ifd.prepare(ifd.Config(), Context(**given, batch_tokens=1))
        single = [one.score([each], lambda tokens: None) for each in talks]
        many = ifd.prepare(ifd.Config(), Context(**given, batch_tokens=5000))
        found = many.score(talks, lambda tokens: None)
        assert found.status[-2] == code(word), room
        assert found.status.tolist() == [int(each.status[0]) for each in single]
        values, _ = many.derive(found.columns, found.status)
        alone = [one.derive(each.columns, each.status)[0][0] for each in single]
        np.testing.assert_allclose(values, alone, rtol=1e-5, equal_nan=True)
        scored = found.status <= code("truncated")
        room_left = np.maximum(found.tokens - before, 0)
        assert (found.columns["tokens_response"][scored] >= 1).all()
        if word == "truncated":
            assert found.columns["tokens_response"][-2] == room == room_left[-2]


def test_a_response_of_one_token_has_a_direct_loss() -> None:
    """Superfiltering's released pass has no number for it; here it stands after the assistant header."""
    given = Context(model=str(NANO), dtype="float32")
    talk = [Message("user", PROMPT), Message("assistant", "7")]
    scorer = ifd.prepare(ifd.Config(ratio="perplexity"), given)
    found = scorer.score([talk], lambda tokens: None)
    values, _ = scorer.derive(found.columns, found.status)
    assert found.columns["tokens_response"].tolist() == [2]  # with the end of turn
    assert np.isfinite(values).all()
    whole = perplexity.prepare(perplexity.Config(tokens="response"), given)
    made = whole.score([talk], lambda tokens: None)
    assert whole.derive(made.columns, made.status)[0] == found.columns["nll_response"]
