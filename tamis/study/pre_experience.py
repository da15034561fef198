"""The stage before a signal: rows chosen, the model fine-tuned on them, the signal made with that model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tamis.core.digest import digest
from tamis.core.errors import RequestError
from tamis.core.extras import need
from tamis.representations.less import has_checkpoints
from tamis.study.budget import Budget
from tamis.study.signals import Settings, Signal, signal_of
from tamis.study.strategies import WARMED, Pre, Strategy, resolve

if TYPE_CHECKING:
    from tamis.pools.pool import Pool
    from tamis.study.select import Request


FEW_STEPS = 40


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
    warnings = (*signal.warnings, *_few_steps(strategy, made.facts["training"]))
    return replace(signal, execution=execution, pre=made.facts, pre_digests=paid, warnings=warnings)


def _few_steps(strategy: Strategy, training: Mapping[str, Any]) -> list[str]:
    """What to say of a warm-up that is too short for Adam's moments to mean much."""
    steps = training["steps"]
    if strategy.signal not in WARMED or steps >= FEW_STEPS:
        return []
    return [
        f"the adapter was warmed up in {steps} steps on {training['rows']} rows, so its moments are those of "
        f"a few batches (published: some 300 steps): raise {strategy.signal}.share, or take fewer rows a "
        f"step (--set '{strategy.signal}.recipe={{recipe: less-warmup, batch_rows: 16}}')"
    ]


def warmed(
    method: str, pool: Pool, given: Mapping[str, Any], settings: Settings, role: str = "pool"
) -> tuple[dict[str, Any], Settings]:
    """For gradients without a selection: the signal's own parameters out of `given`, and the settings with
    the model whose checkpoints they are taken at, which is trained as a strategy would do it."""
    from tamis.study.select import Request

    (strategy,) = resolve([f"{method}/round-robin"], {method: given})
    own = dict(strategy.signal_parameters)
    if strategy.pre is None or has_checkpoints(str(settings.model)):
        return own, settings
    if role == "query":
        raise RequestError(
            f"--role query: {method} trains its adapter on rows of the pool, which are not here; give its "
            f"checkpoints with --set {method}.checkpoints=FOLDER"
        )
    check_pre(strategy, settings)
    request = Request([strategy], [Budget(1, "rows")], settings=settings)
    return own, experience(strategy.pre, pool, request).settings


def warm_up(
    pool: Pool,
    *,
    model: str,
    seed: int = 0,
    method: str = "less",
    parameters: Mapping[str, Any] | None = None,
    **settings: Any,
) -> str:
    """Train the adapter of `less` on a share of `pool` as a strategy does; the folder that holds its epochs.

    It goes wherever the model of `less` is named: `tamis.represent(pool, "less", model=folder)`. `parameters`
    are those of the stage (`share`, `rows`, `recipe`); `settings` those of `select` (store, template, …).
    """
    from tamis.study.select import Request

    options = Settings(**{**settings, "model": model, "store": Path(settings.get("store", ".tamis"))})
    (strategy,) = resolve([f"{method}/round-robin"], {method: dict(parameters or {})})
    if strategy.pre is None:
        raise RequestError("pre=false, and checkpoints, leave nothing to train")
    check_pre(strategy, options)
    request = Request([strategy], [Budget(1, "rows")], seed=seed, settings=options)
    return str(experience(strategy.pre, pool, request).settings.model)


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
