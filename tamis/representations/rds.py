"""Position-weighted mean of a language model's last hidden states (RDS+), its four ablations, and Cherry's.

**Paper.** Ivison, Zhang, Brahman, Koh, Dasigi 2025, Large-Scale Data Selection for Instruction Tuning, arXiv
2503.01807 (§3 and Table 9); after Hanawa, Yokoi, Hara, Inui 2021, arXiv 2006.04528.
**Definition.** h_1..h_L = hidden states after the final norm of all L tokens of the rendered conversation,
prompt included; w_i = i / (L (L + 1) / 2); e = sum_i w_i h_i; v = e / max(|e|, 1e-12). `rds-mean`: w_i = 1 /
L. `rds-eos`: the last token alone, which is not EOS when the row was truncated. `rds-prompt`: weights of
`rds` over the leading system turn, the first user turn and EOS; `rds-label`: over the assistant header, the
first answer and its end of turn. `prompt-mean` (Li et al. 2023, arXiv 2308.12032): 1 / L over all before the
first answer, assistant header included, and v = e, not scaled.
**Needs.** A causal language model; rows with messages. Query rows (role "query") are prompt and label
tokenised apart (T§1.4); for `rds-prompt` the prompt without the assistant header and EOS, for `rds-label` the
label.
**Gives.** vectors (n, d) of length 1 (not `prompt-mean`), d = model width; float32 when the model runs in
float32, else float16; compared by the inner product, which is the cosine at length 1, higher is better.
**Cost.** One pass through the body of the model, about 2 P operations a token for P parameters, no LM head;
memory of one batch of tokens; n x d x 2 bytes kept.
**Departs.** Weights and sums in float32 in every variant (the released code takes the uniform mean in the
model's dtype). Rows are batched; the released code is right at batch size 1 only. A row whose label is cut
off has a vector all the same, as there. A tool turn is part of the conversation.
**Relations.** `rds-eos` is the plain RDS of Xia et al. 2024 (arXiv 2402.04333). A row of one token has the
same vector under `rds`, `rds-mean` and `rds-eos`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np

from tamis.core.errors import RequestError
from tamis.core.method import Method
from tamis.core.status import code
from tamis.models.lm import load_model, shared_model
from tamis.models.render import Rendered, Renderer
from tamis.representations._context import Context, Encoded
from tamis.representations._rds_parts import render_part

if TYPE_CHECKING:
    from tamis.models.packing import Executor
    from tamis.pools.pool import Message

_EPS = 1e-12


@dataclass(frozen=True)
class Config:
    """No parameters: model, template, length and dtype are settings of the run."""


def position_weights(length: int) -> np.ndarray:
    """i / (1 + … + L) for i = 1..L, (L,) float32."""
    return np.arange(1, length + 1, dtype=np.float32) / np.float32(length * (length + 1) / 2)


def uniform_weights(length: int) -> np.ndarray:
    """1 / L, (L,) float32."""
    return np.full(length, 1 / length, dtype=np.float32)


def last_weights(length: int) -> np.ndarray:
    """One for the last token, else zero, (L,) float32."""
    weights = np.zeros(length, dtype=np.float32)
    weights[-1] = 1
    return weights


def unit(vectors: np.ndarray) -> np.ndarray:
    """Rows (n, d) brought to length 1, float32; a row of zeros stays."""
    norms = np.sqrt(np.einsum("nd,nd->n", vectors, vectors, dtype=np.float64))
    scaled: np.ndarray = (vectors / np.maximum(norms, _EPS)[:, None]).astype(np.float32)
    return scaled


@dataclass(frozen=True)
class Variant:
    """One of the family: `part` of the row that is rendered, and the weights of its L tokens."""

    name: str
    about: str
    part: str  # whole, prompt, label or before
    weights: Callable[[int], np.ndarray]
    scaled: bool = True  # to length 1


class RdsEncoder:
    """Renders rows and pools their hidden states. The weights are loaded when the first rows come."""

    def __init__(self, variant: Variant, context: Context) -> None:
        if context.model is None:
            raise RequestError(f"{variant.name} needs a model: give --model PATH_OR_ID")
        self.variant = variant
        self.context = context
        self._described = load_model(
            context.model, context.dtype, context.device, context.remote_code, tokenizer_only=True
        )
        self.renderer = Renderer(self._described.tokenizer, context.template, context.max_tokens)
        self.dimensions = self._described.width
        self.dtype = np.float32 if self._described.dtype == "float32" else np.float16
        self._mean_tokens = 0.0

    @cached_property
    def recipe(self) -> dict[str, Any]:
        """Weights, text, part, pooling and dtype; no device and no batching."""
        return {
            "model": self._described.fingerprint,
            "renderer": {**self.renderer.recipe, "role": self.context.role},
            "part": self.variant.part,
            "pooling": self.variant.name,
            "model_dtype": self._described.dtype,
            "dtype": np.dtype(self.dtype).name,
        }

    @property
    def flops_per_token(self) -> float:
        """Operations of one token, at the mean length of the rows encoded so far."""
        return self._described.forward_flops(self._mean_tokens)

    @property
    def execution(self) -> dict[str, Any]:
        """Device and dtype; once rows were encoded, also how they were batched and why so."""
        found: dict[str, Any] = {"device": self._described.device, "dtype": self._described.dtype}
        if "_executor" in self.__dict__:
            run = self._executor
            found |= {"mode": run.mode, "why": run.why, "batch_tokens": run.batch_tokens}
        return found

    @property
    def warnings(self) -> list[str]:
        """What a user should know before rows are encoded."""
        text = self._described.config.get_text_config()
        limit = getattr(text, "max_position_embeddings", None)
        if limit is None or self.context.max_tokens <= limit:
            return []
        return [
            f"--max-tokens {self.context.max_tokens} is more than the {limit} positions that "
            f"{self.context.model} was made for; longer rows are encoded beyond them"
        ]

    def render(self, conversations: Sequence[Sequence[Message]]) -> list[Rendered]:
        """The rows as the model sees them."""
        return render_part(self.renderer, self.variant.part, self.context.role, conversations)

    def count_tokens(self, conversations: Sequence[Sequence[Message]]) -> list[int]:
        """Tokens of each row after truncation; 0 for a row that is refused."""
        return [len(row.ids) for row in self.render(conversations)]

    def encode(self, conversations: Sequence[Sequence[Message]], advance: Callable[[int], None]) -> Encoded:
        """Vectors (b, d) of rows; those not scored are zero."""
        rendered = self.render(conversations)
        tokens = np.array([len(row.ids) for row in rendered], dtype=np.int32)
        status = np.array([code(_status(row)) for row in rendered], dtype=np.uint8)
        reasons = {i: row.reason for i, row in enumerate(rendered) if row.reason}
        limit = self._executor.lm.learned_positions if len(rendered) else None
        if limit is not None:
            self._executor.lm.check_positions(self.context.max_tokens)
            for i in np.flatnonzero(tokens > limit):
                status[i] = code("too_long")
                reasons[int(i)] = f"{tokens[i]} tokens; the model's table of positions ends at {limit}"
        vectors = np.zeros((len(rendered), self.dimensions), dtype=self.dtype)
        rows = np.flatnonzero(status <= code("truncated"))
        if len(rows):
            self._mean_tokens = float(tokens[rows].mean())
            self._pool(rendered, rows, advance, vectors, status, reasons)
        return Encoded({"vectors": vectors}, status, tokens, reasons)

    def _pool(
        self,
        rendered: list[Rendered],
        rows: np.ndarray,
        advance: Callable[[int], None],
        vectors: np.ndarray,
        status: np.ndarray,
        reasons: dict[int, str],
    ) -> None:
        """Fill `vectors` for `rows`; rows that fail or are not finite get their status."""
        sums = self._executor.weighted_sums([rendered[i].ids for i in rows], self.variant.weights, advance)
        failed = self._executor.failed
        finite = np.isfinite(sums).all(axis=1)
        vectors[rows[finite]] = unit(sums[finite]) if self.variant.scaled else sums[finite]
        for k in np.flatnonzero(~finite):
            i = int(rows[k])
            status[i] = code("failed" if int(k) in failed else "non_finite")
            reasons[i] = failed.get(int(k), "a hidden state is not a finite number")

    @cached_property
    def _executor(self) -> Executor:
        from tamis.models.packing import executor_for

        context = self.context
        lm = shared_model(str(context.model), context.dtype, context.device, context.remote_code)
        return executor_for(lm, context.batch_tokens)


def _status(row: Rendered) -> str:
    """Pooling ignores labels, so a row without targets is scored; one without tokens is not."""
    if row.status == "refused":
        return "refused"
    if not len(row.ids):
        return "no_target_tokens"
    return "truncated" if row.truncated else "ok"


VARIANTS = (
    Variant("rds", "Position-weighted mean of all last hidden states (RDS+).", "whole", position_weights),
    Variant("rds-eos", "The last hidden state of the row's last token.", "whole", last_weights),
    Variant("rds-mean", "Uniform mean of all last hidden states.", "whole", uniform_weights),
    Variant("rds-prompt", "Position-weighted mean over the prompt alone.", "prompt", position_weights),
    Variant("rds-label", "Position-weighted mean over the first answer alone.", "label", position_weights),
    Variant("prompt-mean", "Uniform mean over the prompt, not scaled.", "before", uniform_weights, False),
)


def _run(variant: Variant, config: Config, context: Context) -> RdsEncoder:
    return RdsEncoder(variant, context)


_CARD = (__doc__ or "").partition("\n\n")[2]

METHODS = tuple(
    Method(variant.name, partial(_run, variant), Config, f"{variant.about}\n\n{_CARD}", needs=("model",))
    for variant in VARIANTS
)
