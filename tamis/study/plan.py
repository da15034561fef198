"""Plan: what a selection would find in the store, and what the rest would take, without doing it.

Every figure says how it was estimated: exact from what is stored or was read; by a rate from this store's
ledger; by a trial of some seconds on real rows; or, for a model of which only the config is here, by a stated
share of the device's speed. Nothing is written to the store.
"""

from __future__ import annotations

import os
import platform
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tamis.core.errors import RequestError
from tamis.core.extras import need
from tamis.core.method import Method
from tamis.core.store import Store, shard_bounds
from tamis.models.lm import LanguageModel, describe_model, weight_files
from tamis.representations import REPRESENTATIONS
from tamis.scores import SCORES
from tamis.study._plan_choice import choice_stage, own_seconds, writing_stages
from tamis.study._plan_gradients import GradientWork
from tamis.study._plan_pool import Known, imagined, known_pool
from tamis.study._plan_rates import resident_bytes
from tamis.study._plan_signal import ROW_BYTES, Machine, Work
from tamis.study._plan_stage import Plan, Stage
from tamis.study._plan_training import pre_stages
from tamis.study.budget import Budget
from tamis.study.signals import Settings
from tamis.study.strategies import WARMED, Strategy

if TYPE_CHECKING:
    from tamis.pools.pool import Pool
    from tamis.study.select import Request

QUERY_ROWS = 100
_RENDER_ROWS = 512
_START_S = 0.6
"""Of an interpreter with the base packages; heavier ones are timed when they are imported here."""


@dataclass(frozen=True)
class Asked:
    """A selection to be planned. `pool`: paths; or, instead, `rows` of `tokens_per_row` tokens each, that are
    only imagined. `queries`: task → path. `query_rows`: assumed where queries are needed and none are given.
    `tflops`: peak of the device it will run on, in place of this one. `price`: US dollars of a device
    hour."""

    strategies: Sequence[Strategy]
    budgets: Sequence[Budget]
    pool: Sequence[str] = ()
    queries: Mapping[str, str] = field(default_factory=dict)
    map: Any = None
    rows: int | None = None
    tokens_per_row: float | None = None
    query_rows: int = QUERY_ROWS
    settings: Settings = field(default_factory=Settings)
    tflops: float | None = None
    price: float | None = None
    calibrate: bool = True
    report: bool = True

    def check(self) -> None:
        """Raise RequestError for what cannot be planned."""
        if not self.strategies or not self.budgets:
            raise RequestError("give at least one strategy and one budget")
        if bool(self.pool) == (self.rows is not None):
            raise RequestError("give --pool, or --rows and --tokens-per-row for a pool that is not here yet")
        if (self.rows is None) != (self.tokens_per_row is None):
            raise RequestError("--rows and --tokens-per-row belong together")
        if self.rows is not None and (self.rows < 1 or (self.tokens_per_row or 0) <= 0):
            raise RequestError(
                f"--rows {self.rows}, --tokens-per-row {self.tokens_per_row}: both must be above 0"
            )
        for strategy in self.strategies:
            if strategy.needs_query and not self.queries and self.pool:
                raise RequestError(f"{strategy.name} compares rows with a target: give --query NAME=PATH")
            if strategy.needs_model and self.settings.model is None:
                raise RequestError(f"{strategy.name} needs --model PATH_OR_ID (its config alone will do)")


def plan(asked: Asked) -> Plan:
    """The stages of a selection with what each will take; raises RequestError for what cannot be planned."""
    asked.check()
    lm, loading = _described(asked.settings)
    with tempfile.TemporaryDirectory(prefix="tamis-plan-") as scratch:
        return _planned(asked, lm, loading, Path(scratch))


def _described(settings: Settings) -> tuple[LanguageModel | None, float]:
    """The model by its config, and the seconds that its libraries take to import."""
    if settings.model is None:
        return None, 0.0
    start, loaded = time.perf_counter(), "transformers" in sys.modules
    need("torch", extra="lm"), need("transformers", extra="lm")
    lm = describe_model(settings.model, settings.dtype, settings.device, settings.remote_code)
    return lm, 6.0 if loaded else time.perf_counter() - start


