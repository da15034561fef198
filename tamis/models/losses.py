"""Loss of each wanted token of many rows: logits only where a token is scored, and never all of them at once.

The loss of token i is -ln P(token i | tokens before it), in nats; logits and log-softmax in float32. Nothing
of the size tokens x vocabulary exists: the head is applied to `POSITIONS` positions and `COLUMNS` words at a
time, which stay in the cache, and their sums of exponentials are added up.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tamis.core.errors import RequestError
from tamis.core.extras import need
from tamis.models.lm import LanguageModel
from tamis.models.packing import Executor, executor_for

POSITIONS, COLUMNS = 512, 2048  # 4 MiB of logits; 1.4 times as fast as 256 positions x 128k words
_GRADIENT_BYTES = {"cpu": 16 << 20, "cuda": 256 << 20}  # logits of all words that exist for a gradient
_TOLERANCE = {"float32": 1e-4, "bfloat16": 0.1, "float16": 0.02}


class LossEngine:
    """Losses by the body of `lm` (batched as `Executor` does) and its head.

    On making it, the losses of a made-up row are compared with those of the whole model; a head that does
    more than is known here (see `_logits`) is refused, never approximated.
    """

    def __init__(self, lm: LanguageModel, batch_tokens: int | None = None) -> None:
        self.lm = lm
        self.executor: Executor = executor_for(lm, batch_tokens)
        causal = lm.model.get_base_model() if lm.adapter else lm.model
        self._head = causal.get_output_embeddings()
        if not isinstance(self._head, need("torch", extra="lm").nn.Linear):
            raise RequestError(
                f"{lm.path}: its head is {type(self._head).__name__}, not a linear layer; losses of such "
                "models are not supported"
            )
        self._words = int(self._head.weight.shape[0])
        text = lm.config.get_text_config()
        self._softcap = getattr(text, "final_logit_softcapping", None)
        self._scale = float(getattr(text, "logit_scale", None) or 1.0)
        self._scale /= float(getattr(text, "logits_scaling", None) or 1.0)
        self._check()

    @property
    def failed(self) -> dict[int, str]:
        """Rows of the last `losses` that did not fit into memory, with the reason."""
        return self.executor.failed

    def losses(
        self,
        sequences: Sequence[np.ndarray],
        wanted: Sequence[np.ndarray],
        advance: Callable[[int], None] = lambda tokens: None,
    ) -> list[np.ndarray]:
        """Losses (k,) float32 of the `wanted` (L,) bool tokens of every sequence (L,), in order.

        The first token of a sequence follows nothing and cannot be wanted. Rows in `failed` are NaN
        throughout. Batches and padding change nothing beyond float noise.
        """
        for row, mask in enumerate(wanted):
            if len(mask) != len(sequences[row]):
                raise ValueError(f"sequence {row}: {len(mask)} marks for {len(sequences[row])} tokens")
            if len(mask) and mask[0]:
                raise ValueError(f"sequence {row}: its first token follows nothing and has no loss")
        out = [np.full(int(mask.sum()), np.nan, dtype=np.float32) for mask in wanted]

        def scored(rows: list[int], states: list[Any]) -> list[np.ndarray]:
            return self._of_batch([sequences[row] for row in rows], [wanted[row] for row in rows], states)

        for rows, found in self.executor.reduced(sequences, scored):
            for row, values in zip(rows, found, strict=True):
                out[row] = values
            advance(sum(len(sequences[row]) for row in rows))
        return out

    def next_logits(
        self,
        sequences: Sequence[np.ndarray],
        words: np.ndarray,
        advance: Callable[[int], None] = lambda tokens: None,
    ) -> np.ndarray:
        """Logits (b, w) float32 of the tokens `words` (w,) after the end of every sequence (L,).

        Rows in `failed` are NaN.
        """
        torch = need("torch", extra="lm")
        out = np.full((len(sequences), len(words)), np.nan, dtype=np.float32)
        chosen = torch.from_numpy(np.asarray(words, np.int64)).to(self.lm.device)

        def read(rows: list[int], states: list[Any]) -> np.ndarray:
            last = torch.stack([hidden[-1] for hidden in states])
            found: np.ndarray = self._logits(last, chosen).cpu().numpy()
            return found

        for rows, found in self.executor.reduced(sequences, read):
            out[rows] = found
            advance(sum(len(sequences[row]) for row in rows))
        return out

    def gradient(self, hidden: Any, target: Any, weights: Any) -> tuple[Any, Any]:
        """Losses (k,) float32 of the tokens `target` (k,) after the states `hidden` (k, d), and the gradient
        (k, d) of the sum of `weights` (k,) x losses with respect to the states; by hand, without a graph."""
        torch = need("torch", extra="lm")
        step = max(16, _GRADIENT_BYTES.get(hidden.device.type, _GRADIENT_BYTES["cuda"]) // (4 * self._words))
        losses, grads = [], []
        with torch.no_grad():
            for start in range(0, len(target), step):
                part = slice(start, start + step)
                logits = self._logits(hidden[part], slice(None))
                at = target[part, None]
                slope = torch.log_softmax(logits, dim=1)
                losses.append(-slope.gather(1, at)[:, 0])
                slope.exp_()  # of the loss by the logits: probabilities, less one at the target
                slope.scatter_add_(1, at, torch.full_like(at, -1, dtype=slope.dtype))
                slope.mul_(weights[part, None] * self._scale)
                if self._softcap is not None:
                    slope.mul_(1 - (logits / self._softcap) ** 2)
                grads.append(slope.to(self._head.weight.dtype) @ self._head.weight)
        return torch.cat(losses), torch.cat(grads)

    def _of_batch(
        self, sequences: list[np.ndarray], wanted: list[np.ndarray], states: list[Any]
    ) -> list[np.ndarray]:
        torch = need("torch", extra="lm")
        at = [np.flatnonzero(mask) for mask in wanted]
        counts = [len(places) for places in at]
        if not sum(counts):
            return [np.zeros(0, np.float32) for _ in counts]
        device = states[0].device
        before = torch.cat(
            [
                hidden[torch.from_numpy(places - 1).to(device)]
                for hidden, places in zip(states, at, strict=True)
            ]
        )
        tokens = np.concatenate([ids[places] for ids, places in zip(sequences, at, strict=True)])
        target = torch.from_numpy(tokens.astype(np.int64)).to(device)
        parts = [
            self._cross_entropy(before[start : start + POSITIONS], target[start : start + POSITIONS])
            for start in range(0, len(target), POSITIONS)
        ]
        losses: np.ndarray = torch.cat(parts).cpu().numpy()
        return np.split(losses, np.cumsum(counts)[:-1])

    def _cross_entropy(self, hidden: Any, target: Any) -> Any:
        """Losses (k,) float32 of the tokens `target` (k,) after the states `hidden` (k, d)."""
        torch = need("torch", extra="lm")
        total = hidden.new_full((len(hidden),), -torch.inf, dtype=torch.float32)
        wanted = torch.zeros_like(total)
        for start in range(0, self._words, COLUMNS):
            logits = self._logits(hidden, slice(start, start + COLUMNS))
            at = target - start
            here = torch.nonzero((at >= 0) & (at < logits.shape[1]))[:, 0]
            wanted[here] = logits[here, at[here]]
            total = torch.logaddexp(total, torch.logsumexp(logits, dim=1))
        return total - wanted

    def _logits(self, hidden: Any, words: Any) -> Any:
        """float32 logits (k, words) of a slice or a tensor (w,) of `words`: head, scale, soft cap."""
        bias = None if self._head.bias is None else self._head.bias[words]
        logits = need("torch", extra="lm").nn.functional.linear(hidden, self._head.weight[words], bias)
        logits = logits.float()
        if self._scale != 1.0:
            logits = logits * self._scale
        if self._softcap is not None:
            logits = (logits / self._softcap).tanh() * self._softcap
        return logits

    def _check(self) -> None:
        torch = need("torch", extra="lm")
        text = self.lm.config.get_text_config()
        ids = np.random.default_rng(0).integers(0, text.vocab_size, 16)
        with torch.inference_mode():
            given = torch.from_numpy(ids)[None].to(self.lm.device)
            logits = self.lm.model(input_ids=given, use_cache=False).logits[0, :-1].float()
            whole = torch.nn.functional.cross_entropy(logits, given[0, 1:], reduction="none").cpu().numpy()
        mask = np.arange(len(ids)) > 0
        own = self.losses([ids], [mask])[0]
        error = float(np.abs(own - whole).max()) if np.isfinite(whole).all() else 0.0
        if error > _TOLERANCE[self.lm.dtype] * max(1.0, float(np.abs(whole).max())):
            raise RequestError(
                f"{self.lm.path}: {type(self.lm.model).__name__} does more to its logits than tamis knows "
                f"(losses differ by {error:.2g}); please report this architecture"
            )
