"""The ledger: one line per piece of work, naming the stored thing it paid for.

Kept apart from the things themselves, because it holds times and machines: the same recipe gives the same
bytes, but never the same seconds.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from tamis.core.files import append_line

FIELDS = ("seconds", "cpu_seconds", "rows", "tokens", "flops", "bytes")
_WITHIN: ContextVar[list[float] | None] = ContextVar("seconds booked within a block", default=None)
MONEY = ("calls", "usd")  # of work that asks a server; only where there was any


def peak_memory_bytes() -> int:
    """Largest resident size of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


@contextmanager
def booked(root: Path, kind: str, digest: str, method: str, **known: Any) -> Iterator[dict[str, Any]]:
    """Time a block and book it to the thing `digest`; the block may add `rows`, `tokens`, `flops`, `bytes`.

    Nothing is booked when the block raises: unfinished work has made nothing. The time of what is booked
    within the block is that thing's alone.
    """
    entry: dict[str, Any] = {"kind": kind, "digest": digest, "method": method, **known}
    within = [0.0, 0.0]
    token = _WITHIN.set(within)
    wall, cpu = time.perf_counter(), time.process_time()
    try:
        yield entry
    finally:
        _WITHIN.reset(token)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        around = _WITHIN.get()
        if around is not None:
            around[:] = [around[0] + wall, around[1] + cpu]
    entry["seconds"] = round(wall - within[0], 4)
    entry["cpu_seconds"] = round(cpu - within[1], 4)
    entry["peak_memory_bytes"] = peak_memory_bytes()
    append_line(root / "ledger.jsonl", entry)


def totals(root: Path, digests: set[str]) -> dict[str, dict[str, float]]:
    """Sums of `FIELDS` over the ledger's lines for `digests`, by digest; a torn last line is skipped."""
    found: dict[str, dict[str, float]] = {}
    path = root / "ledger.jsonl"
    if not path.exists():
        return found
    for line in path.read_text().splitlines():
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:
            continue
        if entry.get("digest") in digests:
            sums = found.setdefault(entry["digest"], dict.fromkeys(FIELDS, 0))
            for name in FIELDS:
                sums[name] += entry.get(name) or 0
            for name in MONEY:
                if name in entry:
                    sums[name] = sums.get(name, 0) + entry[name]
    return found