def _planned(asked: Asked, lm: LanguageModel | None, loading: float, scratch: Path) -> Plan:
    settings = asked.settings
    machine = Machine(settings.store, settings, lm, _has_weights(lm), asked.tflops, asked.calibrate)
    if asked.rows is not None and asked.tokens_per_row is not None:
        pool = imagined(asked.rows, asked.tokens_per_row)
    else:
        pool = known_pool(asked.pool, settings.store, scratch / "pool", map=asked.map)
    queries = {
        name: known_pool([path], settings.store, scratch / "queries", query=True, map=asked.map)
        for name, path in asked.queries.items()
    }
    for name, query in queries.items():
        if not query.rows:
            raise RequestError(f"query {name!r} has no rows")
    if not queries and any(strategy.needs_query for strategy in asked.strategies):
        queries = {"assumed": imagined(asked.query_rows, asked.tokens_per_row or 0)}
    works = _works(asked, machine, pool, queries)
    made = [_reading("read the pool", pool), *(_reading(f"read query {n}", q) for n, q in queries.items())]
    per_row = pool.characters / 4 / max(pool.rows, 1)
    rendering = _rendering(machine, pool, works)
    if rendering is not None:
        made.append(rendering[0])
        per_row = rendering[1]
    made += _signals(asked, works, pool, queries, per_row)
    made += _gradients(asked.strategies, machine, pool, queries, per_row)
    asking = sum(query.rows for query in queries.values())
    made += [
        choice_stage(s, asked.budgets, works.get(_key(s)), pool, asking, per_row) for s in asked.strategies
    ]
    made += writing_stages(asked.strategies, asked.budgets, pool, per_row, asked.report)
    begun = Stage(
        "start", "due", seconds=_START_S + loading, memory_bytes=resident_bytes(),
        how={"seconds": "importing the libraries, timed here" if loading else "a fixed guess"},
    )  # fmt: skip
    stages = [begun, *(stage for stage in made if stage is not None)]
    return Plan(stages, _facts(asked, pool, queries, machine), _notes(asked, pool, machine), asked.price)


def _key(strategy: Strategy) -> str:
    after = _suffix(strategy if strategy.pre is not None else None)
    return _key_of(str(strategy.signal), strategy.signal_parameters) + after


def _suffix(after: Strategy | None) -> str:
    return "" if after is None else f" after training: {after.name}"


def _key_of(name: str, parameters: Mapping[str, Any]) -> str:
    return f"{name}{sorted(parameters.items())}"


def _works(
    asked: Asked, machine: Machine, pool: Known, queries: Mapping[str, Known] | None = None
) -> dict[str, Work]:
    """Each signal once, whatever strategies share it; before a score what it is made from."""
    found: dict[str, Work] = {}

    def add(
        key: str, kind: str, method: Method, parameters: Mapping[str, Any], after: Strategy | None = None
    ) -> Work:
        work = Work(kind, method, parameters, _machine_of(method, parameters, machine), pool, queries)
        part = getattr(work.pool_runner, "made_from", None) if "query" in method.needs else None
        if part is not None:
            add(_key_of(*part), "representation", REPRESENTATIONS[part[0]], part[1])
        named = method.before(work.config) if method.before is not None else None
        if named is not None:
            own = _key_of(*named) + _suffix(after)
            work.before = add(own, "scores", SCORES[named[0]], named[1], after)
        work.after = after
        return found.setdefault(key, work)

    for strategy in _with_first(asked.strategies):
        if strategy.signal in WARMED:  # see _plan_gradients.py
            continue
        if strategy.signal is not None and _key(strategy) not in found:
            kind = "representation" if strategy.representation else "scores"
            after = strategy if strategy.pre is not None else None
            add(_key(strategy), kind, strategy.methods()[0], strategy.signal_parameters, after)
        if strategy.vectors is not None:
            parameters = strategy.vector_parameters
            key = _key_of(strategy.vectors, parameters)
            add(key, "representation", REPRESENTATIONS[strategy.vectors], parameters)
    return found


def _with_first(strategies: Sequence[Strategy]) -> list[Strategy]:
    """Every strategy, each after the one that chooses the rows of the stage before it."""
    return [
        one for strategy in strategies for one in (strategy.pre and strategy.pre.strategy, strategy) if one
    ]


def _machine_of(method: Method, parameters: Mapping[str, Any], machine: Machine) -> Machine:
    """The machine with the model that a method names itself, in place of the run's; of two the second."""
    if not {"model", "scorer"} & set(method.needs):
        return machine
    config, settings = method.configure(parameters), machine.settings
    own = getattr(config, "model", None) or getattr(config, "quality_model", None)
    if not own:
        return machine
    lm = describe_model(own, settings.dtype, settings.device, settings.remote_code)
    return replace(machine, lm=lm, weights=_has_weights(lm))


