"""What gradients will take: the warm-up of an adapter, then queries and pool at each of its checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tamis.core.extras import need
from tamis.core.signal import signal_recipe
from tamis.core.store import Store, Thing, shard_bounds, shard_rows_of
from tamis.models.lm import LanguageModel, load_model
from tamis.models.recipes import Recipe
from tamis.representations import REPRESENTATIONS
from tamis.representations._context import Encoded
from tamis.representations.less import Config, Gradients, shortlist_of
from tamis.study import cost_model
from tamis.study._plan_pool import Known
from tamis.study._plan_rates import (
    FRACTION,
    Rate,
    Trial,
    device_peak,
    ledger_rate,
    resident_bytes,
    tried,
)
from tamis.study._plan_signal import ROW_BYTES, Machine
from tamis.study._plan_stage import Stage
from tamis.study.strategies import Pre, Strategy

if TYPE_CHECKING:
    from tamis.models.gradients import GradientEngine
    from tamis.pools.pool import Message

ADAPTER_BYTES = 12  # two moments and the signs of the projection, float32
STEP_BYTES = 16  # float32 weight, gradient and two moments of a trained parameter
TIMED_ROWS = 20
_SHARD_FILES_BYTES, _META_BYTES = 640, 1200
_EXTRA_ROW_BYTES = 13  # norm, loss, status, tokens
_THREADS_MOST = 2
_SHARDS_ALIVE = 2  # features of a shard in float32, and what is kept of them


class GradientWork:
    """Gradients by one signal and its parameters, on the pool of a plan."""

    def __init__(
        self, strategy: Strategy, machine: Machine, pool: Known, queries: Mapping[str, Known], per_row: float
    ) -> None:
        self.strategy, self.machine, self.pool, self.queries = strategy, machine, pool, queries
        self.per_row = per_row
        self.method = REPRESENTATIONS[str(strategy.representation)]
        self.side: Gradients | None = None
        lm = machine.lm
        if strategy.pre is None and lm is not None and lm.tokenizer is not None:
            made = self.method.run(
                self.method.configure(strategy.signal_parameters), machine.settings.context()
            )
            self.side = made if made.parts else None

    @cached_property
    def config(self) -> Config:
        """Parameters of the signal."""
        if self.side is not None:
            return self.side.config
        found: Config = self.method.configure(self.strategy.signal_parameters)
        share = shortlist_of(self.method.name, self.strategy.signal_parameters)
        return replace(found, shortlist=share)

    @property
    def checkpoints(self) -> int:
        """How many there are, or will be."""
        if self.side is not None:
            return len(self.side.parts)
        return self.strategy.pre.recipe.epochs if self.strategy.pre is not None else 1

    @cached_property
    def adapter_parameters(self) -> int:
        """Numbers of the adapter: of its files, or of the recipe on an empty copy of the model."""
        if self.side is not None:
            return _parameters_of(self.side.parts[0].checkpoint.folder)
        lm, pre = self.machine.lm, self.strategy.pre
        return 0 if lm is None or pre is None else adapter_parameters(lm, pre.recipe)

    @property
    def width(self) -> int:
        """Numbers that are kept of a row."""
        if self.config.keep == "similarity":
            return sum(query.rows for query in self.queries.values())
        return self.adapter_parameters if self.config.projection == "none" else self.config.dimensions

    def stages(self) -> list[Stage]:
        """In the order in which `select` runs them."""
        found = []
        if self.strategy.pre is not None:
            found.append(self._training(self.strategy.pre))
        asking = sum(query.rows for query in self.queries.values())
        if asking:
            total = asking * self.checkpoints
            tokens = total * self.per_row
            found.append(
                self._stage("gradients of the queries at every checkpoint", "missing", total, tokens, None)
            )
        for k in range(self.checkpoints):
            found.append(self._pool_stage(k))
        return found

    # --- stages ----------------------------------------------------------------------------------------

    def _pool_stage(self, k: int) -> Stage:
        share = self.config.shortlist if k and self.config.shortlist is not None else 1.0
        rows = round(self.pool.rows * share)
        thing = self._thing(k) if share == 1.0 else None
        bounds = shard_bounds(rows)
        missing = list(range(len(bounds))) if thing is None else thing.missing()
        due = sum(bounds[i][1] - bounds[i][0] for i in missing)
        name = f"gradients of the pool at checkpoint {k + 1} of {self.checkpoints}"
        if share != 1.0:
            name += f", the best {share:.0%}"
        return self._stage(name, "missing" if thing is None else thing.state, due, due * self.per_row, thing)

    def _thing(self, k: int) -> Thing | None:
        if self.side is None or self.pool.digest is None or self.config.keep == "similarity":
            return None
        recipe = signal_recipe(
            REPRESENTATIONS["less"], self.side.parts[k].recipe, self.pool.digest, self.pool.rows
        )
        return Store(self.machine.store).open("representation", recipe, len(shard_bounds(self.pool.rows)))

    def _stage(self, name: str, state: str, rows: int, tokens: float, thing: Thing | None) -> Stage:
        lm = self.machine.lm
        shards = len(shard_bounds(self.pool.rows))
        of_stage: dict[str, Any] = {
            "name": name, "state": state, "kind": "representation",
            "digest": None if thing is None else thing.digest,
            "shards": shards, "shards_done": 0 if thing is None else shards - len(thing.missing()),
        }  # fmt: skip
        if not rows or lm is None:
            return Stage(**of_stage, rows=rows, tokens=tokens, memory_bytes=resident_bytes())
        flops = 2 * tokens * lm.forward_flops(tokens / rows)
        seconds, how = self._seconds(tokens, flops)
        here = lm.device == "cpu" and self.machine.tflops is None
        needed = self._model_bytes(lm)
        shard = min(shard_rows_of(self.pool.rows), self.pool.rows)
        grown = self.pool.rows * ROW_BYTES + shard * self.width * 4 * _SHARDS_ALIVE
        itemsize = np.dtype(self.config.dtype).itemsize
        disk = rows * (self.width * itemsize + _EXTRA_ROW_BYTES) + shards * _SHARD_FILES_BYTES + _META_BYTES
        hows = {
            "rows": self.pool.how,
            "tokens": "rows of the pool's mean length",
            "flops": "a forward and a backward pass, 4 P a token: the base has no gradients of weights",
            "seconds": how,
            "disk": f"{self.width:,} x {itemsize} + {_EXTRA_ROW_BYTES} bytes a row",
            "memory": "weights, moments and signs of the adapter, activations of a batch, one shard",
        }
        if thing is None and self.strategy.pre is not None:
            hows["state"] = "its name in the store is not known before its adapter is trained"
        return Stage(
            **of_stage, rows=rows, tokens=tokens, flops=flops, seconds=seconds, disk_bytes=disk,
            memory_bytes=resident_bytes() + grown + (needed if here else 0.0),
            device_bytes=0.0 if here else needed,
            published_flops=cost_model.training(lm.parameters, tokens), how=hows,
        )  # fmt: skip

    def _training(self, pre: Pre) -> Stage:
        lm, recipe = self.machine.lm, pre.recipe
        rows = min(pre.rows_of(self.pool.rows), self.pool.rows)
        tokens = rows * min(self.per_row, recipe.max_tokens) * recipe.epochs
        name = f"train the adapter of {self.method.name}"
        if lm is None:
            return Stage(name, "missing", rows, tokens)
        flops = 4 * lm.parameters * tokens
        seconds, how = self._seconds(tokens, flops)
        adapter = self.adapter_parameters
        here = lm.device == "cpu" and self.machine.tflops is None
        needed = 4.0 * lm.parameters + STEP_BYTES * adapter + self._activations(lm)
        return Stage(
            name, "missing", rows, tokens, flops, seconds, kind="model",
            disk_bytes=4.0 * adapter * (3 * recipe.epochs + 1),
            memory_bytes=resident_bytes() + (needed if here else 0.0),
            device_bytes=0.0 if here else needed,
            published_flops=cost_model.training(lm.parameters, tokens),
            how={
                "rows": "a share of the pool, at most so many; rows without a target are left out later",
                "tokens": "rows of the pool's mean length, cut at the recipe's, times epochs",
                "seconds": f"as gradients of single rows; {how}",
                "disk": "the adapter and two moments of every epoch",
                "memory": "weights in float32, gradients and moments of the adapter, activations",
                "state": "its name in the store is not known before its rows are",
            },
        )  # fmt: skip

    # --- speed and memory --------------------------------------------------------------------------------

    def _seconds(self, tokens: float, flops: float) -> tuple[float, str]:
        lm = self.machine.lm
        rate = self.rate if self.machine.tflops is None else None
        if rate is not None:
            return rate.once + tokens * rate.per_token, rate.how
        assert lm is not None
        peak, how = device_peak(lm.device, lm.dtype, self.machine.tflops)
        return flops / (peak * FRACTION), f"FLOPs at {FRACTION:.0%} of {how}"

    @cached_property
    def rate(self) -> Rate | None:
        """From the ledger; else some rows of the pool, timed here; None when neither can be had."""
        lm = self.machine.lm
        if lm is None:
            return None
        if self.side is not None:
            found = ledger_rate(self.machine.store, self.method.name, self.side.parts[0].recipe, lm.device)
            if found is not None:
                return found
        possible = self.machine.calibrate and self.machine.weights and self.pool.pool is not None
        if not possible or lm.tokenizer is None or not self.pool.rows:
            return None
        runner: Any = self.side.parts[0] if self.side else Untrained(self.machine, self.strategy)
        trial: Trial = tried(runner, self.pool)
        if not trial.tokens or not trial.per_token:
            return None
        how = (
            f"trial: gradients of {trial.rows:,} rows, {trial.tokens:,} tokens in {trial.seconds:.1f} s here"
        )
        if self.side is None:
            how += ", of an adapter of the same size that is not trained"
        return Rate(trial.per_token, trial.once, how)

    def _model_bytes(self, lm: LanguageModel) -> float:
        size = 4 if lm.dtype == "float32" else 2
        return float(lm.parameters * size + ADAPTER_BYTES * self.adapter_parameters) + self._activations(lm)

    def _activations(self, lm: LanguageModel) -> float:
        from tamis.models.gradients import kept_bytes_per_token
        from tamis.models.packing import CPU_BATCH_TOKENS

        tokens = self.machine.settings.batch_tokens or CPU_BATCH_TOKENS
        threads = min(need("torch", extra="lm").get_num_threads(), _THREADS_MOST) if lm.device == "cpu" else 1
        return float(kept_bytes_per_token(lm) * max(tokens, self.machine.settings.max_tokens) * threads)


class Untrained:
    """Gradients of an adapter of the recipe's size with made-up weights, to time them; nothing is stored."""

    def __init__(self, machine: Machine, strategy: Strategy) -> None:
        self.machine, self.strategy = machine, strategy

    @cached_property
    def _engine(self) -> GradientEngine:
        torch, settings = need("torch", extra="lm"), self.machine.settings
        from tamis.models.gradients import GradientEngine

        assert self.strategy.pre is not None
        lm = load_model(str(settings.model), settings.dtype, settings.device, settings.remote_code)
        model = with_adapter(lm.model, lm, self.strategy.pre.recipe)
        trained = tuple(name for name, p in model.named_parameters() if p.requires_grad)
        for name, parameter in model.named_parameters():
            if name in trained:
                torch.nn.init.normal_(parameter, std=0.01)
        model.eval().requires_grad_(False)
        return GradientEngine(
            replace(lm, adapter="untrained", model=model, trained=trained), settings.batch_tokens
        )

    def encode(self, conversations: Sequence[Sequence[Message]], advance: Callable[[int], None]) -> Encoded:
        """As `GradientEncoder` does it, with moments of zero."""
        torch = need("torch", extra="lm")
        from tamis.models.preconditioners import Constants, Moments, less
        from tamis.models.projections import projection
        from tamis.models.render import Renderer

        engine, settings = self._engine, self.machine.settings
        renderer = Renderer(engine.lm.tokenizer, settings.template, settings.max_tokens)
        rendered = [row for row in renderer.render_many(conversations) if row.mask[1:].any()]
        targets = [np.concatenate([[False], row.mask[1:]]) for row in rendered]
        project = projection("count-sketch", engine.layout, cost_model.PROJECTED, 0, engine.lm.device)
        zeros = {slot.name: torch.zeros(slot.size, device=engine.lm.device) for slot in engine.layout}
        found = engine.features(
            [row.ids for row in rendered], targets, project,
            lambda slot, g: less(g, Moments(zeros[slot.name], zeros[slot.name]), Constants()), advance,
        )  # fmt: skip
        tokens = np.array([len(row.ids) for row in rendered], np.int32)
        return Encoded({"vectors": found.features}, np.zeros(len(rendered), np.uint8), tokens)


def with_adapter(model: Any, lm: LanguageModel, recipe: Recipe) -> Any:
    """`model` with an untrained adapter as the recipe describes it."""
    from tamis.models.train import lora_of

    return need("peft", extra="lm").get_peft_model(model, lora_of(lm, recipe))


def adapter_parameters(lm: LanguageModel, recipe: Recipe) -> int:
    """Numbers of an adapter of the recipe, counted on an empty copy of the model."""
    torch, transformers = need("torch", extra="lm"), need("transformers", extra="lm")
    with torch.device("meta"):
        empty = transformers.AutoModelForCausalLM.from_config(lm.config)
        model = with_adapter(empty, lm, recipe)
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def _parameters_of(folder: Path) -> int:
    """Numbers in an adapter's file."""
    from safetensors import safe_open

    file = folder / "adapter_model.safetensors"
    if not file.exists():
        return 0
    with safe_open(file, framework="np") as found:
        return sum(int(np.prod(found.get_slice(name).get_shape())) for name in found.keys())  # noqa: SIM118
