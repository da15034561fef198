"""Hashed unigrams and bigrams of a row's text, weighted by tf-idf over the pool and compared by the cosine.

**Paper.** Features: Xie, Santurkar, Ma, Liang 2023, Data Selection for Language Models via Importance
Resampling, arXiv 2302.03169. Weights: Salton and Buckley 1988, Term-weighting approaches in automatic text
retrieval.
**Definition.** Text = contents of the messages joined by a newline, lower-cased, cut into runs of word
characters and runs of punctuation. An n-gram is 1 to n words that follow each other with nothing but space
between them. c_jb = number of n-grams of row j (words joined by one space) whose SHA-256, read as an integer,
is b modulo D. df_b = pool rows with c_jb > 0; idf_b = ln((1 + N) / (1 + df_b)) + 1;
w_jb = (1 + ln c_jb) idf_b; S_qj = <w_q, w_j> / (|w_q| |w_j|), with the pool's idf for the queries too.
**Needs.** Rows with text; no model and no deep-learning library.
**Gives.** Counts of b rows: `indptr` (b + 1,) int64; `indices` int32 (uint16 when D <= 65,536), ascending in
each row; `counts` uint16 (uint32 in a shard with a count above 65,535). S in [0, 1] float32, higher is
better.
**Cost.** Counting: O(text) time, the memory of one shard, no model pass. Comparing: for each pool row
m x (its n-grams that occur in a query) multiplications; one block of rows and the queries in memory.
**Departs.** (1) The released features are `tokens="dsir"`, where punctuation is a word like any other. The
default leaves out punctuation and single letters (of scripts with case), and n-grams do not reach over them:
they are layout more than content, and with them the mean over the queries of a multiple-choice target ranks
rows by how their options are marked. (2) Chinese, Japanese, Thai, Lao, Khmer and Burmese have no spaces, so
that a whole clause is one "word"; Korean words carry their particles. By default each character of these
scripts is a word, so that the bigrams are pairs of characters, as search engines index them. Text is brought
to NFC. (3) D = 2^20, released: 10,000. A rare n-gram that shares its bucket with common ones loses its idf.
In a pool of 86,115 rows with 1.36 million different n-grams, those of 5 to 850 rows make up most of their
bucket in 0.4 % of cases with 10,000 buckets, in 52 % with 2^18, in 90 % with 2^20, which costs nothing but
one number a bucket. (4) DSIR weighs a row by its likelihood ratio; here rows are compared with single
queries. (5) A long row is counted whole.
**Relations.** `tokens="dsir", buckets=10000` gives the features of DSIR. `n=1, weighting="binary"` is the
cosine of word sets.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tamis.core.method import Method
from tamis.core.status import code
from tamis.core.words import TOKENS, is_term, splitter
from tamis.representations._context import Context, Encoded
from tamis.representations._ngram_similarity import WEIGHTINGS, counts_matrix, similarity

if TYPE_CHECKING:
    from tamis.pools.pool import Message

__all__ = ["METHOD", "Config", "NgramEncoder", "bucket_of", "counts_matrix", "prepare", "similarity"]

_UINT16 = 1 << 16


@dataclass(frozen=True)
class Config:
    """`n`: largest order. `buckets`: D. `tokens`: "words", or "dsir" as released. `weighting` of the counts:
    "tfidf", "counts" or "binary". `sublinear`: 1 + ln c in place of c (without effect on "binary")."""

    n: int = 2
    buckets: int = 1 << 20
    tokens: str = "words"
    weighting: str = "tfidf"
    sublinear: bool = True

    def __post_init__(self) -> None:
        if self.n < 1:
            raise ValueError(f"n={self.n}: the largest order of the n-grams must be at least 1")
        if not 1 <= self.buckets <= 1 << 31:
            raise ValueError(f"buckets={self.buckets}: expected 1 to 2147483648")
        for key, known in (("tokens", TOKENS), ("weighting", WEIGHTINGS)):
            if getattr(self, key) not in known:
                raise ValueError(f"{key}={getattr(self, key)!r}: expected one of {', '.join(known)}")


class NgramEncoder:
    """Counts hashed n-grams; keeps nothing between runs of rows, so no shard depends on another."""

    flops_per_token = 0.0

    def __init__(self, config: Config) -> None:
        self.config = config
        self.dimensions = config.buckets
        self.execution: dict[str, Any] = {}
        self.recipe = {
            "n": config.n,
            "buckets": config.buckets,
            "tokens": config.tokens,
            "hash": "sha256",
            "unicode": unicodedata.unidata_version,  # decides what a word character is
        }

    def encode(self, conversations: Sequence[Sequence[Message]], advance: Callable[[int], None]) -> Encoded:
        """Counts of b rows (see the card); rows without an n-gram have the status `no_target_tokens`."""
        texts = ["\n".join(message.content for message in messages) for messages in conversations]
        lengths, tokens, words = _tokenised(texts, self.config.tokens)
        rows = np.repeat(np.arange(len(texts)), lengths)
        grams = _bucket_occurrences(rows, tokens, words, self.config)
        arrays = _compressed(*grams, len(texts), self.config.buckets)
        advance(int(lengths.sum()))
        counted = np.diff(arrays["indptr"]) > 0
        status = np.where(counted, code("ok"), code("no_target_tokens")).astype(np.uint8)
        return Encoded(arrays, status, lengths.astype(np.int32))


def prepare(config: Config, context: Context) -> NgramEncoder:
    """The encoder for `config`; nothing of the context matters, for no model is run."""
    return NgramEncoder(config)


def bucket_of(gram: str, buckets: int) -> int:
    """Bucket of one n-gram: SHA-256 of its UTF-8 text, big-endian, modulo `buckets`."""
    # Lone surrogates (a broken "\ud83d" in JSON) have no UTF-8 of their own; they are hashed as they stand.
    return int.from_bytes(hashlib.sha256(gram.encode("utf-8", "surrogatepass")).digest(), "big") % buckets


class _Vocabulary(dict[str, int]):
    """Numbers words in the order of their first use."""

    def __missing__(self, word: str) -> int:
        self[word] = number = len(self)
        return number


def _tokenised(texts: list[str], tokens: str) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Tokens of every text (b,), all tokens as numbers of words (t,), and the words."""
    split, number = splitter(tokens), _Vocabulary()
    lengths = np.zeros(len(texts), dtype=np.int64)
    found = []
    for i, text in enumerate(texts):
        cut = split(text)
        lengths[i] = len(cut)
        found.append(np.fromiter(map(number.__getitem__, cut), np.int64, len(cut)))
    return lengths, np.concatenate([*found, np.zeros(0, np.int64)]), list(number)