def _has_weights(lm: LanguageModel | None) -> bool:
    """Whether the weights lie in a folder here; those of a hub id are not fetched for a plan."""
    if lm is None or not Path(lm.path).is_dir():
        return False
    try:
        return bool(weight_files(Path(lm.path)))
    except RequestError:
        return False


def _reading(name: str, known: Known) -> Stage | None:
    """Reading the files; None for rows that are only imagined."""
    if known.thing is None:
        return None
    thing = known.thing
    of_stage: dict[str, Any] = {
        "name": name, "state": thing.state, "kind": "pool", "digest": thing.digest, "shards": thing.shards,
        "shards_done": thing.shards - len(thing.missing()),
    }  # fmt: skip
    if thing.state == "complete":
        return Stage(**of_stage, memory_bytes=resident_bytes(), how={"rows": known.how})
    left = len(thing.missing()) / max(thing.shards, 1)
    how = {"rows": known.how, "seconds": "as reading them took just now", "disk": "as it was just now"}
    if known.digest is None:
        how |= {"seconds": "the sample's time by bytes", "disk": "the sample's files by bytes"}
    memory = resident_bytes() + known.rows * ROW_BYTES
    return Stage(
        **of_stage, rows=known.rows, seconds=known.seconds * left, disk_bytes=known.disk * left,
        memory_bytes=memory, how=how,
    )  # fmt: skip


def _rendering(machine: Machine, pool: Known, works: Mapping[str, Work]) -> tuple[Stage, float] | None:
    """Counting rendered tokens of every row, which any run with a model does; and tokens of a row."""
    lm, settings = machine.lm, machine.settings
    if lm is None:
        return None
    if lm.tokenizer is None or pool.pool is None:
        each = min(pool.characters / 4 / max(pool.rows, 1), settings.max_tokens)
        how = {
            "tokens": pool.how if pool.tokens_per_row else "characters / 4, for there is no tokenizer here"
        }
        how["seconds"] = "a million tokens a second, a guess"
        stage = Stage(
            "render lengths", "missing", pool.rows, each * pool.rows, seconds=each * pool.rows / 1e6,
            disk_bytes=pool.rows * 13.0, memory_bytes=resident_bytes() + pool.rows * ROW_BYTES, how=how,
        )  # fmt: skip
        return stage, each
    from tamis.models.lengths import rendering_recipe
    from tamis.models.render import Renderer

    renderer = Renderer(lm.tokenizer, settings.template, settings.max_tokens)
    bounds = shard_bounds(pool.rows)
    thing = None
    if pool.digest is not None:
        recipe = rendering_recipe(renderer, pool.digest, pool.rows)
        thing = Store(machine.store).open("rendering", recipe, len(bounds))
    if thing is not None and thing.state == "complete":
        stage = Stage(
            "render lengths", "complete", kind="rendering", digest=thing.digest, shards=len(bounds),
            shards_done=len(bounds), memory_bytes=resident_bytes(), how={"tokens": "stored: exact"},
        )  # fmt: skip
        return stage, thing.summary["tokens"] / max(pool.rows, 1)
    rows = pool.sample(_RENDER_ROWS)
    conversations = list(pool.pool.messages_at(rows))
    start = time.perf_counter()
    rendered = renderer.render_many(conversations)
    spent = time.perf_counter() - start
    characters = max(float(pool.pool.chars[rows].sum()), 1.0)
    share = pool.characters / characters
    tokens = sum(len(row.ids) for row in rendered) * share
    missing = len(bounds) if thing is None else len(thing.missing())
    left = missing / len(bounds)
    how = {
        "tokens": f"{len(rows):,} rows rendered, scaled by characters",
        "seconds": f"as these took, {spent:.2f} s",
        "disk": "13 bytes a row",
    }
    stage = Stage(
        "render lengths", "missing" if thing is None else thing.state, round(pool.rows * left), tokens * left,
        seconds=spent * share * left, disk_bytes=pool.rows * left * 13.0 + missing * 1000 + 1200,
        memory_bytes=resident_bytes() + pool.rows * ROW_BYTES, kind="rendering",
        digest=None if thing is None else thing.digest, shards=len(bounds), shards_done=len(bounds) - missing,
        how=how,
    )  # fmt: skip
    return stage, tokens / max(pool.rows, 1)


