"""What the stage before a signal will take: the choice of its rows and the training on them."""

from __future__ import annotations

from dataclasses import replace

from tamis.models.train import DEVICE_TOKENS
from tamis.study import cost_model
from tamis.study._plan_choice import choice_stage, own_estimate
from tamis.study._plan_pool import Known
from tamis.study._plan_rates import FRACTION, device_peak, numpy_peak, resident_bytes
from tamis.study._plan_signal import Machine, Work
from tamis.study._plan_stage import Stage
from tamis.study.budget import Budget
from tamis.study.strategies import Pre, Strategy

_FORWARDS = 3.0
"""A step is a forward pass and a backward pass of twice its operations."""
_BYTES_A_WEIGHT = 16  # float32 weight, gradient and two moments


def pre_stages(strategy: Strategy, first: Work, pool: Known, per_row: float) -> list[Stage]:
    """Choosing the rows of `strategy.pre`, and training on them; `first` is the work of that stage's score,
    whose speed the estimate is made from."""
    assert strategy.pre is not None
    budget = Budget(min(strategy.pre.rows, pool.rows), "rows")
    before = strategy.pre.strategy
    chosen = choice_stage(before, [budget], None, pool, 0, per_row)
    width = 0 if first.machine.lm is None else first.machine.lm.width
    method = before.methods()[-1]
    config = method.configure(before.selection_parameters)
    own = own_estimate(method, 1, pool.rows, width, config, int(budget.amount))
    if own is not None:
        how = {**chosen.how, "seconds": f"what {method.name} says of itself, at half the measured speed here"}
        seconds = chosen.seconds + own["flops"] / (numpy_peak() / 2)
        chosen = replace(chosen, flops=own["flops"], seconds=seconds, how=how)
    return [chosen, training_stage(strategy.name, strategy.pre, first, first.machine, pool, per_row)]


def training_stage(name: str, pre: Pre, first: Work, machine: Machine, pool: Known, per_row: float) -> Stage:
    """Fine-tuning on as many rows as were asked for, of the mean length of the pool."""
    recipe, lm = pre.recipe, machine.lm
    rows = min(pre.rows, pool.rows)
    tokens = rows * min(per_row, recipe.max_tokens) * recipe.epochs
    if lm is None:
        return Stage(f"train the model of {name}", "missing", rows, tokens)
    flops = cost_model.training(lm.parameters, tokens)
    rate = first.rate if machine.tflops is None else None
    if rate is not None:
        seconds = rate.once + _FORWARDS * rate.per_token * tokens
        how = f"three times a forward pass; {rate.how}"
    else:
        peak, device = device_peak(lm.device, lm.dtype, machine.tflops)
        seconds, how = flops / (peak * FRACTION), f"FLOPs at {FRACTION:.0%} of {device}"
    needed = float(_BYTES_A_WEIGHT) * lm.parameters
    needed += 3 * 4.0 * min(DEVICE_TOKENS, recipe.max_tokens * recipe.batch_rows) * _words(lm.config)
    here = lm.device == "cpu" and machine.tflops is None
    return Stage(
        f"train the model of {name}",
        "missing",
        rows,
        tokens,
        flops,
        seconds,
        disk_bytes=4.0 * lm.parameters,
        memory_bytes=resident_bytes() + (needed if here else 4.0 * lm.parameters),
        device_bytes=0.0 if here else needed,
        published_flops=flops,
        kind="model",
        how={
            "rows": "as many as are asked for; the first stage may give fewer",
            "tokens": "rows of the pool's mean length, cut at the recipe's, times epochs",
            "seconds": how,
            "memory": "weights, gradients, two moments, and logits of one micro-batch; no activations",
            "state": "its name in the store is not known before its rows are",
        },
    )


def _words(config: object) -> int:
    """Size of the vocabulary."""
    text = config.get_text_config()  # type: ignore[attr-defined]
    return int(text.vocab_size)