def _bucket_occurrences(
    rows: np.ndarray, tokens: np.ndarray, words: list[str], config: Config
) -> tuple[np.ndarray, np.ndarray]:
    """Row and bucket of every n-gram occurrence, order by order; each different n-gram is hashed once."""
    terms = np.array([is_term(word, config.tokens) for word in words], dtype=bool)[tokens]
    at = np.flatnonzero(terms)  # first tokens of the n-grams of the present order
    grams, texts = tokens[at], words  # number of the n-gram at each of them, and the n-grams by number
    found_rows, found_buckets = [], []
    for order in range(1, config.n + 1):
        if order > 1:
            last = at + order - 1
            grown = last < len(rows)
            first, last = at[grown], last[grown]
            grown[grown] = terms[last] & (rows[first] == rows[last])
            at = at[grown]
            pairs = grams[grown] * len(words) + tokens[at + order - 1]
            pairs, grams = np.unique(pairs, return_inverse=True)
            heads, tails = np.divmod(pairs, max(len(words), 1))
            texts = [f"{texts[i]} {words[j]}" for i, j in zip(heads.tolist(), tails.tolist(), strict=True)]
        buckets = np.array([bucket_of(text, config.buckets) for text in texts], dtype=np.int64)
        found_rows.append(rows[at])
        found_buckets.append(buckets[grams])
    return np.concatenate(found_rows), np.concatenate(found_buckets)


def _compressed(rows: np.ndarray, buckets: np.ndarray, b: int, dimensions: int) -> dict[str, np.ndarray]:
    """Occurrences as compressed sparse rows with ascending buckets."""
    cells, counts = np.unique(rows * dimensions + buckets, return_counts=True)
    of_row, indices = np.divmod(cells, dimensions)
    indptr = np.zeros(b + 1, dtype=np.int64)
    np.cumsum(np.bincount(of_row, minlength=b), out=indptr[1:])
    wide = counts.max(initial=0) >= _UINT16
    return {
        "indptr": indptr,
        "indices": indices.astype(np.uint16 if dimensions <= _UINT16 else np.int32),
        "counts": counts.astype(np.uint32 if wide else np.uint16),
    }


METHOD = Method("ngrams", prepare, Config, __doc__, compare=similarity)
