"""Progress of long work on stderr, with a remaining time by the unit that costs (tokens, not batches)."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

LOG_EVERY_S = 15.0


@contextmanager
def progress(total: int, unit: str, label: str, quiet: bool = False) -> Iterator[Callable[[int], None]]:
    """Show `label` with done/total `unit`s, speed and remaining time; yields `advance(count)`.

    On a terminal it is one live line; in a log, a plain line every
    `LOG_EVERY_S` seconds. `quiet` shows nothing.
    """
    if quiet or total <= 0:
        yield lambda count: None
    elif sys.stderr.isatty():
        with _bar(total, unit, label) as advance:
            yield advance
    else:
        yield _Lines(total, unit, label).advance


@contextmanager
def _bar(total: int, unit: str, label: str) -> Iterator[Callable[[int], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:,.0f}/{task.total:,.0f} " + unit),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(label, total=total)
        yield lambda count: bar.advance(task, count)


class _Lines:
    """Progress for logs: a line now and then, none for short work."""

    def __init__(self, total: int, unit: str, label: str) -> None:
        self.total, self.unit, self.label = total, unit, label
        self.done = 0
        self.start = self.last = time.monotonic()

    def advance(self, count: int) -> None:
        self.done += count
        now = time.monotonic()
        if now - self.last < LOG_EVERY_S:
            return
        self.last = now
        speed = self.done / (now - self.start)
        left = (self.total - self.done) / speed if speed else float("inf")
        done = f"{self.done:,}/{self.total:,} {self.unit}, {speed:,.0f}/s"
        print(f"{self.label}: {done}, {left / 60:.1f} min left", file=sys.stderr)
