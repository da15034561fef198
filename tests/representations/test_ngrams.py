"""Hashed n-grams: counts by hand, against an obvious twin and the goldens; weights; streamed similarity."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import re
import unicodedata
from collections import Counter
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tamis.core import similarity as core
from tamis.core.errors import RequestError
from tamis.core.status import code
from tamis.core.words import splitter
from tamis.representations import _ngram_similarity as private
from tamis.representations._context import Context
from tamis.representations.ngrams import METHOD, Config, bucket_of, counts_matrix, prepare, similarity
from tests.conftest import shared


class Message(NamedTuple):
    role: str
    content: str


def encode(texts, config=None, shard_rows=None):
    """Shards of single-message rows."""
    encoder = prepare(config or Config(), Context())
    size = shard_rows or max(len(texts), 1)
    rows = [[Message("user", text)] for text in texts]
    return [encoder.encode(rows[i : i + size], lambda count: None) for i in range(0, len(rows), size)]


def arrays(texts, config=None, shard_rows=None):
    return [encoded.arrays for encoded in encode(texts, config, shard_rows)]


def by_row(shard):
    """[{bucket: count}] of a shard."""
    ends = shard["indptr"]
    return [
        dict(zip(shard["indices"][a:b].tolist(), shard["counts"][a:b].tolist(), strict=True))
        for a, b in itertools.pairwise(ends)
    ]


def full(similarity):
    """(m, n) of all blocks."""
    scores = np.zeros((similarity.m, similarity.n), np.float32)
    for start, block in similarity.blocks():
        scores[:, start : start + block.shape[1]] = block
    return scores


# --- by hand --------------------------------------------------------------------------------------------


def test_published_bucket_numbers():
    assert [bucket_of(gram, 10_000) for gram in ("the", "cat", "the cat")] == [8288, 2366, 143]


def test_counts_of_one_sentence():
    words = ["the", "cat", "the", "cat", "the cat", "the cat"]
    everything = [*words, ".", "cat .", ". the"]
    for tokens, grams in (("words", words), ("dsir", everything)):
        shard = arrays(["The cat. The CAT"], Config(buckets=10_000, tokens=tokens))[0]
        assert by_row(shard) == [Counter(bucket_of(gram, 10_000) for gram in grams)]
        assert shard["indices"].dtype == np.uint16 and shard["counts"].dtype == np.uint16


def test_how_options_are_marked_does_not_count():
    options = ["A. red\nB. old green", "- red\n- old green", "(a) red (b) old green", "✅ red\n_ old green;"]
    first, *others = by_row(arrays(options)[0])
    assert others == [first] * 3
    assert first == dict.fromkeys((bucket_of(g, 1 << 20) for g in ("red", "old", "green", "old green")), 1)


def test_a_single_letter_counts_where_it_is_a_word():
    shard = arrays(["x 5 y", "我", "и", "2"], Config(n=1))[0]
    assert by_row(shard) == [
        {bucket_of("5", 1 << 20): 1},
        {bucket_of("我", 1 << 20): 1},
        {},
        {bucket_of("2", 1 << 20): 1},
    ]


def test_tfidf_cosine_of_three_rows():
    config = Config(n=1)
    scores = full(
        similarity(
            arrays(["ant", "bee cow"], config), arrays(["ant bee", "ant ant bee", "cow"], config), config
        )
    )
    common, rare = math.log(4 / 3) + 1, math.log(4 / 2) + 1  # in 2 (ant and bee) and 1 (cow) of 3 rows
    twice = 1 + math.log(2)
    query_norm = math.hypot(common, rare)
    expected = [
        [1 / math.sqrt(2), twice / math.hypot(twice, 1), 0],
        [common / query_norm / math.sqrt(2), common / query_norm / math.hypot(twice, 1), rare / query_norm],
    ]
    np.testing.assert_allclose(scores, expected, atol=1e-7)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (Config(n=1, weighting="counts", sublinear=False), 2 / math.sqrt(5)),
        (Config(n=1, weighting="counts"), (1 + math.log(2)) / math.hypot(1 + math.log(2), 1)),
        (Config(n=1, weighting="binary"), 1 / math.sqrt(2)),
    ],
)
def test_other_weightings(config, expected):
    assert full(similarity(arrays(["ant"], config), arrays(["ant ant bee"], config), config))[
        0, 0
    ] == pytest.approx(expected, abs=1e-7)


def test_messages_are_joined_by_a_newline():
    encoder = prepare(Config(), Context())
    split = encoder.encode([[Message("user", "one"), Message("assistant", "two")]], lambda count: None)
    joined = encoder.encode([[Message("user", "one\ntwo")]], lambda count: None)
    assert by_row(split.arrays) == by_row(joined.arrays)
    assert bucket_of("one two", 1 << 20) in by_row(split.arrays)[0]


def test_scripts_without_spaces_are_cut_into_characters():
    assert splitter("words")("我爱你。Hello 世界") == ["我", "爱", "你", "。", "hello", "世", "界"]
    assert splitter("words")("한국은 abc") == ["한", "국", "은", "abc"]
    assert splitter("dsir")("我爱你。Hello 世界") == ["我爱你", "。", "hello", "世界"]


def test_equal_texts_have_equal_tokens():
    assert splitter("words")("cafe\u0301 x\u0323") == ["caf\u00e9", "x\u0323"]
    assert splitter("dsir")("cafe\u0301") == ["cafe\u0301"]
    assert splitter("words")("ก็") == ["ก็"] and splitter("words")("हिन्दी भाषा") == ["हिन्दी", "भाषा"]


def test_word_characters_are_those_of_the_released_code():
    # Its tokeniser stands on the `regex` package, whose \w and \s are Unicode's, not those of Python's `re`.
    regex = pytest.importorskip("regex")
    known = [chr(i) for i in range(0x110000) if unicodedata.category(chr(i)) not in ("Cn", "Cs")]
    for width in (1, 3):
        text = "".join(" " * (i % width == 0) + c for i, c in enumerate(known))
        assert splitter("dsir")(text) == regex.findall(r"\w+|[^\w\s]+", text.lower())


# --- an obvious twin ------------------------------------------------------------------------------------


SPACE = "\t\n\v\f\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(map(chr, range(0x2000, 0x200B)))


def kind(character):
    if character in SPACE:
        return "space"
    category = unicodedata.category(character)
    word = category[0] in "LM" or category in ("Nl", "Nd", "Pc") or character in "\u200c\u200d"
    # Enclosed letters are Alphabetic although their category is symbol.
    enclosed = (
        category == "So"
        and character < "\U0001f18a"
        and re.search(r"(CIRCLED|SQUARED) LATIN .* LETTER .$", unicodedata.name(character))
    )
    return "word" if word or enclosed else "punctuation"


def runs(text):
    groups = itertools.groupby(text.lower(), kind)
    return ["".join(characters) for name, characters in groups if name != "space"]


def twin(text, n, buckets):
    tokens = runs(text)
    counts: Counter[int] = Counter()
    for order in range(1, n + 1):
        for i in range(len(tokens) - order + 1):
            gram = " ".join(tokens[i : i + order]).encode("utf-8", "surrogatepass")
            counts[int(hashlib.sha256(gram).hexdigest(), 16) % buckets] += 1
    return counts


words = st.text("ab .é한我\u0301😀‍\n", max_size=12)
unicode_texts = st.lists(st.one_of(words, st.text(max_size=20)), max_size=8)


@given(unicode_texts, st.integers(1, 4), st.sampled_from([1, 7, 500, 10_000, 70_000, 1 << 31]))
@settings(max_examples=150, deadline=None)
@example(["a", "", "b c"], 3, 10_000)
def test_counts_equal_the_twin(texts, n, buckets):
    for encoded in encode(texts, Config(n=n, buckets=buckets, tokens="dsir")):
        assert by_row(encoded.arrays) == [twin(text, n, buckets) for text in texts]
        assert encoded.tokens.tolist() == [len(runs(text)) for text in texts]
        ends, indices = encoded.arrays["indptr"], encoded.arrays["indices"].astype(np.int64)
        assert all((np.diff(indices[a:b]) > 0).all() for a, b in itertools.pairwise(ends))


BY_CHARACTER = (
    "CJK UNIFIED",
    "HIRAGANA",
    "KATAKANA",
    "HANGUL SYLLABLE",
    "THAI",
    "LAO",
    "KHMER",
    "MYANMAR",
    "BOPOMOFO",
    "CJK COMPATIBILITY",
    "HALFWIDTH KATAKANA",
    "HENTAIGANA",
    "IDEOGRAPHIC",
)


def pieces(run):
    """A run of word characters cut around each character of scripts without words, which keeps its marks."""
    cut = []
    alone = False
    for character in run:
        mark = unicodedata.category(character)[0] == "M"
        single = character.isalnum() and unicodedata.name(character, "").startswith(BY_CHARACTER)
        if cut and (mark if alone else not single):
            cut[-1] += character
        else:
            cut.append(character)
            alone = single
    return cut


def words_twin(text, n):
    """n-grams of the default, cut from phrases between what is left out."""
    phrases = [[]]
    for run in runs(unicodedata.normalize("NFC", text.lower())):
        for token in pieces(run) if kind(run[0]) == "word" else [run]:
            letter = len(token) == 1 and token.islower() and unicodedata.category(token) == "Ll"
            if letter or not any(character.isalnum() for character in token):
                phrases.append([])
            else:
                phrases[-1].append(token)
    grams = [
        " ".join(phrase[i : i + order])
        for phrase in phrases
        for order in range(1, n + 1)
        for i in range(len(phrase) - order + 1)
    ]
    return Counter(bucket_of(gram, 1 << 20) for gram in grams)


mixed = st.text(st.sampled_from("ab5 _-.éßи我あ한กิ็\u0301\u200d😀²ｱ\n"), max_size=25)


@given(st.lists(st.one_of(mixed, st.text(max_size=12)), max_size=5), st.integers(1, 4))
@settings(max_examples=300, deadline=None)
def test_default_counts_equal_the_twin(texts, n):
    for shard in arrays(texts, Config(n=n)):
        assert by_row(shard) == [words_twin(text, n) for text in texts]


@given(st.text(st.characters(max_codepoint=127)))
def test_both_tokenisations_agree_on_ascii(text):
    assert splitter("words")(text) == splitter("dsir")(text)


@given(st.text())
@settings(max_examples=300, deadline=None)
def test_words_lose_nothing_but_space(text):
    kept = [character for character in unicodedata.normalize("NFC", text.lower()) if character not in SPACE]
    assert "".join(splitter("words")(text)) == "".join(kept)


@given(unicode_texts, unicode_texts, st.sampled_from(["tfidf", "counts", "binary"]), st.booleans())
@settings(max_examples=80, deadline=None)
def test_similarity_equals_dense_computation(queries, pool, weighting, sublinear):
    config = Config(buckets=500, weighting=weighting, sublinear=sublinear)
    if not queries:
        with pytest.raises(RequestError, match="no rows"):
            similarity(arrays(queries, config), arrays(pool, config), config)
        return
    dense = [
        np.array([[row.get(b, 0) for b in range(500)] for s in arrays(t, config) for row in by_row(s)])
        for t in (queries, pool)
    ]
    q, p = (part.reshape(-1, 500).astype(float) for part in dense)
    idf = np.log((1 + len(p)) / (1 + (p > 0).sum(0))) + 1 if weighting == "tfidf" else np.ones(500)
    weights = []
    for part in (q, p):
        if weighting == "binary":
            part = (part > 0).astype(float)
        elif sublinear:
            part = np.where(part > 0, 1 + np.log(np.maximum(part, 1)), 0)
        norm = np.linalg.norm(part * idf, axis=1, keepdims=True)
        weights.append(part * idf / np.where(norm > 0, norm, 1))
    found = similarity(arrays(queries, config, 3), arrays(pool, config, 3), config)
    np.testing.assert_allclose(full(found), weights[0] @ weights[1].T, atol=2e-6)
    np.testing.assert_array_equal(found.usable, (p > 0).any(1))


# --- invariance -----------------------------------------------------------------------------------------

TEXTS = ["the cat sat", "on the mat", "我爱你", "", "the the the cat", "δοκιμή 1 2 3", "mat cat", "x" * 50]


@pytest.mark.parametrize("shard_rows", [1, 3, 5, 8])
def test_shards_do_not_change_a_bit(shard_rows):
    config = Config(buckets=1000)
    whole = full(similarity(arrays(TEXTS[:3], config), arrays(TEXTS, config), config))
    parts = similarity(arrays(TEXTS[:3], config, 1), arrays(TEXTS, config, shard_rows), config)
    np.testing.assert_array_equal(full(parts), whole)


def test_row_order_permutes_the_columns():
    config = Config()
    order = np.array([3, 1, 7, 0, 2, 6, 5, 4])
    before = full(similarity(arrays(TEXTS[:2], config), arrays(TEXTS, config), config))
    shuffled = arrays([TEXTS[i] for i in order], config)
    after = full(similarity(arrays(TEXTS[:2], config), shuffled, config))
    np.testing.assert_array_equal(after, before[:, order])


def test_query_groups_and_row_blocks_do_not_change_a_bit(monkeypatch):
    config = Config()
    pool = [f"{i % 7} row {i % 13} of {'many ' * (i % 5)}" for i in range(300)]
    queries = arrays(pool[:20], config)
    whole = full(similarity(queries, arrays(pool, config), config))
    monkeypatch.setattr(private, "_QUERY_BYTES", 4 * 3 * 40)  # a few queries at a time
    monkeypatch.setattr(private, "BLOCK_BYTES", 0)  # 64 rows at a time
    cut = similarity(queries, arrays(pool, config, 150), config)
    assert len(cut.groups) > 3 and sum(1 for _ in cut.blocks()) == 6
    np.testing.assert_array_equal(full(cut), whole)


def test_columns_equal_the_blocks_and_restrict_only_hides():
    config = Config()
    found = similarity(arrays(TEXTS[:2], config), arrays(TEXTS, config, 3), config)
    assert isinstance(found, core.Similarity)
    positions = np.array([7, 0, 4, 0, 3])
    np.testing.assert_array_equal(found.columns(positions), full(found)[:, positions])
    assert found.columns(np.array([], int)).shape == (2, 0)
    rows = found.vectors.take(positions)
    np.testing.assert_allclose((rows @ rows.T).toarray().diagonal(), [1, 1, 1, 1, 0], atol=1e-6)
    everything = found.vectors.take(np.arange(found.n)).toarray()
    np.testing.assert_array_equal(rows.toarray(), everything[positions])
    mask = np.arange(8) < 3
    restricted = found.restrict(mask)
    np.testing.assert_array_equal(restricted.usable, found.usable & mask)
    assert [start for start, _ in restricted.blocks()] == [0]


# --- goldens --------------------------------------------------------------------------------------------


def golden_counts(file_name, config):
    """Counts (n, D) of a golden file's rows."""
    with open(shared(f"golden/{file_name}"), encoding="utf-8", newline="\n") as file:
        rows = [[Message(m["role"], m["content"]) for m in json.loads(line)["messages"]] for line in file]
    return counts_matrix([prepare(config, Context()).encode(rows, lambda count: None).arrays], config)


