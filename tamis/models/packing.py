"""Many rows through a model's body by a budget of tokens: packed where that is exact, else padded.

packed   rows one after another in one long row, positions starting again at each, attention by row. The
         default on a CPU: no padding, and matrix products over thousands of tokens.
padded   rows of like length side by side, padding on the right. Real tokens of a causal model never see it,
         so there is no mask, and attention takes the fast causal kernel. The default on other devices.
single   one row at a time.

On a CPU the batches run side by side, one thread each (`threads`): small products and all the rest of a layer
do not share out well over threads, whole batches do, and no result depends on the number of cores.

Which one is used is decided by trying it on made-up rows against each of them alone, with this very model; a
mode that does not agree is not used. What was found is in `mode` and `why`.
"""

from __future__ import annotations

import ctypes
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import numpy as np

from tamis.core.errors import RequestError
from tamis.core.extras import need
from tamis.models.lm import LanguageModel, last_hidden_state

MODES = ("packed", "padded", "single")
CPU_BATCH_TOKENS = 2048  # activations stay in the cache; 4,096 was 6 to 12 % slower
_ATTENTION = "tamis_packed"
_LENGTHS: ContextVar[tuple[int, ...]] = ContextVar("lengths of the packed rows")
_LOCK = threading.Lock()
_INSIDE: dict[int, tuple[int, list[tuple[Any, str]] | None]] = {}  # threads within, configurations' own
_CHECK_LENGTHS = (7, 1, 40, 23, 64)
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_WINDOW_MOST = 512  # longest sliding window that the check runs past


