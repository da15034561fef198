"""Digit scorers: T6 and T7 by hand, goldens, prompts and digits, truncation, statuses."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tamis.core.errors import RequestError
from tamis.core.status import code
from tamis.lab import NANO
from tamis.pools.pool import Message
from tamis.representations._context import Context
from tamis.scores import complexity, deita, quality
from tamis.scores._digit_prompts import (
    Exchange,
    digit_tokens,
    exchanges,
    parsed,
    prompt_ids,
    prompt_of,
)
from tamis.scores._digits import Asker, DigitScorer, expected_digit
from tests.conftest import Conformance, shared

torch = pytest.importorskip("torch")

QUERY = "Ask: {instruction}\n##Complexity: "
PAIR = "Ask: {instruction}\nSaid: {response}\n##Quality: "
ASKED, ANSWERED = Message("user", "Sort 3 1 2."), Message("assistant", "1 2 3")
MORE = [Message("user", "Backwards."), Message("assistant", "3 2 1")]


def context(model: Any = NANO, **given: Any) -> Context:
    return Context(**{"model": str(model), "dtype": "float32", "device": "cpu", **given})


def asker(aspect: str = "quality", prompt: str = PAIR, model: Any = NANO, **given: Any) -> Asker:
    return Asker(aspect, str(model), prompt, context(**given), f"{aspect}.model")


class Told:
    """Stands in for an asker: expected digits by instruction."""

    def __init__(self, aspect: str, digits: dict[str, float], status: dict[str, str] | None = None) -> None:
        self.aspect, self.digits, self.status = aspect, digits, status or {}
        self.described = SimpleNamespace(forward_flops=lambda length: 0.0)

    def ask(self, asked: Sequence[Exchange], advance: Any) -> Any:
        values = np.array([self.digits[each.instruction] for each in asked])
        words = [self.status.get(each.instruction, "ok") for each in asked]
        codes = np.array([code(word) for word in words], np.uint8)
        return values, codes, np.full(len(asked), 3), {i: w for i, w in enumerate(words) if w != "ok"}


def talk(*names: str) -> list[Message]:
    return [m for name in names for m in (Message("user", name), Message("assistant", "x"))]


# --- by hand ---------------------------------------------------------------------------------------------


def test_t6_equal_logits_and_logarithms() -> None:
    logits = np.array([[0.0] * 6, np.log(np.arange(1, 7)), [1000.0] * 6, [0, 0, 0, 0, 0, 1000.0]])
    assert expected_digit(logits) == pytest.approx([3.5, 91 / 21, 3.5, 6.0], abs=1e-12)
    shifted = np.log(np.arange(1, 7)) - 7.0  # log-probabilities give the same
    assert expected_digit(shifted[None]) == pytest.approx([91 / 21], abs=1e-12)


def test_no_number_is_made_of_what_is_not_finite() -> None:
    logits = np.zeros((4, 6))
    logits[0, 2], logits[1, 5], logits[2], logits[3, :3] = np.nan, np.inf, -np.inf, -np.inf
    assert np.isnan(expected_digit(logits)[:3]).all() and expected_digit(logits)[3] == 5.0


def test_t7_turns_are_summed() -> None:
    both: Any = [
        Told("complexity", {"a": 2.0, "b": 3.0, "c": 4.0}),
        Told("quality", {"a": 4.0, "b": 5.0, "c": 5.0}),
    ]
    rows = [talk("a", "b"), talk("c")]
    for turns, wanted in (("sum", [23, 20]), ("mean", [11.5, 20]), ("first", [8, 20])):
        scorer = DigitScorer(both, turns)
        found = scorer.score(rows, lambda tokens: None)
        values, status = scorer.derive(found.columns, found.status)
        assert values.tolist() == wanted and status.tolist() == [0, 0]
    alone = DigitScorer(both[:1], "sum")
    found = alone.score(rows, lambda tokens: None)
    assert alone.derive(found.columns, found.status)[0].tolist() == [5, 4]


def test_a_row_with_one_failed_turn_has_no_score() -> None:
    told: Any = Told("quality", {"a": 2.0, "b": np.nan, "c": 5.0}, {"b": "failed"})
    scorer = DigitScorer([told], "mean")
    found = scorer.score([talk("a", "b"), talk("c"), talk("c", "a")], lambda tokens: None)
    values, status = scorer.derive(found.columns, found.status)
    assert status.tolist() == [code("failed"), 0, 0] and found.reasons == {0: "failed"}
    assert np.isnan(values[0]) and np.isnan(found.values[0]) and values[1:].tolist() == [5, 3.5]


def test_rows_without_an_exchange_have_a_status() -> None:
    scorer = quality.prepare(quality.Config(model=str(NANO), prompt=PAIR), context())
    rows = [
        [ASKED],
        [ASKED, Message("assistant", "  ")],
        [Message("assistant", "hello")],
        [ASKED, ANSWERED],
        [],
    ]
    found = scorer.score(rows, lambda tokens: None)
    words = ["no_target_tokens", "empty_response", "no_target_tokens", "ok", "no_target_tokens"]
    assert found.status.tolist() == [code(word) for word in words]
    assert np.isfinite(found.values).tolist() == [False, False, False, True, False]
    assert found.columns["turns"].tolist() == [0, 0, 0, 1, 0]


def test_exchanges_of_a_conversation() -> None:
    system = Message("system", "Be brief.")
    rows = [system, ASKED, ANSWERED, Message("assistant", "Done."), *MORE, Message("user", "More.")]
    assert exchanges(rows) == [
        Exchange("Be brief.\nSort 3 1 2.", "1 2 3\nDone."),
        Exchange("Backwards.", "3 2 1"),
    ]
    assert exchanges([ASKED, Message("assistant", " "), *MORE]) == [Exchange("Backwards.", "3 2 1")]


# --- goldens ---------------------------------------------------------------------------------------------


def test_golden_expected_scores(conforms: Conformance) -> None:
    golden = np.load(shared("golden/deita.npz"), allow_pickle=False)
    own = expected_digit(golden["scorer.logits"][:, golden["scorer.token_ids"]])
    conforms.close("expected digit of given logits", own, golden["scorer.expected"], atol=1e-5)


@pytest.mark.parametrize("aspect", ["complexity", "quality"])
def test_golden_model(aspect: str, conforms: Conformance) -> None:
    golden = np.load(shared("golden/deita.npz"), allow_pickle=False)
    listed = json.loads(shared("golden/deita.json").read_text(encoding="utf-8"))["model_prompts"]
    prompts = [each for each in listed if each["kind"] == aspect]
    lines = shared("golden/alpaca_rows.jsonl").read_text(encoding="utf-8").splitlines()
    rows = {row["id"]: row for row in map(json.loads, lines)}
    asked = [
        Exchange("\n".join(filter(None, [rows[p["id"]]["instruction"], rows[p["id"]]["input"]])),
                 rows[p["id"]]["output"])
        for p in prompts
    ]  # fmt: skip
    template = prompts[0]["prompt"]
    if aspect == "quality":
        template = template.replace(asked[0].response, "{output}")
    template = template.replace(asked[0].instruction, "{instruction}")
    asking = asker(aspect, template, shared("golden/model"))
    assert [asking.prompt.text(each)[0] for each in asked] == [p["prompt"] for p in prompts]
    np.testing.assert_array_equal(asking.digits, golden["model.token_ids"])
    values, status, _, reasons = asking.ask(asked, lambda tokens: None)
    assert not status.any() and not reasons
    conforms.close(f"`{aspect}`", values, golden[f"model.{aspect}.expected"], atol=1e-5)
    ids, _ = prompt_ids(asking.renderer, asking.prompt, asked, 2048)
    logits = asking.engine.next_logits([each for each in ids if each is not None], asking.digits)
    np.testing.assert_allclose(logits, golden[f"model.{aspect}.logits"], atol=2e-5)


# --- one pass against the whole model --------------------------------------------------------------------


def test_the_score_is_that_of_the_whole_model_row_by_row() -> None:
    asking = asker()
    asked = [Exchange(f"Add {i} and {i}.", "x " * i + str(2 * i)) for i in range(1, 8)]
    values, _, tokens, _ = asking.ask(asked, lambda tokens: None)
    for each, value, count in zip(asked, values, tokens, strict=True):
        (ids,) = asking.renderer.token_ids([asking.prompt.text(each)[0]])
        with torch.no_grad():
            given = torch.tensor(ids[None].astype(np.int64))
            last = asking.engine.lm.model(input_ids=given).logits[0, -1].double()
        chances = last.softmax(0)[torch.tensor(asking.digits)]
        wanted = float((chances / chances.sum() * torch.arange(1, 7)).sum())
        assert value == pytest.approx(wanted, abs=1e-5) and count == len(ids)


def test_batches_change_nothing() -> None:
    asked = [Exchange("Count. " * (i % 5 + 1), "1 2 3 " * (i % 7 + 1)) for i in range(24)]
    values, _, _, _ = asker().ask(asked, lambda tokens: None)
    small, _, _, _ = asker(batch_tokens=64).ask(asked, lambda tokens: None)
    np.testing.assert_allclose(values, small, atol=1e-5)


# --- truncation ------------------------------------------------------------------------------------------


def test_what_is_too_long_loses_its_end_and_never_the_words_after_it() -> None:
    asking = asker(max_tokens=64)
    short, long = Exchange("Count.", "1 2 3"), Exchange("Count.", "7 " * 300)
    filled = Exchange("Count " * 300, "1 2 3")
    values, status, tokens, reasons = asking.ask([short, long, filled], lambda tokens: None)
    assert status.tolist() == [0, code("truncated"), code("too_long")]
    assert tokens.tolist()[1:] == [64, 0] and np.isfinite(values).tolist() == [True, True, False]
    assert "nothing of it fits" in reasons[2]
    ids, shortened = prompt_ids(asking.renderer, asking.prompt, [short, long], 64)
    assert shortened.tolist() == [False, True]
    text = asking.renderer.tokenizer.decode(ids[1])
    assert text.endswith("\n##Quality: ") and "Said: 7 7" in text and text.count("7") < 300


def test_the_query_may_be_cut_where_it_is_the_last_place() -> None:
    asking = asker("complexity", QUERY, max_tokens=40)
    values, status, tokens, _ = asking.ask([Exchange("Count to ten. " * 90, "x")], lambda tokens: None)
    assert status.tolist() == [code("truncated")] and tokens.tolist() == [40] and np.isfinite(values).all()


# --- prompts ---------------------------------------------------------------------------------------------


def test_braces_and_placeholders_in_a_row_are_its_own_text() -> None:
    text, begin, end = parsed(PAIR, "quality").text(Exchange("{response} {x}", "{instruction}"))
    assert text == "Ask: {response} {x}\nSaid: {instruction}\n##Quality: "
    assert text[begin:end] == "{instruction}"


def test_the_prompt_of_a_card_a_file_a_text_or_our_own(tmp_path: Path) -> None:
    card = 'Use it so:\n```\n    template = ("Rate it. \\n##Query: {instruction}  \\n##Complexity: ")\n```\n'
    (tmp_path / "README.md").write_text(card, encoding="utf-8")
    assert (
        prompt_of("card", "complexity", str(tmp_path))
        == "Rate it. \n##Query: {instruction}  \n##Complexity: "
    )
    file = tmp_path / "prompt.txt"
    file.write_bytes((QUERY + "\n").encode())
    assert prompt_of(str(file), "complexity", "m") == QUERY
    assert prompt_of(QUERY, "complexity", "m") == QUERY
    for aspect, mark in (("complexity", "##Complexity: "), ("quality", "##Quality: ")):
        assert parsed(prompt_of("plain", aspect, "m"), aspect).words[-1].endswith(mark)
    with pytest.raises(RequestError, match=r"no string with \{instruction\} and ##Quality:"):
        prompt_of("card", "quality", str(tmp_path))
    with pytest.raises(RequestError, match="expected 'card', 'plain'"):
        prompt_of("crad", "quality", "m")


@pytest.mark.parametrize(
    ("aspect", "text"),
    [
        ("quality", QUERY),
        ("complexity", PAIR),
        ("quality", "{response} {instruction}"),
        ("complexity", "Rate {instructions}\n##Complexity: "),
    ],
)
def test_prompts_that_cannot_be(aspect: str, text: str) -> None:
    with pytest.raises(RequestError, match="the scorer's prompt must have"):
        parsed(text, aspect)


# --- digits ----------------------------------------------------------------------------------------------


class Words:
    """A tokenizer of a few words, one id each."""

    unk_token_id = 0

    def __init__(self, *words: str) -> None:
        self.words = ["?", *words]

    def get_vocab(self) -> dict[str, int]:
        return {word: i for i, word in enumerate(self.words)}

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        return [self.words.index(text)] if text in self.words else [0, 0]


def test_bare_digits_first_then_those_after_a_space_and_never_a_mixture() -> None:
    bare, spaced = [str(d) for d in range(1, 7)], [f" {d}" for d in range(1, 7)]
    assert digit_tokens(Words(*spaced, *bare), "m").tolist() == [7, 8, 9, 10, 11, 12]
    assert digit_tokens(Words(*spaced, *bare[:5]), "m").tolist() == [1, 2, 3, 4, 5, 6]
    with pytest.raises(RequestError, match="no single token for the digits 6"):
        digit_tokens(Words(*bare[:5], *spaced[:5]), "m")
    with pytest.raises(RequestError, match="no single token for the digits 1, 2, 3, 4, 5, 6"):
        digit_tokens(Words("a"), "m")


def test_faults_are_named_before_any_work() -> None:
    for method, given, message in (
        (quality, {}, "--set quality.model=PATH_OR_ID"),
        (complexity, {}, "--set complexity.model=PATH_OR_ID"),
        (deita, {"complexity_model": str(NANO), "complexity_prompt": QUERY}, "--set deita.quality_model"),
        (quality, {"model": str(NANO)}, "the prompt that this scorer was tuned with is not known"),
    ):
        with pytest.raises(RequestError, match=message):
            method.prepare(method.Config(**given), context())
    for wrong in ({"turns": "last"}, {"score": "sum"}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            deita.Config(**wrong)


def test_what_is_stored_does_not_depend_on_how_turns_are_put_together() -> None:
    def recipe(turns: str, **given: Any) -> dict[str, Any]:
        return quality.prepare(
            quality.Config(model=str(NANO), prompt=PAIR, turns=turns), context(**given)
        ).recipe

    assert recipe("sum") == recipe("mean") != recipe("first")
    assert recipe("sum") != recipe("sum", max_tokens=77)
    one = deita.prepare(
        deita.Config(quality_model=str(NANO), quality_prompt=PAIR, score="quality"), context()
    )
    assert one.recipe == recipe("sum")