@pytest.mark.parametrize(("name", "n", "buckets"), [("default", 2, 10_000), ("tri_smooth", 3, 500)])
def test_counts_of_the_released_code(name, n, buckets):
    golden = np.load(shared("golden/dsir.npz"), allow_pickle=False)
    pool = golden_counts("pool.jsonl", Config(n=n, buckets=buckets, tokens="dsir"))
    listed = pool[: golden[f"{name}.counts_row"].max() + 1].tocoo()
    np.testing.assert_array_equal(listed.row, golden[f"{name}.counts_row"])
    np.testing.assert_array_equal(listed.col, golden[f"{name}.counts_bucket"])
    np.testing.assert_array_equal(listed.data, golden[f"{name}.counts_value"])
    # Of the other rows the counts are not listed, but what was made of them is.
    totals = pool.sum(axis=1)
    np.testing.assert_array_equal((totals + n * (n - 1) / 2) // n, golden[f"{name}.n_words"])
    np.testing.assert_array_equal(pool.sum(axis=0) / totals.sum(), golden[f"{name}.raw_probs"])
    weights = pool @ golden[f"{name}.log_diff"]
    np.testing.assert_allclose(weights, golden[f"{name}.log_importance_weights"], rtol=1e-6)
    pseudo_count = 1 if name == "tri_smooth" else 0
    target = (
        golden_counts("query.jsonl", Config(n=n, buckets=buckets, tokens="dsir")).sum(axis=0) + pseudo_count
    )
    np.testing.assert_array_equal(target / target.sum(), golden[f"{name}.target_probs"])


# --- edges ----------------------------------------------------------------------------------------------


def test_rows_without_an_ngram_are_not_scored():
    encoded = encode(["", " \n\t", "ant", "?! 😀 b)"])[0]
    bad = code("no_target_tokens")
    assert encoded.status.tolist() == [bad, bad, code("ok"), bad] and encoded.status.dtype == np.uint8
    assert encoded.tokens.tolist() == [0, 0, 1, 4]
    found = similarity(arrays(["ant"]), [encoded.arrays], Config())
    assert found.usable.tolist() == [False, False, True, False]
    np.testing.assert_array_equal(full(found), [[0, 0, 1, 0]])
    assert not list(similarity(arrays(["ant"]), arrays(["", ""]), Config()).blocks())


def test_no_rows_at_all():
    encoded = prepare(Config(), Context()).encode([], lambda count: None)
    assert encoded.arrays["indptr"].tolist() == [0] and not len(encoded.status)
    assert similarity(arrays(["ant"]), [encoded.arrays], Config()).n == 0


def test_emoji_and_broken_surrogates_are_counted():
    shard = arrays(["👩‍👩‍👧 ok", "\ud83d broken"], Config(tokens="dsir"))[0]
    assert [sum(row.values()) for row in by_row(shard)] == [11, 3]  # 6 tokens: joiners are word characters


def test_a_very_long_row_widens_the_counts():
    shard = arrays(["zoo " * 70_000, "zoo"], Config(n=1))[0]
    assert by_row(shard) == [{bucket_of("zoo", 1 << 20): 70_000}, {bucket_of("zoo", 1 << 20): 1}]
    assert shard["counts"].dtype == np.uint32


def test_document_frequencies_count_rows_not_occurrences():
    frequencies = private.document_frequencies(arrays(["aa aa", "aa bb", "cc"], Config(n=1), 2), 1 << 20)
    assert [int(frequencies[bucket_of(word, 1 << 20)]) for word in ("aa", "bb", "cc", "dd")] == [2, 1, 1, 0]
    assert private.inverse_frequencies(np.array([3, 0]), 3).tolist() == [1, 1 + math.log(4)]


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"n": 0}, "n=0"),
        ({"buckets": 0}, "buckets=0"),
        ({"buckets": 1 << 32}, "buckets=4294967296"),
        ({"tokens": "bytes"}, "tokens='bytes': expected one of words, dsir"),
        ({"weighting": "bm25"}, "weighting='bm25'"),
        ({"bukets": 5}, "bukets"),
    ],
)
def test_wrong_parameters_are_refused(parameters, message):
    with pytest.raises(RequestError, match=re.escape(message)):
        METHOD.configure(parameters)


def test_progress_and_recipe():
    seen = []
    encoder = prepare(Config(n=3), Context(device="cuda", batch_tokens=5))
    encoder.encode([[Message("user", "a b")], [Message("user", "c")]], seen.append)
    assert sum(seen) == 3 and encoder.dimensions == 1 << 20 and encoder.flops_per_token == 0
    assert encoder.recipe == prepare(Config(n=3), Context()).recipe
    assert encoder.recipe != prepare(Config(n=2), Context()).recipe