def _signals(
    asked: Asked, works: Mapping[str, Work], pool: Known, queries: Mapping[str, Known], per_row: float
) -> list[Stage]:
    """Queries first, as `select` does it, then the pool; no queries for the vectors beside a score; before a
    score by a model that is trained first, the stages of that."""
    found: list[Stage] = []
    trained: set[str] = set()
    strategies = _with_first(asked.strategies)
    apart = {_key_of(s.vectors, s.vector_parameters) for s in strategies if s.vectors is not None}
    apart -= {_key(strategy) for strategy in strategies if strategy.representation is not None}
    for key, work in works.items():
        name = work.method.name
        if work.after is not None and work.after.pre is not None:
            if work.after.name not in trained:
                found += pre_stages(work.after, works[_key(work.after.pre.strategy)], pool, per_row)
            trained.add(work.after.name)
            name += " with the trained model"
        if work.kind == "representation" and key not in apart:
            found += [work.stage(f"encode query {task} by {name}", q, "query") for task, q in queries.items()]
        verb = "encode" if work.kind == "representation" else "score"
        stage = work.stage(f"{verb} the pool by {name}{work.which}", pool)
        if stage.digest is None or all(stage.digest != other.digest for other in found):
            found.append(stage)
    return found


def _gradients(
    strategies: Sequence[Strategy],
    machine: Machine,
    pool: Known,
    queries: Mapping[str, Known],
    per_row: float,
) -> list[Stage]:
    """Stages of the strategies that take gradients, those of one signal once; one training for all that share
    it."""
    found: list[Stage] = []
    seen: set[str] = set()
    for strategy in strategies:
        if strategy.signal not in WARMED or _key(strategy) in seen:
            continue
        seen.add(_key(strategy))
        trained = str(strategy.pre.described() if strategy.pre else "")
        stages = GradientWork(strategy, machine, pool, queries, per_row).stages()
        found += stages[1:] if strategy.pre and trained in seen else stages
        seen.add(trained)
    return found


def expected(pool: Pool, request: Request) -> tuple[float, float]:
    """Seconds and bytes of the model passes and costly selections that a request has still to make, as far as
    they can be known without a trial: by the ledger, else by FLOPs at a share of the device's speed."""
    settings = request.settings
    characters = float(np.sum(pool.chars, dtype=np.int64))
    known = Known(pool, len(pool), characters, 1.0, pool.digest, "stored: exact", 0.0)
    passing = [strategy for strategy in request.strategies if strategy.needs_model]
    seconds = disk = 0.0
    if passing:
        lm, _ = _described(settings)
        machine = Machine(settings.store, settings, lm, _has_weights(lm), None, calibrate=False)
        asked = Asked(passing, request.budgets, settings=settings)
        works = _works(asked, machine, known)
        per_row = known.characters / 4 / max(known.rows, 1)
        gradients = _gradients(passing, machine, known, {}, per_row)
        for stage in [*_signals(asked, works, known, {}, per_row), *gradients]:
            seconds, disk = seconds + stage.seconds, disk + stage.disk_bytes
    queries = sum(map(len, request.queries.values()))
    for strategy in request.strategies:
        seconds += own_seconds(strategy, request.budgets, len(pool), queries)
    return seconds, disk


# --- what else there is to say ---------------------------------------------------------------------------


def _facts(asked: Asked, pool: Known, queries: Mapping[str, Known], machine: Machine) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "pool": {
            "rows": pool.rows, "characters": round(pool.characters), "input_bytes": pool.input_bytes,
            "digest": pool.digest, "how": pool.how,
        },
        "queries": {name: {"rows": query.rows, "how": query.how} for name, query in queries.items()},
        "machine": {"system": platform.platform(), "cores": os.cpu_count()},
    }  # fmt: skip
    if machine.lm is not None:
        lm = machine.lm
        facts["model"] = {
            "path": asked.settings.model, "parameters": lm.parameters, "body_parameters": lm.body_parameters,
            "width": lm.width, "dtype": lm.dtype, "device": lm.device, "weights": machine.weights,
            "tokenizer": lm.tokenizer is not None,
        }  # fmt: skip
    return facts


def _notes(asked: Asked, pool: Known, machine: Machine) -> list[str]:
    found = []
    bad = sum(report.bad_rows for report in pool.pool.files) if pool.pool is not None else 0
    if bad:
        found.append(f"{bad:,} bad rows: `select` stops at them unless --skip-bad-rows")
    for budget in asked.budgets:
        if budget.unit == "rows" and budget.amount > pool.rows:
            found.append(
                f"budget {budget.folder} is more than the pool: `select` stops unless --allow-underflow"
            )
    if machine.lm is not None and not machine.weights and any(s.needs_model for s in asked.strategies):
        found.append("the weights are not here: nothing could be tried, and what is stored cannot be told")
    if pool.tokens_per_row is not None and not asked.queries:
        found.append(f"no query was given: {asked.query_rows} rows are assumed")
    return found
