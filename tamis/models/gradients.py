"""Gradients of single rows with respect to an adapter's weights: hooks and batched products, exactly.

The gradient of a row is that of the mean loss over its targets. Rows share a batch (packed or padded, as
`Executor` finds exact), whose forward and backward pass run once; the inputs and output gradients of every
LoRA matrix then give each row's own part, one matrix at a time: preconditioned, projected and dropped. The
base is frozen and the graph begins at the embeddings. Nothing is ever shortened to fit.

On making it, gradients of made-up rows are compared with the plain loop (`loop_gradient`: one row, backward
through the whole model, `.grad`), which also serves adapters that hooks do not cover (DoRA, trained biases or
embeddings, experts that see single tokens). What was found is in `mode` and `why`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from tamis.core.errors import RequestError
from tamis.models._row_dropout import RowDropout
from tamis.models.lm import LanguageModel
from tamis.models.losses import LossEngine
from tamis.models.packing import CPU_BATCH_TOKENS, Executor
from tamis.models.projections import CountSketch, Projection, Slot, layout_of

_ROW_NUMBERS = {"cpu": 1 << 18, "cuda": 1 << 26}  # of one matrix's gradients that exist at a time
_CHECK_DIMENSIONS, _CHECK_LENGTHS = 2048, (7, 2, 40, 23, 64)
_TOLERANCE = {"float32": 1e-4, "bfloat16": 5e-2, "float16": 5e-2}
_CURRENT: ContextVar[Any] = ContextVar("batch whose gradients are taken", default=None)

Precondition = Callable[[Slot, torch.Tensor], torch.Tensor]
"""(parameter, gradients (n, p) float32) -> features (n, p) float32; may overwrite what it is given."""


@dataclass(frozen=True)
class Gradients:
    """Of b rows: `features` (b, d) float32, projected; `norms` (b,) float64 of the plain gradients; `losses`
    (b,) float64, the mean over the targets. NaN for rows that did not fit into memory."""

    features: np.ndarray
    norms: np.ndarray
    losses: np.ndarray


class _Batch:
    """What becomes of one batch while its backward pass runs."""

    def __init__(
        self,
        lengths: list[int],
        packed: bool,
        out: torch.Tensor,
        project: Projection,
        precondition: Precondition,
    ) -> None:
        self.lengths, self.packed, self.out = lengths, packed, out
        self.project, self.precondition = project, precondition
        self.squares = torch.zeros(len(lengths), dtype=torch.float64, device=out.device)
        self.numbers = _ROW_NUMBERS.get(out.device.type, _ROW_NUMBERS["cuda"])
        self.expected: set[str] = set()
        self.taken = 0

    def expect(self, slot: Slot, inputs: torch.Tensor) -> None:
        """Refuse what cannot be told apart by rows: a layer called twice, or with some tokens only."""
        rows = (1, sum(self.lengths)) if self.packed else (len(self.lengths), max(self.lengths))
        if slot.name in self.expected or tuple(inputs.shape[:-1]) != rows:
            raise NotImplementedError(f"{slot.name} is called twice, or not with all tokens of the rows")
        self.expected.add(slot.name)

    def check(self, matrices: int) -> None:
        """Refuse a backward pass that did not come by every matrix."""
        if self.taken != matrices:
            raise NotImplementedError(f"the backward pass met {self.taken} of {matrices} matrices")

    def take(self, slot: Slot, inputs: torch.Tensor, grad: torch.Tensor) -> None:
        """Add the part of a matrix: `inputs` (b, L, in) it was given, `grad` (b, L, out) of what it gave."""
        self.taken += 1
        step = max(1, self.numbers // slot.size)
        for first in range(0, len(self.lengths), step):
            last = min(first + step, len(self.lengths))
            self.consume(slot, first, self._products(slot, inputs, grad, first, last))

    def consume(self, slot: Slot, first: int, g: torch.Tensor) -> None:
        """Add gradients g (k, p) of the rows from `first` on."""
        rows = slice(first, first + len(g))
        self.squares[rows] += torch.linalg.vector_norm(g, dim=1).double() ** 2
        self.project.add(self.out[rows], slot, self.precondition(slot, g))

    def _products(
        self, slot: Slot, inputs: torch.Tensor, grad: torch.Tensor, first: int, last: int
    ) -> torch.Tensor:
        if not self.packed:
            return torch.bmm(grad[first:last].float().transpose(1, 2), inputs[first:last].float()).flatten(1)
        g = grad.new_empty((last - first, *slot.shape), dtype=torch.float32)
        start = sum(self.lengths[:first])
        for i in range(first, last):
            rows = slice(start, start + self.lengths[i])
            torch.mm(grad[0, rows].float().T, inputs[0, rows].float(), out=g[i - first])
            start += self.lengths[i]
        return g.flatten(1)


class GradientEngine(Executor):
    """Features of rows from the gradients of the adapter of `lm`.

    `batch_tokens`: tokens of one batch, padding included; by default 2,048 on a CPU, by free memory on CUDA,
    where it is halved when memory runs out. `dropout`: LoRA's dropout as in training, its noise a function of
    the row alone; off by default. `mode`: "auto", one of `packing.MODES`, or "loop", the plain loop.
    """

    def __init__(
        self, lm: LanguageModel, batch_tokens: int | None = None, dropout: bool = False, mode: str = "auto"
    ) -> None:
        if not lm.adapter or not lm.trained:
            raise RequestError(
                f"{lm.path}: gradients are taken with respect to an adapter, and this is a whole model; give "
                "a PEFT adapter, or let the strategy train one"
            )
        parameters = dict(lm.model.named_parameters())
        self._parameters = {name: parameters[name] for name in lm.trained}
        self.layout = layout_of({name: tuple(p.shape) for name, p in self._parameters.items()})
        self._dropout = RowDropout(lm.model) if dropout else None
        self._project: Projection = CountSketch(_CHECK_DIMENSIONS, 0, lm.device)
        self._precondition: Precondition = _plain
        self._targets: Sequence[np.ndarray] = ()
        self._modules, missing = _lora_modules(lm, self.layout)
        self.looped = mode == "loop" or bool(missing)
        if not self.looped:
            self._losses = LossEngine(lm, batch_tokens)
        budget = batch_tokens or gradient_batch_tokens(lm)
        super().__init__(lm, budget, "single" if self.looped else mode)
        if missing:
            self.why = f"hooks do not cover {missing[0]} ({len(missing)} of {len(self.layout)} parameters)"
        elif not self.looped and self.mode == "single" and (fault := self.disagreement("single")):
            self.looped, self.why = True, f"{self.why}; single: {fault}"

    @property
    def parameters(self) -> int:
        """Numbers that a gradient has."""
        return sum(slot.size for slot in self.layout)

    def features(
        self,
        sequences: Sequence[np.ndarray],
        targets: Sequence[np.ndarray],
        project: Projection,
        precondition: Precondition | None = None,
        advance: Callable[[int], None] = lambda tokens: None,
    ) -> Gradients:
        """Features of token sequences (L,), whose losses are over the tokens that `targets` (L,) bool marks.

        The first token follows nothing and cannot be a target; every row needs one. Batches and padding
        change nothing beyond float noise. Rows in `failed` are NaN.
        """
        for row, mask in enumerate(targets):
            if len(mask) != len(sequences[row]) or not mask.any() or mask[0]:
                raise ValueError(f"sequence {row}: expected a target that is not its first token")
        self._project, self._precondition, self._targets = project, precondition or _plain, targets
        try:
            return self._of(sequences, advance)
        except NotImplementedError as error:
            if self.looped:
                raise
            # All of these rows anew by the loop, the next ones by hooks again: what comes of a run of rows
            # follows from them, whatever came before.
            self.looped = True
            try:
                return self._of(sequences, lambda tokens: None)
            finally:
                self.looped = False
                note = f"; some rows by the loop: {error}"
                self.why += note if note not in self.why else ""

    def _of(self, sequences: Sequence[np.ndarray], advance: Callable[[int], None]) -> Gradients:
        project, count = self._project, len(sequences)
        out = np.full((count, project.dimensions), np.nan, np.float32)
        norms, losses = np.full(count, np.nan), np.full(count, np.nan)
        with self._watched():
            for rows, found in self.reduced(sequences, _unused):
                out[rows], norms[rows], losses[rows] = found.features, found.norms, found.losses
                advance(sum(len(sequences[row]) for row in rows))
        return Gradients(out, norms, losses)

    # --- one batch -------------------------------------------------------------------------------------

    def _batch(self, rows: list[int], sequences: Sequence[np.ndarray], reduce: Any) -> Gradients:
        mode = "loop" if self.looped else self.mode
        return self._backward([sequences[row] for row in rows], [self._targets[row] for row in rows], mode)

    def _side_by_side(self, plan: Any, sequences: Any, reduce: Any) -> Any:
        """The plain loop changes the model for a moment, so its rows come one after another."""
        return (self._in_turn if self.looped else super()._side_by_side)(plan, sequences, reduce)

    def _backward(self, ids: list[np.ndarray], targets: Sequence[np.ndarray], mode: str) -> Gradients:
        out = torch.zeros((len(ids), self._project.dimensions), device=self.lm.device)
        batch = _Batch([len(row) for row in ids], mode == "packed", out, self._project, self._precondition)
        with torch.enable_grad():
            if mode == "loop":
                losses = [self._looped(batch, i, ids[i], targets[i]) for i in range(len(ids))]
            else:
                with self._noise(ids, batch.packed):
                    losses = self._hooked(batch, ids, targets)
        return Gradients(out.cpu().numpy(), batch.squares.sqrt().cpu().numpy(), np.asarray(losses))

    def _noise(self, ids: list[np.ndarray], packed: bool) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext() if self._dropout is None else self._dropout.of(ids, packed)

    def _looped(self, batch: _Batch, row: int, ids: np.ndarray, target: np.ndarray) -> float:
        """The plain loop: one row through the whole model, the gradient of each parameter as torch has it."""
        with self._noise([ids], False):
            loss, grads = loop_gradient(self.lm, self._parameters, ids, target)
        for slot, g in zip(self.layout, grads, strict=True):
            batch.consume(slot, row, g.float().reshape(1, -1))
        return loss

    def _hooked(self, batch: _Batch, ids: list[np.ndarray], targets: Sequence[np.ndarray]) -> list[float]:
        """One forward and backward pass of a batch; the hooks see to the rest. Mean loss of each row."""
        token = _CURRENT.set(batch)
        try:
            hidden = self._states(ids, batch.packed)
        finally:
            _CURRENT.reset(token)
        longest = hidden.shape[1]
        starts = np.cumsum([0, *batch.lengths[:-1]]) if batch.packed else longest * np.arange(len(ids))
        places = [np.flatnonzero(mask) for mask in targets]
        counts = [len(at) for at in places]
        at = np.concatenate([start + found - 1 for start, found in zip(starts, places, strict=True)])
        words = np.concatenate([row[found] for row, found in zip(ids, places, strict=True)])
        weights = np.repeat(1 / np.array(counts, np.float32), counts)
        device = hidden.device
        where, target = (torch.from_numpy(given.astype(np.int64)).to(device) for given in (at, words))
        flat = hidden.detach().reshape(-1, hidden.shape[-1])
        losses, slope = self._losses.gradient(flat[where], target, torch.from_numpy(weights).to(device))
        grad = torch.zeros_like(flat).index_copy_(0, where, slope.to(flat.dtype)).view_as(hidden)
        hidden.backward(grad)
        batch.check(len(self.layout))
        parts = np.split(losses.cpu().numpy(), np.cumsum(counts)[:-1])
        return [float(part.mean(dtype=np.float64)) for part in parts]

    @contextlib.contextmanager
    def _watched(self) -> Iterator[None]:
        """Within the block, the hooks are in the model; they do nothing outside of a batch."""
        hooks = [module.register_forward_hook(_watch(slot)) for slot, module in self._modules]
        if self._modules:
            hooks.append(self.backbone.get_input_embeddings().register_forward_hook(_begin))
        if self._dropout is not None:
            hooks += self._dropout.hooks()
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def disagreement(self, mode: str) -> str | None:
        """What is wrong with gradients in `mode` for this model on made-up rows against the plain loop.

        Compared are projected gradients, as the error relative to their norm: the worst row in float32, the
        median one in lower precision.
        """
        text = self.lm.config.get_text_config()
        generator = np.random.default_rng(0)
        rows = [generator.integers(0, text.vocab_size, length).astype(np.int32) for length in _CHECK_LENGTHS]
        targets = [np.arange(len(row)) >= max(1, len(row) // 3) for row in rows]
        with self._watched():
            alone = self._backward(rows, targets, "loop")
        try:
            with self._watched():
                if mode == "single":
                    pairs = zip(rows, targets, strict=True)
                    parts = [self._backward([row], [mask], mode).features for row, mask in pairs]
                    together = np.concatenate(parts)
                else:
                    together = self._backward(rows, targets, mode).features
        except (NotImplementedError, TypeError, KeyError, ValueError, RuntimeError, IndexError) as error:
            return f"{type(error).__name__}: {error}"
        scale = np.maximum(np.linalg.norm(alone.features, axis=1), 1e-9)
        errors = np.linalg.norm(together - alone.features, axis=1) / scale
        worst = float(errors.max() if self.lm.dtype == "float32" else np.median(errors))
        if worst <= _TOLERANCE[self.lm.dtype]:
            return None
        return f"gradients differ from the plain loop by {worst:.1e} relative"


def loop_gradient(
    lm: LanguageModel, parameters: dict[str, Any], ids: np.ndarray, target: np.ndarray
) -> tuple[float, list[torch.Tensor]]:
    """The slow obvious twin: mean loss of one row over the tokens `target` (L,) bool marks, and its gradient
    with respect to each of `parameters`, as torch computes it from the whole model's logits."""
    given = torch.from_numpy(ids.astype(np.int64)).to(lm.device)
    chosen = list(parameters.values())
    wanted = [parameter.requires_grad for parameter in chosen]
    for parameter in chosen:
        parameter.requires_grad_(True)
    try:
        # Adapters that are tokens put theirs in front of the row's.
        logits = lm.model(input_ids=given[None], use_cache=False).logits[0, -len(ids) :]
        at = torch.from_numpy(np.flatnonzero(target)).to(lm.device)
        loss = torch.nn.functional.cross_entropy(logits[at - 1].float(), given[at])
        grads = torch.autograd.grad(loss, chosen, allow_unused=True)
    finally:
        for parameter, before in zip(chosen, wanted, strict=True):
            parameter.requires_grad_(before)
    found = [torch.zeros_like(p) if g is None else g for p, g in zip(chosen, grads, strict=True)]
    return float(loss.detach()), found


