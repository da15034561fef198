"""The vector of a sentence encoder for a row's text.

**Paper.** Ivison, Zhang, Brahman, Koh, Dasigi 2025, Large-Scale Data Selection for Instruction Tuning,
arXiv 2503.01807 (baseline "Embed": GTR-base and NV-Embed-v2); encoders: Reimers and Gurevych 2019, arXiv
1908.10084.
**Definition.** v = e / max(|e|, 1e-12), with e = what the encoder gives for prefix + text. `text`:
"conversation", the released form: every turn under its tag `<|role|>`, no special tokens;
"conversation-eos", that of Nayak et al. 2026 (arXiv 2602.14696): BOS and EOS of the encoder's tokenizer are
kept in the pool's rows, and a space precedes the label of a query; "contents": the contents alone.
**Needs.** A sentence-transformers model, `--set embed.encoder=PATH_OR_ID` (`--model` is the language model
and is not used); rows with text. Query rows are prompt and label under `query_prefix`.
**Gives.** vectors (n, d) of length 1; float32 when the encoder runs in float32, else float16; compared by the
cosine, higher is better. A text longer than the encoder reads, or than `max_tokens`, is cut on the right and
`truncated`; a row whose contents are blank is `no_target_tokens`.
**Cost.** One pass through the encoder, about 2 P operations a token for P parameters; memory of one batch of
tokens; n x d x 2 or 4 bytes kept.
**Departs.** Texts are made from the messages, not by decoding token ids of a language model, so nothing is
lost before the encoder's own limit; equal on the published rows. No prefix by default: the released code
gives NV-Embed's to its queries alone, the later one also to GTR's, which was not trained with it;
`query_prefix="instruct"` is that text. A prompt that the model's files set by default is not used.
**Relations.** The vectors depend on no base model: one subset serves all. With the language model's own
hidden states in place of an encoder it is `rds`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from tamis.core.errors import RequestError
from tamis.core.method import Method
from tamis.core.status import code
from tamis.core.vectors import unit
from tamis.models.encoder import SentenceEncoder
from tamis.representations._context import Context, Encoded
from tamis.representations._embed_texts import INSTRUCTION, TEXTS, texts_of

if TYPE_CHECKING:
    from tamis.pools.pool import Message

PREFIXES = {"instruct": INSTRUCTION}
"""Prefixes by name; any other text stands for itself."""


@dataclass(frozen=True)
class Config:
    """`encoder`: folder or hub id. `text`: "conversation", "conversation-eos" or "contents". `query_prefix`,
    `pool_prefix`: text in front of every row of that side, or "instruct". `max_tokens`: a limit below the
    encoder's own, prefix included; 0 for its own."""

    encoder: str = ""
    text: str = "conversation"
    query_prefix: str = ""
    pool_prefix: str = ""
    max_tokens: int = 0

    def __post_init__(self) -> None:
        if self.text not in TEXTS:
            raise ValueError(f"text={self.text!r}: expected one of {', '.join(TEXTS)}")
        if self.max_tokens < 0:
            raise ValueError(f"max_tokens={self.max_tokens}: expected 1 or more, or 0 for the encoder's own")

    def prefix(self, role: str) -> str:
        """What stands in front of the rows of this side."""
        given = self.query_prefix if role == "query" else self.pool_prefix
        return PREFIXES.get(given, given)


class EmbedEncoder:
    """Writes the texts of rows and encodes them."""

    def __init__(self, config: Config, context: Context) -> None:
        if not config.encoder:
            raise RequestError("embed needs a sentence encoder: give --set embed.encoder=PATH_OR_ID")
        self.config = config
        self.context = context
        self.prefix = config.prefix(context.role)
        self._encoder = SentenceEncoder(
            config.encoder, context.dtype, context.device, context.remote_code, config.max_tokens
        )
        self.dtype = np.float32 if self._encoder.dtype == "float32" else np.float16
        self._mean_tokens = 0.0

    @cached_property
    def recipe(self) -> dict[str, Any]:
        """Files of the encoder, text, prefix and dtype; no path, no device and no batching."""
        return {
            "encoder": self._encoder.fingerprint,
            "text": self.config.text,
            "role": self.context.role,
            "prefix": self.prefix,
            "max_tokens": self._encoder.limit,
            "model_dtype": self._encoder.dtype,
            "dtype": np.dtype(self.dtype).name,
        }

    @property
    def dimensions(self) -> int:
        return self._encoder.width

    @property
    def flops_per_token(self) -> float:
        """Operations of one token, at the mean length of the rows encoded so far."""
        return self._encoder.forward_flops(self._mean_tokens)

    @property
    def execution(self) -> dict[str, Any]:
        return {
            "encoder": self.config.encoder,
            "device": self._encoder.device,
            "dtype": self._encoder.dtype,
            "max_tokens": self._encoder.limit,
        }

    def texts(self, conversations: Sequence[Sequence[Message]]) -> list[str]:
        """What the encoder reads of rows, without the prefix; "" for a row without text."""
        bos = eos = ""
        if self.config.text == "conversation-eos":
            special = self._encoder.tokenizer
            bos, eos = special.bos_token or "", special.eos_token or ""
        return texts_of(self.config.text, conversations, self.context.role, bos, eos)

    def count_tokens(self, conversations: Sequence[Sequence[Message]]) -> list[int]:
        """Tokens of each row after truncation, prefix and special tokens included."""
        full = self._encoder.count([self.prefix + text for text in self.texts(conversations)])
        return [int(count) for count in np.minimum(full, self._encoder.limit)]

    def encode(self, conversations: Sequence[Sequence[Message]], advance: Callable[[int], None]) -> Encoded:
        """Vectors (b, d) of rows; those not scored are zero."""
        texts = self.texts(conversations)
        full = self._encoder.count([self.prefix + text for text in texts])
        written = np.array([bool(text) for text in texts], dtype=bool)
        tokens = np.where(written, np.minimum(full, self._encoder.limit), 0).astype(np.int32)
        status = np.where(full > self._encoder.limit, code("truncated"), code("ok")).astype(np.uint8)
        status[~written] = code("no_target_tokens")
        vectors = np.zeros((len(texts), self.dimensions), dtype=self.dtype)
        reasons: dict[int, str] = {}
        rows = np.flatnonzero(written)
        if len(rows):
            self._mean_tokens = float(tokens[rows].mean())
            found = self._encoder.encode(
                [texts[i] for i in rows], self.prefix, tokens[rows], self.context.batch_tokens, advance
            )
            finite = np.isfinite(found).all(axis=1)
            vectors[rows[finite]] = unit(found[finite])
            failed = self._encoder.failed
            for k in np.flatnonzero(~finite):
                row = int(rows[k])
                status[row] = code("failed" if int(k) in failed else "non_finite")
                reasons[row] = failed.get(int(k), "the encoder gave a number that is not finite")
        return Encoded({"vectors": vectors}, status, tokens, reasons)


def prepare(config: Config, context: Context) -> EmbedEncoder:
    """The encoder for `config`; raises RequestError when there is none at its path."""
    return EmbedEncoder(config, context)


METHOD = Method("embed", prepare, Config, __doc__ or "", needs=("encoder",), paths=("encoder",))
