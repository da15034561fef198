"""What making one signal of one pool will take: tokens, operations, time, disk and memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from tamis.core.cost import peak_memory_bytes
from tamis.core.errors import RequestError
from tamis.core.method import Method
from tamis.core.signal import signal_recipe
from tamis.core.store import Store, Thing, shard_bounds, shard_rows_of
from tamis.models.lm import LanguageModel
from tamis.representations._context import Context
from tamis.study import cost_model
from tamis.study._plan_calls import calls_stage
from tamis.study._plan_pool import Known
from tamis.study._plan_rates import FRACTION, Rate, Trial, device_peak, ledger_rate, resident_bytes, tried
from tamis.study._plan_stage import Stage
from tamis.study.signals import Settings
from tamis.study.strategies import Strategy

CHARACTERS_PER_TOKEN = 4.0
ROW_BYTES = 200
"""Memory that grows with the pool whatever is done: ids as text (128 bytes), source, codes, tokens, order."""
_COUNTED_ROWS = 1024
_KEPT_BATCHES = 1.5  # measured: 1.4 and 1.8 with models of 2.6 and 9 million parameters
_BUSY = 0.25
_SHARD_FILES_BYTES = 480  # headers of three arrays and their lines in meta.json
_META_BYTES = 1200
_LOAD_BYTES_S = 1e9


@dataclass(frozen=True)
class Machine:
    """What estimates are made for. `tflops`: peak of the device in place of one measured here."""

    store: Path
    settings: Settings
    lm: LanguageModel | None
    weights: bool
    tflops: float | None = None
    calibrate: bool = True


class Work:
    """One method with its parameters, on the pool of a plan."""

    def __init__(
        self,
        kind: str,
        method: Method,
        parameters: Mapping[str, Any],
        machine: Machine,
        pool: Known,
        queries: Mapping[str, Known] | None = None,
    ) -> None:
        self.kind, self.method, self.machine, self.pool = kind, method, machine, pool
        self.queries = {name: query.pool for name, query in (queries or {}).items() if query.pool is not None}
        self.config = method.configure(parameters)
        self.paid_once = False
        self.after: Strategy | None = None  # whose first stage trains the model that this is made with
        self.before: Work | None = None  # whose stored numbers this goes on from

    def runner(self, role: str) -> Any:
        """The configured method, or None where the model's folder does not hold what it needs."""
        settings = self.machine.settings
        names = (
            "model", "template", "max_tokens", "dtype", "device", "remote_code", "batch_tokens", "store"
        )  # fmt: skip
        context = Context(role=role, **{name: getattr(settings, name) for name in names})
        lm = self.machine.lm
        if lm is not None and lm.tokenizer is None and self.reads_model:
            return None
        if "query" in self.method.needs:
            if not self.queries:  # they are only imagined
                return None
            context = replace(context, queries=self.queries)
        return self.method.run(self.config, context)

    @property
    def reads_model(self) -> bool:
        """Whether the model or its tokenizer is read."""
        return self.passes_model or getattr(self.config, "unit", None) == "tokens"

    @property
    def passes_model(self) -> bool:
        """Whether rows go through a language model: the run's, or the method's own."""
        return "model" in self.method.needs or "scorer" in self.method.needs

    @property
    def which(self) -> str:
        """What tells it from other work of the same method: the turns that losses in context are of."""
        whole = self.method.name == "perplexity" and self.config.tokens != "prompt"
        return f" (turns: {self.config.turns})" if whole else ""

    @property
    def asks_server(self) -> bool:
        """Whether rows are sent to a server, which may cost money: such a method is never tried."""
        return "server" in self.method.needs

    @cached_property
    def pool_runner(self) -> Any:
        return self.runner("pool")

    @cached_property
    def rate(self) -> Rate | None:
        """From the ledger; else from a trial; None when neither can be had."""
        device = getattr(self.pool_runner, "execution", {}).get("device")
        found = None
        if self.passes_model:
            found = ledger_rate(self.machine.store, self.method.name, self.made_by("pool"), device)
        if found is None and self.before is not None and self.before.rate is not None:
            return replace(self.before.rate, once=0.0)  # the same model, which is loaded by then
        trial = self.trial if found is None else None
        if trial is not None and trial.tokens:
            how = f"trial: {trial.rows:,} rows, {trial.tokens:,} tokens in {trial.seconds:.1f} s here"
            if trial.idle > _BUSY and self.pool_runner.execution.get("device", "cpu") == "cpu":
                how += f"; other work held the machine for {trial.idle:.0%} of that time"
            found = Rate(trial.per_token, trial.once, how)
        return found

    @cached_property
    def trial(self) -> Trial | None:
        """Some real rows run here, where weights and rows are at hand."""
        if self.before is not None:
            return self.before.trial
        possible = self.pool_runner is not None and self.pool.pool is not None and len(self.pool.pool)
        possible = possible and not self.asks_server
        if not possible or not self.machine.calibrate or (self.passes_model and not self.machine.weights):
            return None
        return tried(self.pool_runner, self.pool)

    def made_by(self, role: str) -> dict[str, Any] | None:
        """Recipe of the method, None while the weights or the commit of a hub id are not known."""
        runner = self.pool_runner if role == "pool" else self.runner(role)
        try:
            return None if runner is None else dict(runner.recipe)
        except RequestError:
            return None

    @cached_property
    def width(self) -> int:
        """d of the vectors."""
        found = getattr(self.pool_runner, "dimensions", None)
        return int(found or (self.machine.lm.width if self.machine.lm is not None else 0))

    # --- one pool -------------------------------------------------------------------------------------------

    def thing(self, known: Known, role: str) -> Thing | None:
        """The stored thing it is or would become, None where its name cannot be known."""
        made_by = self.made_by(role) if known.digest is not None and self.after is None else None
        if made_by is None or known.digest is None:
            return None
        recipe = signal_recipe(self.method, made_by, known.digest, known.rows)
        return Store(self.machine.store).open(self.kind, recipe, len(shard_bounds(known.rows)))

    def stage(self, name: str, known: Known, role: str = "pool") -> Stage:
        """The stage of this method for a pool, or for a query set (`role` "query")."""
        thing = self.thing(known, role)
        bounds = shard_bounds(known.rows)
        state = "missing" if thing is None else thing.state
        missing = list(range(len(bounds))) if thing is None else thing.missing()
        rows = sum(bounds[i][1] - bounds[i][0] for i in missing)
        of_stage: dict[str, Any] = {
            "name": name, "state": state, "kind": self.kind,
            "digest": None if thing is None else thing.digest,
            "shards": len(bounds), "shards_done": len(bounds) - len(missing),
        }  # fmt: skip
        if not rows:
            return Stage(**of_stage, memory_bytes=resident_bytes())
        if self.asks_server:
            return calls_stage(self.pool_runner, of_stage, known, rows)
        tokens, how_tokens = self.tokens(known, role)
        tokens *= rows / max(known.rows, 1)
        flops = tokens * self._flops_per_token(tokens / max(rows, 1))
        seconds, how_seconds = self._seconds(tokens, flops, rows)
        disk, how_disk = self._disk(rows, tokens, len(missing))
        memory, how_memory = self._memory(known)
        lm = self.machine.lm
        published = cost_model.inference(lm.parameters, tokens) if lm is not None and self.passes_model else 0
        on_device = self._device_bytes() if self.passes_model and self._elsewhere else 0.0
        how = {"rows": known.how, "tokens": how_tokens, "seconds": how_seconds, "disk": how_disk}
        if thing is None:
            how["state"] = "its name in the store is not known before the pool and the weights are here"
            if self.after is not None:
                how["state"] = "its name in the store is not known before its model is trained"
        return Stage(
            **of_stage, rows=rows, tokens=tokens, flops=flops, seconds=seconds, disk_bytes=disk,
            memory_bytes=memory, device_bytes=on_device, published_flops=published,
            how={**how, "memory": how_memory},
        )  # fmt: skip

    @property
    def _elsewhere(self) -> bool:
        """Whether the model runs on another device than this CPU."""
        lm = self.machine.lm
        return lm is not None and (lm.device != "cpu" or self.machine.tflops is not None)

    def tokens(self, known: Known, role: str) -> tuple[float, str]:
        """Tokens of all rows after truncation, and how they were counted."""
        most = self.machine.settings.max_tokens
        if known.tokens_per_row is not None:
            return self._imagined(known, most)
        assert known.pool is not None
        runner = self.pool_runner if role == "pool" else self.runner(role)
        count: Callable[[Any], list[int]] | None = getattr(runner, "count_tokens", None)
        if count is not None:
            return _counted(known, count)
        if self.trial is not None and self.trial.tokens:
            ratio = self.trial.tokens / max(self.trial.characters, 1.0)
            return known.characters * ratio, f"{ratio:.3f} a character, as in the trial"
        if runner is None and self.reads_model:
            cut = np.minimum(np.asarray(known.pool.chars) / CHARACTERS_PER_TOKEN, most)
            return float(cut.sum()) * known.scale, "characters / 4, for the model has no tokenizer here"
        return 0.0, "none are counted"

    def _imagined(self, known: Known, most: int) -> tuple[float, str]:
        assert known.tokens_per_row is not None
        if self.before is not None and self.before.method is self.method:
            return 0.0, "rows of one exchange are assumed, which the stage before has read"
        part = "" if self.before is None else ", all of it response: at most"
        return known.rows * min(known.tokens_per_row, most), known.how + part

    def _flops_per_token(self, length: float) -> float:
        if not self.passes_model:
            return float(getattr(self.pool_runner, "flops_per_token", 0.0) or 0.0)
        lm = self.machine.lm
        if lm is None:
            return 0.0
        head = lm.head_flops if self.method.before is not None else 0.0  # losses, of about every token
        return lm.forward_flops(length) + head

    def _seconds(self, tokens: float, flops: float, rows: int) -> tuple[float, str]:
        rate, lm = self.rate, self.machine.lm
        first = not self.paid_once
        self.paid_once = True
        if rate is not None and self.machine.tflops is None:
            once = rate.once if first else 0.0
            loading = f"; {once:.1f} s of it for loading" if once > 0.05 else ""
            return once + tokens * rate.per_token, rate.how + loading
        if self.trial is not None and not self.trial.tokens:
            spent = self.trial.seconds / max(self.trial.rows, 1)
            return (
                self.trial.once + rows * spent,
                f"trial: {self.trial.rows:,} rows in {self.trial.seconds:.1f} s",
            )
        if lm is not None and self.passes_model:
            peak, how = device_peak(lm.device, lm.dtype, self.machine.tflops)
            once = lm.parameters * _itemsize(lm) / _LOAD_BYTES_S if first else 0.0
            return once + flops / (peak * FRACTION), f"FLOPs at {FRACTION:.0%} of {how}"
        return rows * 1e-4, "0.1 ms a row, a guess"

    def _disk(self, rows: int, tokens: float, shards: int) -> tuple[float, str]:
        extra = shards * _SHARD_FILES_BYTES + _META_BYTES
        if self.kind == "scores":
            each = getattr(self.pool_runner, "row_bytes", 13)
            return rows * float(each) + extra, f"{each} bytes a row: value, status, tokens, other columns"
        if self.method.compare is None:
            size = np.dtype(getattr(self.pool_runner, "dtype", None) or self._vector_dtype()).itemsize
            return rows * (self.width * size + 5.0) + extra, f"{self.width} x {size} + 5 bytes a row"
        if self.trial is not None and self.trial.tokens:
            each = self.trial.bytes / self.trial.tokens
            return tokens * each + rows * 5.0 + extra, f"{each:.1f} bytes a token, as in the trial"
        return rows * 1000.0 + extra, "1 kB a row, a guess"

    def _vector_dtype(self) -> str:
        lm = self.machine.lm
        return "float32" if lm is None or lm.dtype == "float32" else "float16"

    def _memory(self, known: Known) -> tuple[float, str]:
        """Peak of the process: what it was in a trial, else libraries, weights and one batch; and arrays that
        grow with the pool, and the rows of one shard."""
        shard = min(shard_rows_of(known.rows), known.rows)
        share = shard / max(known.rows, 1)
        grown = known.rows * ROW_BYTES + share * known.characters * 3 + shard * self._shard_row_bytes()
        rate, lm = self.rate, self.machine.lm
        if rate is not None and rate.peak_memory:
            return float(rate.peak_memory), "peak of the same work in this store's ledger"
        if self.trial is not None:
            # A trial is short: over many batches of unlike length the heap keeps blocks that do not fit.
            base = float(peak_memory_bytes()) + (
                _KEPT_BATCHES * self._batch_bytes()
                if lm and self.passes_model and not self._elsewhere
                else 0.0
            )
            return base + grown, "peak of this process after the trial, and what grows with the run"
        base = float(resident_bytes())
        if lm is not None and self.passes_model:
            if not self._elsewhere:
                base += self._device_bytes()
            else:
                base += lm.parameters * _itemsize(lm)  # weights pass through memory on their way
        return base + grown, "libraries measured here, weights by the config, one batch of activations"

    def _shard_row_bytes(self) -> float:
        return 0.0 if self.method.compare is not None or self.kind == "scores" else self.width * 8.0

    def _device_bytes(self) -> float:
        """Weights and the activations of one batch."""
        lm = self.machine.lm
        assert lm is not None
        return float(_itemsize(lm)) * lm.parameters + self._batch_bytes()

    def _batch_bytes(self) -> float:
        """Activations of one batch."""
        lm = self.machine.lm
        assert lm is not None
        text = lm.config.get_text_config()
        middle = getattr(text, "intermediate_size", None) or 4 * text.hidden_size
        batch = max(self.machine.settings.batch_tokens or 2048, self.machine.settings.max_tokens)
        return float(_itemsize(lm)) * batch * (12.0 * float(text.hidden_size) + 4.0 * float(middle))


def _counted(known: Known, count: Callable[[Any], list[int]]) -> tuple[float, str]:
    """Tokens by the tokenizer on some rows, scaled by characters."""
    assert known.pool is not None
    rows = known.sample(_COUNTED_ROWS)
    counted = float(np.sum(count(list(known.pool.messages_at(rows)))))
    if len(rows) == known.rows:
        return counted, "all rows tokenised: exact"
    ratio = counted / max(float(np.sum(known.pool.chars[rows])), 1.0)
    how = f"{len(rows):,} rows tokenised, the rest by characters ({ratio:.3f} tokens each)"
    return known.characters * ratio, how


def _itemsize(lm: LanguageModel) -> int:
    return 4 if lm.dtype == "float32" else 2
