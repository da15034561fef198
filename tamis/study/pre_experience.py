"""The stage before a signal: rows chosen, the model fine-tuned on them, the signal made with that model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from tamis.core.digest import digest
from tamis.core.errors import RequestError
from tamis.core.extras import need
from tamis.study.budget import Budget
from tamis.study.signals import Settings, Signal, signal_of
from tamis.study.strategies import Pre, Strategy

if TYPE_CHECKING:
    from tamis.pools.pool import Pool
    from tamis.study.select import Request


@dataclass(frozen=True)
class Experience:
    """What the stage made. `facts` are equal for equal recipes; `digests`: stored things it paid for."""

    settings: Settings  # of the run, with the trained model
    facts: Mapping[str, Any] = field(default_factory=dict)
    digests: tuple[str, ...] = ()


def check_pre(strategy: Strategy, settings: Settings) -> None:
    """Raise RequestError, before any work, where the model cannot be trained."""
    if strategy.pre is None:
        return
    for module in ("accelerate", "sklearn", "safetensors"):
        need(module, extra="lm")
    from tamis.models.train import trainable

    if settings.model is None:
        raise RequestError(f"{strategy.name} needs --model PATH_OR_ID")
    trainable(settings.model, strategy.pre.recipe, settings.device, settings.remote_code)


def signal_after(strategy: Strategy, pool: Pool, request: Request) -> Signal:
    """The signal of `strategy`, after the stage before it where it has one."""
    if strategy.pre is None:
        return signal_of(strategy, pool, request.queries, request.settings)
    made = experience(strategy.pre, pool, request)
    signal = signal_of(strategy, pool, request.queries, made.settings)
    execution = {**signal.execution, "model": str(made.settings.model)}
    paid = (*made.digests, *signal.pre_digests)
    return replace(signal, execution=execution, pre=made.facts, pre_digests=paid)


def experience(pre: Pre, pool: Pool, request: Request) -> Experience:
    """Choose the rows, as a selection of its own in the store, and train on them; what is stored is read."""
    from tamis.models.train import train
    from tamis.study.select import run

    settings = request.settings
    first = replace(
        request, strategies=[pre.strategy], budgets=[Budget(pre.rows_of(len(pool)), "rows")], within=None,
        allow_underflow=True, exclude=(), report=False,
    )  # fmt: skip
    (subset,) = run(pool, first, None)
    chosen_by = signal_of(pre.strategy, pool, {}, settings)
    signals = (*chosen_by.digests, *chosen_by.pre_digests)
    trained = train(
        subset,
        model=str(settings.model),
        recipe=pre.recipe,
        seed=request.seed,
        template=settings.template,
        store=settings.store,
        device=settings.device,
        remote_code=settings.remote_code,
        quiet=settings.quiet,
    )
    facts = {
        "strategy": pre.strategy.name,
        "asked_rows": pre.rows_of(len(pool)),
        "chosen_rows": len(subset),
        "choice": subset.facts["notes"],
        "model": trained.digest,
        "training": dict(trained.summary),
    }
    # With --dtype auto its weights are read as they were trained: bfloat16 would round the steps away.
    after = replace(settings, model=str(trained.path))
    return Experience(after, facts, (*signals, digest(first.recipe(pool)), trained.digest))