class Executor:
    """Runs token sequences through the body of `lm`.

    `batch_tokens`: tokens of one batch, padding included; by default 2,048 on a CPU, by free memory on CUDA;
    a longer row is a batch of its own. `mode`: one of `MODES`, or "auto". When CUDA runs out of memory the
    budget is halved for what is left; a row that does not fit alone goes to `failed`, and no row is ever
    shortened.
    """

    def __init__(self, lm: LanguageModel, batch_tokens: int | None = None, mode: str = "auto") -> None:
        if batch_tokens is not None and batch_tokens < 1:
            raise RequestError(f"batch_tokens={batch_tokens}: expected at least 1")
        self.lm = lm
        self.backbone = lm.backbone
        if lm.device == "cpu":
            keep_freed_memory()
        self.batch_tokens = batch_tokens or default_batch_tokens(lm)
        self.failed: dict[int, str] = {}
        self.mode, self.why = self._choose(mode)

    def hidden(self, sequences: Sequence[np.ndarray]) -> Iterator[list[tuple[int, Any]]]:
        """Batches of (row, last hidden state (L, d) on the device), until every sequence (L,) has come once.

        Batches follow from the lengths and the budget alone. A batch's tensors should be reduced before the
        next is asked for.
        """
        for rows, found in self.reduced(sequences, lambda rows, hidden: hidden):
            yield list(zip(rows, found, strict=True))

    def reduced(
        self, sequences: Sequence[np.ndarray], reduce: Callable[[list[int], list[Any]], Any]
    ) -> Iterator[tuple[list[int], Any]]:
        """(rows, reduce(rows, their last hidden states)) for every batch, in its order.

        `reduce` runs where the batch ran, without gradients: what is large should not leave it.
        """
        self.failed = {}
        lengths = [len(ids) for ids in sequences]
        if 0 in lengths:
            raise ValueError(f"sequence {lengths.index(0)} has no tokens")
        plan = list(batches(range(len(lengths)), lengths, self.batch_tokens, self.mode))
        run = self._side_by_side if self.lm.device == "cpu" else self._in_turn
        yield from run(plan, sequences, reduce)

    def _side_by_side(
        self,
        plan: list[list[int]],
        sequences: Sequence[np.ndarray],
        reduce: Callable[[list[int], list[Any]], Any],
    ) -> Iterator[tuple[list[int], Any]]:
        """Batches of `plan` in its order, as many at a time as torch has threads, which they share."""
        torch = need("torch", extra="lm")
        threads = torch.get_num_threads()
        workers = min(threads, len(plan))
        if workers <= 1:
            yield from self._in_turn(plan, sequences, reduce)
            return
        waiting = deque(plan)
        running: deque[tuple[list[int], Future[Any]]] = deque()
        share = threads // workers
        pool = ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(share,))
        try:
            torch.set_num_threads(share)  # here too: an idle team of threads waits by spinning
            while waiting or running:
                while waiting and len(running) <= workers:
                    rows = waiting.popleft()
                    running.append((rows, pool.submit(self._batch, rows, sequences, reduce)))
                rows, result = running.popleft()
                yield rows, result.result()
        finally:
            pool.shutdown(cancel_futures=True)
            torch.set_num_threads(threads)

    def _batch(
        self,
        rows: list[int],
        sequences: Sequence[np.ndarray],
        reduce: Callable[[list[int], list[Any]], Any],
    ) -> Any:
        torch = need("torch", extra="lm")
        with torch.inference_mode():
            return reduce(rows, self._forward([sequences[row] for row in rows], self.mode))

    def _in_turn(
        self,
        plan: list[list[int]],
        sequences: Sequence[np.ndarray],
        reduce: Callable[[list[int], list[Any]], Any],
    ) -> Iterator[tuple[list[int], Any]]:
        """Batches of `plan` one by one, smaller ones when memory runs out."""
        torch = need("torch", extra="lm")
        lengths = [len(ids) for ids in sequences]
        waiting = deque(plan)
        while waiting:
            rows = waiting.popleft()
            try:
                found = self._batch(rows, sequences, reduce)
            except torch.OutOfMemoryError as error:
                torch.cuda.empty_cache()
                if len(rows) == 1:
                    self.failed[rows[0]] = f"{lengths[rows[0]]} tokens do not fit into memory: {error}"
                    continue
                self.batch_tokens = max(1, sum(lengths[row] for row in rows) // 2)
                left = [*rows, *(row for batch in waiting for row in batch)]
                waiting = deque(batches(left, lengths, self.batch_tokens, self.mode))
                continue
            yield rows, found

    def weighted_sums(
        self,
        sequences: Sequence[np.ndarray],
        weights: Callable[[int], np.ndarray],
        advance: Callable[[int], None] = lambda tokens: None,
    ) -> np.ndarray:
        """Sum over tokens of weight x last hidden state, (n, d) float32; `weights(L)` gives (L,) float32.

        Rows in `failed` are NaN. `advance(tokens)` is called after every batch.
        """
        torch = need("torch", extra="lm")
        out = np.full((len(sequences), self.lm.width), np.nan, dtype=np.float32)
        known: dict[int, Any] = {}

        def pooled(rows: list[int], states: list[Any]) -> np.ndarray:
            sums = []
            for hidden in states:
                length = len(hidden)
                if length not in known:
                    known[length] = torch.from_numpy(weights(length)).to(hidden.device)
                sums.append(known[length] @ hidden.float())
            found: np.ndarray = torch.stack(sums).cpu().numpy()
            return found

        for rows, sums in self.reduced(sequences, pooled):
            out[rows] = sums
            advance(sum(len(sequences[row]) for row in rows))
        return out

    # --- forward ---------------------------------------------------------------------------------------

    def _forward(self, rows: Sequence[np.ndarray], mode: str) -> list[Any]:
        """Last hidden state (L, d) of every row."""
        torch = need("torch", extra="lm")
        lengths = [len(ids) for ids in rows]
        with torch.inference_mode():
            hidden = self._states(rows, mode == "packed")
        if mode == "packed":
            return list(hidden[0].split(lengths))
        return [hidden[i, :length] for i, length in enumerate(lengths)]

    def _states(self, rows: Sequence[np.ndarray], packed: bool) -> Any:
        """Last hidden states of a batch: (1, T, d), one row after another, or (b, longest, d)."""
        torch = need("torch", extra="lm")
        lengths = [len(ids) for ids in rows]
        if not packed:
            padded = np.zeros((len(rows), max(lengths)), dtype=np.int64)
            for i, row in enumerate(rows):
                padded[i, : len(row)] = row
            return last_hidden_state(self.backbone, torch.from_numpy(padded).to(self.lm.device))
        return self._packed(rows, lengths)

    def _packed(self, rows: Sequence[np.ndarray], lengths: list[int]) -> Any:
        torch = need("torch", extra="lm")
        ids = torch.from_numpy(np.concatenate(rows).astype(np.int64))[None].to(self.lm.device)
        positions = torch.from_numpy(np.concatenate([np.arange(length) for length in lengths]))[None]
        with attention_by_row(self.backbone, tuple(lengths)):
            # No mask at all: an all-ones mask would switch off the reading of positions as packed rows.
            return last_hidden_state(
                self.backbone, ids, attention_mask=None, position_ids=positions.to(self.lm.device)
            )

    # --- choice of the mode ----------------------------------------------------------------------------

    def _choose(self, mode: str) -> tuple[str, str]:
        if mode not in (*MODES, "auto"):
            raise RequestError(f"mode={mode!r}: expected auto, {', '.join(MODES)}")
        if mode == "single":
            return mode, "asked for"
        wanted = [mode] if mode != "auto" else ["packed", "padded"] if self.lm.device == "cpu" else ["padded"]
        faults: list[str] = []
        for name in wanted:
            fault = self.disagreement(name)
            if fault is None:
                return name, "; ".join([*faults, f"{name} agrees with rows alone"])
            faults.append(f"{name}: {fault}")
        if mode != "auto":
            raise RequestError(f"{self.lm.path}: {faults[0]}")
        return "single", "; ".join(faults)

    def disagreement(self, mode: str) -> str | None:
        """What is wrong with `mode` for this model on made-up rows against the rows alone; None when nothing.

        Compared are hidden states, as the error relative to their norm: the worst token in float32, the
        median one in lower precision, where single tokens may differ by chance (a tie in a mixture of
        experts).
        """
        text = self.lm.config.get_text_config()
        window = getattr(text, "sliding_window", None) or 0
        lengths = [*_CHECK_LENGTHS, *([window + 9] if window <= _WINDOW_MOST else [])]
        generator = np.random.default_rng(0)
        rows = [generator.integers(0, text.vocab_size, length) for length in lengths]
        exact = self.lm.dtype == "float32"
        alone = [self._forward([row], "single")[0].float() for row in rows]
        try:
            together = [hidden.float() for hidden in self._forward(rows, mode)]
        except (NotImplementedError, TypeError, KeyError, ValueError, RuntimeError, IndexError) as error:
            return f"{type(error).__name__}: {error}"
        errors = np.concatenate(
            [
                ((a - b).norm(dim=1) / b.norm(dim=1).clamp_min(1e-6)).cpu().numpy()
                for a, b in zip(together, alone, strict=True)
            ]
        )
        worst = float(errors.max() if exact else np.median(errors))
        limit = 1e-4 if exact else 3e-2
        return None if worst <= limit else f"hidden states differ from rows alone by {worst:.1e} relative"


def executor_for(lm: LanguageModel, batch_tokens: int | None) -> Executor:
    """The executor of a loaded model, made and checked once."""
    if batch_tokens not in lm.executors:
        lm.executors[batch_tokens] = Executor(lm, batch_tokens)
    found: Executor = lm.executors[batch_tokens]
    return found


def batches(rows: Sequence[int], lengths: Sequence[int], batch_tokens: int, mode: str) -> Iterator[list[int]]:
    """Rows of each batch: packed in the order given, padded by falling length (ties in the order given)."""
    if mode == "padded":
        rows = sorted(rows, key=lambda row: -lengths[row])
    batch: list[int] = []
    used = 0
    for row in rows:
        # Falling lengths: the first row of a padded batch is its longest.
        used = used + lengths[row] if mode == "packed" else (len(batch) + 1) * lengths[(*batch, row)[0]]
        if batch and (used > batch_tokens or mode == "single"):
            yield batch
            batch, used = [], lengths[row]
        batch.append(row)
    if batch:
        yield batch


def default_batch_tokens(lm: LanguageModel) -> int:
    """2,048 on a CPU; on CUDA what a quarter of the free memory holds in activations, 2,048 to 32,768."""
    if not lm.device.startswith("cuda"):
        return CPU_BATCH_TOKENS
    torch = need("torch", extra="lm")
    free, _ = torch.cuda.mem_get_info(lm.device)
    text = lm.config.get_text_config()
    width = getattr(text, "intermediate_size", None) or 4 * text.hidden_size
    token_bytes = (4 if lm.dtype == "float32" else 2) * (12 * text.hidden_size + 4 * width)
    return int(min(max(free // 4 // token_bytes, 2048), 32768))


def keep_freed_memory() -> None:
    """Have glibc keep the blocks that a batch frees, for the next one; elsewhere nothing is done.

    By default blocks of megabytes go back to the system after every layer, and fetching their pages anew was
    6 % of the time in batches of 2,048 tokens, 20 % in batches of 4,096. Peak memory stays the same.
    """
    adjust = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if adjust is not None:
        adjust(_M_TRIM_THRESHOLD, 2**31 - 1)
        adjust(_M_MMAP_THRESHOLD, 2**25)


@contextmanager
def attention_by_row(backbone: Any, lengths: tuple[int, ...]) -> Iterator[None]:
    """Within the block, attention of `backbone` in this thread is over each of the packed rows of `lengths`
    alone. Several threads may be inside at once; the model's own attention is back when the last has left."""
    token = _LENGTHS.set(lengths)
    try:
        with _LOCK:
            users, before = _INSIDE.get(id(backbone), (0, None))
            _INSIDE[id(backbone)] = users + 1, before or _switched(backbone)
        yield
    finally:
        _LENGTHS.reset(token)
        with _LOCK:
            users, before = _INSIDE.pop(id(backbone), (0, None))
            if users > 1:
                _INSIDE[id(backbone)] = users - 1, before
            else:
                for config, name in before or []:
                    config._attn_implementation = name


def _switched(backbone: Any) -> list[tuple[Any, str]]:
    """Attention by row put into every configuration of `backbone`; gives the configurations' own."""
    need("transformers", extra="lm")
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    if _ATTENTION not in ALL_ATTENTION_FUNCTIONS:
        ALL_ATTENTION_FUNCTIONS.register(_ATTENTION, _attend)
    configs = {id(module.config): module.config for module in backbone.modules() if hasattr(module, "config")}
    before = [(config, config._attn_implementation) for config in configs.values()]
    try:
        for config, _ in before:
            config._attn_implementation = _ATTENTION
    except Exception:
        for config, name in before:
            config._attn_implementation = name
        raise
    return before


def _attend(
    module: Any,
    query: Any,
    key: Any,
    value: Any,
    attention_mask: Any,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **options: Any,
) -> tuple[Any, None]:
    """Causal attention in each packed row: query (1, heads, T, head size), key and value with fewer heads
    when grouped; gives (1, T, heads, head size). What it does not know of, it refuses, and the mode with
    it."""
    for name in ("softcap", "s_aux", "position_bias", "head_mask"):
        if options.get(name) is not None:
            raise NotImplementedError(f"attention by row has no {name}")
    if attention_mask is not None or query.shape[2] != key.shape[2] or not getattr(module, "is_causal", True):
        raise NotImplementedError("attention by row is causal and takes neither masks nor a cache")
    torch = need("torch", extra="lm")
    attend = torch.nn.functional.scaled_dot_product_attention
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    lengths = _LENGTHS.get()
    parts = zip(lengths, *(given.split(lengths, dim=2) for given in (query, key, value)), strict=True)
    # One tensor is filled where no graph is kept: with one, each write would be a node of its own.
    out = (
        None
        if torch.is_grad_enabled()
        else query.new_empty(1, query.shape[2], query.shape[1], value.shape[3])
    )
    found, start = [], 0
    for length, q, k, v in parts:
        band = None
        if sliding_window is not None and length > sliding_window:
            ahead = torch.arange(length, device=query.device)
            back = ahead[:, None] - ahead[None, :]
            band = (back >= 0) & (back < sliding_window)
        seen = attend(q, k, v, band, 0.0, band is None, scale=scaling).transpose(1, 2)
        if out is None:
            found.append(seen)
        else:
            out[:, start : start + length] = seen
        start += length
    return torch.cat(found, dim=1) if out is None else out, None
