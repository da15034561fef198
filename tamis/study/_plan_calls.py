"""What asking a server about rows will take: calls, tokens and money, by the method's own estimate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tamis.pools.pool import Message
from tamis.study._plan_pool import Known
from tamis.study._plan_rates import resident_bytes
from tamis.study._plan_stage import Stage

_SAMPLE = 1024
_CALL_S = 2.0
_REPLY_BYTES = 1200.0


def calls_stage(runner: Any, of_stage: Mapping[str, Any], known: Known, rows: int) -> Stage:
    """The stage of a method with `estimate(conversations, scale)`; `rows` are still due. Nothing is asked."""
    if known.pool is not None and len(known.pool):
        sample = known.sample(_SAMPLE)
        talks: Any = list(known.pool.messages_at(sample))
        how = f"{len(sample):,} rows with the prompt around them, 4 ASCII characters or 1 other a token"
    else:  # rows that are only imagined
        half = "x" * round(2 * (known.tokens_per_row or 0) + 1)
        talks, how = [[Message("user", half), Message("assistant", half)]], known.how
    found = runner.estimate(talks, rows / max(len(talks), 1))
    server = runner.config.server()
    seconds = found["calls"] * _CALL_S / server.concurrency
    if server.per_minute is not None:
        seconds = max(seconds, found["calls"] / server.per_minute * 60)
    return Stage(
        **of_stage, rows=rows, tokens=found["input_tokens"] + found["output_tokens"], seconds=seconds,
        disk_bytes=rows * 15.0 + found["calls"] * _REPLY_BYTES, memory_bytes=resident_bytes(),
        api_calls=round(found["calls"]), api_usd=found["usd"],
        how={
            "API calls": f"one a row without a kept reply; {found['most_calls']:,.0f} if all are asked again",
            "tokens": f"{how}; replies of full length",
            "seconds": f"{_CALL_S:g} s a call, a guess, {server.concurrency} at a time",
        },
    )  # fmt: skip
