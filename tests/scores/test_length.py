"""Length of responses: units and turns by hand, and what is not scored."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tamis.core.errors import RequestError
from tamis.core.status import code, words
from tamis.representations._context import Context
from tamis.scores import SCORES
from tamis.scores.length import METHOD, Config, LengthScorer, prepare
from tests.conftest import shared


class Message(NamedTuple):
    role: str
    content: str


def row(*answers):
    """A conversation with a user turn before each answer."""
    return [
        m for answer in answers for m in (Message("user", "a long question"), Message("assistant", answer))
    ]


def score(rows, model=None, **parameters):
    scorer = METHOD.run(METHOD.configure(parameters), Context(model=model))
    return scorer.score(rows, lambda tokens: None)


@pytest.fixture(scope="session")
def whitespace_model(tmp_path_factory):
    """A model folder whose tokenizer makes one token of each word, and adds special tokens by itself."""
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    tokenizer = Tokenizer(models.WordLevel({"<s>": 0, "</s>": 1, "<unk>": 2}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A </s>", None, [("<s>", 0), ("</s>", 1)])
    folder = tmp_path_factory.mktemp("whitespace")
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    return str(folder)


def test_characters_and_tokens_rank_differently(whitespace_model):
    """T3."""
    rows = [row("a" * 20), row("a b c d e")]
    assert score(rows, whitespace_model).values.tolist() == [1, 5]
    assert score(rows, unit="chars").values.tolist() == [20, 9]
    assert score(rows, unit="words").values.tolist() == [1, 5]


def test_turns_are_summed_or_the_first_is_taken():
    rows = [row("one two", "three"), [Message("assistant", "one"), Message("user", "x"), *row("two")]]
    assert score(rows, unit="words").values.tolist() == [3, 2]
    assert score(rows, unit="words", turns="first").values.tolist() == [2, 1]


def test_what_is_not_scored():
    rows = [
        row(""),
        row(" \n\u00a0"),
        [Message("user", "only a question")],
        row("", "answer"),
        [],
        row("\u3042"),
    ]
    for turns, fourth in (("all", "ok"), ("first", "empty_response")):
        scored = score(rows, unit="chars", turns=turns)
        expected = ["empty_response"] * 2 + ["no_target_tokens", fourth, "no_target_tokens", "ok"]
        assert words(scored.status).tolist() == expected
        np.testing.assert_array_equal(np.isnan(scored.values), scored.status != code("ok"))
        assert scored.values[5] == 1 and scored.tokens.tolist() == [-1] * 6
    assert score([], unit="chars").values.shape == (0,)


def test_white_space_around_a_response_does_not_count():
    assert score([row("  a b \n\n")], unit="chars").values.tolist() == [3]


@given(st.lists(st.lists(st.text(max_size=6), max_size=4), max_size=6))
def test_all_turns_are_the_sum_of_single_turns(rows):
    scored = score([row(*answers) for answers in rows], unit="chars")
    single = [sum(len(answer.strip()) for answer in answers) for answers in rows]
    np.testing.assert_array_equal(np.nan_to_num(scored.values), single)


@given(st.permutations(list(range(5))))
def test_row_order_permutes_the_scores(order):
    rows = [row("a"), row(""), row("b c", "d"), [], row("eeee")]
    before, after = (score(r, unit="chars") for r in (rows, [rows[i] for i in order]))
    np.testing.assert_array_equal(after.values, before.values[order])
    np.testing.assert_array_equal(after.status, before.status[order])


def test_tokens_of_a_real_tokenizer_without_special_tokens_and_truncation():
    transformers = pytest.importorskip("transformers")
    model = str(shared("golden/model"))
    texts = ["Hello there.", "我爱你 👩‍🚀", "long words " * 3000, "half \ud83d a pair"]
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    expected = [
        len(tokenizer(text.strip().replace("\ud83d", "?"), add_special_tokens=False)["input_ids"])
        for text in texts
    ]
    assert expected[2] > 2048
    assert score([row(text) for text in texts], model).values.tolist() == expected


def test_tokens_need_a_model():
    with pytest.raises(RequestError, match=r"--model .* --set length.unit=chars"):
        prepare(Config(), Context())
    prepare(Config(unit="words"), Context())


def test_wrong_parameters_are_refused():
    with pytest.raises(RequestError, match="unit='bytes': expected one of tokens, chars, words"):
        METHOD.configure({"unit": "bytes"})
    with pytest.raises(RequestError, match="turns='last'"):
        METHOD.configure({"turns": "last"})


def test_the_recipe_names_what_decides():
    recipes = [
        LengthScorer(Config(unit, turns), list, tokenizer).recipe
        for unit in ("tokens", "chars")
        for turns in ("all", "first")
        for tokenizer in ("a", "b")
    ]
    assert len({str(recipe) for recipe in recipes}) == 8
    assert "length" in SCORES