def gradient_batch_tokens(lm: LanguageModel) -> int:
    """2,048 on a CPU; on CUDA what half of the free memory holds in activations kept for the backward pass of
    all layers, 512 to 32,768."""
    if not lm.device.startswith("cuda"):
        return CPU_BATCH_TOKENS
    free, _ = torch.cuda.mem_get_info(lm.device)
    return int(min(max(free // 2 // kept_bytes_per_token(lm), 512), 32768))


def kept_bytes_per_token(lm: LanguageModel) -> int:
    """Bytes of activations that a token keeps until the backward pass: per layer some 14 vectors of the width
    and 5 of the inner width in the model's dtype, and 8 of the width in float32 (norms, LoRA's inputs)."""
    text = lm.config.get_text_config()
    width = text.hidden_size
    inner = getattr(text, "intermediate_size", None) or 4 * width
    size = 4 if lm.dtype == "float32" else 2
    return int(text.num_hidden_layers * (size * (14 * width + 5 * inner) + 32 * width))


def _plain(slot: Slot, g: torch.Tensor) -> torch.Tensor:
    return g


def _unused(rows: list[int], states: list[Any]) -> None:
    return None


def _lora_modules(lm: LanguageModel, layout: Sequence[Slot]) -> tuple[list[tuple[Slot, Any]], list[str]]:
    """The linear layers of LoRA whose weights are in the layout, and the names that are not such weights."""
    inside = {id(module) for module in lm.backbone.modules()}
    modules = dict(lm.model.named_modules())
    found: list[tuple[Slot, Any]] = []
    missing: list[str] = []
    for slot in layout:
        name, _, last = slot.name.rpartition(".")
        module = modules.get(name)
        known = last == "weight" and (".lora_A." in slot.name or ".lora_B." in slot.name)
        if known and isinstance(module, torch.nn.Linear) and module.bias is None and id(module) in inside:
            found.append((slot, module))
        else:
            missing.append(slot.name)
    return ([], missing) if missing else (found, [])


def _watch(slot: Slot) -> Callable[[Any, Any, Any], None]:
    """A forward hook that has the parts of the matrix `slot` taken when the backward pass reaches it."""

    def hook(module: Any, inputs: Any, output: Any) -> None:
        batch = _CURRENT.get()
        if batch is not None:
            given = inputs[0].detach()
            batch.expect(slot, given)
            output.register_hook(lambda grad: batch.take(slot, given, grad))

    return hook


def _begin(module: Any, inputs: Any, output: Any) -> Any:
    """The graph begins at the embeddings."""
    return None if _CURRENT.get() is None else output.detach().requires_grad_(True)
