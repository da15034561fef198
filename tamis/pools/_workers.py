"""Shards of a pool that is being read, shared by processes: each takes the next one that nobody holds.

The helping processes run this file as a module, told what to do by one JSON text; so a script of a user's own
needs no `if __name__ == "__main__"`. Locks of the store say which shard is taken, and die with their process.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tamis.core.errors import TamisError
from tamis.core.files import write_json
from tamis.core.store import Store, Thing
from tamis.pools.ingest import Shard
from tamis.pools.inputs import Input, Segment
from tamis.pools.segments import changed

_ALONE_BYTES = 64 << 20
"""Below this much input another process costs more than it brings."""
_MOST_HELPERS = 3


@dataclass(frozen=True)
class Plan:
    """All that a process needs to read shards of a pool."""

    store: str
    recipe: Mapping[str, Any]
    files: Sequence[Input]
    tasks: Sequence[Sequence[Segment]]


def work(plan: Plan, thing: Thing, once: bool = False) -> bool:
    """Read the shards that are missing and that nobody else holds, or the first of them; whether any was."""
    worked = False
    for number in thing.missing():
        with thing.claim(number) as free:
            if free:
                _read_shard(plan, thing, number)
                worked = True
                if once:
                    break
    return worked


def _read_shard(plan: Plan, thing: Thing, number: int) -> None:
    rejected = thing.part / f"bad-{number:05d}.jsonl"
    with _collector_off(), thing.new_file(f"rows-{number:05d}.parquet") as path:
        with open(rejected, "wb") as bad:
            shard = Shard(path, bad)
            try:
                for segment in plan.tasks[number]:
                    shard.read(segment.file, plan.files[segment.file], segment)
            except BaseException:
                shard.abandon()
                raise
            columns = shard.close()
        for segment in plan.tasks[number]:
            if error := changed(Path(plan.files[segment.file].path), plan.files[segment.file].bytes):
                raise error
    write_json(thing.part / f"facts-{number:05d}.json", shard.facts())
    thing.write_shard(number, {"columns": columns})


@contextlib.contextmanager
def _collector_off() -> Iterator[None]:
    """Rows are many small objects without cycles, among which the collector only loses time."""
    on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if on:
            gc.enable()


@contextlib.contextmanager
def helping(plan: Plan, thing: Thing, total_bytes: int) -> Iterator[None]:
    """Run helping processes beside the block when there is enough to read; they end with it."""
    count = 0
    if total_bytes > _ALONE_BYTES:
        count = min((os.cpu_count() or 1) - 1, len(thing.missing()) - 1, _MOST_HELPERS)
    helpers = [_start(plan) for _ in range(count)]
    try:
        yield
    finally:
        for helper in helpers:
            if helper.poll() is None and thing.missing():
                helper.terminate()
            helper.wait()


def _start(plan: Plan) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    helper = subprocess.Popen(
        [sys.executable, "-m", "tamis.pools._workers"],
        stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment,
    )  # fmt: skip
    assert helper.stdin is not None
    with contextlib.suppress(BrokenPipeError), helper.stdin as pipe:
        pipe.write(json.dumps(asdict(plan)).encode())
    return helper


def main() -> None:
    """A helping process; an error is left for the process that asked, which comes to it too."""
    given = json.load(sys.stdin)
    files = [Input(**file) for file in given["files"]]
    tasks = [[Segment(**segment) for segment in task] for task in given["tasks"]]
    plan = Plan(given["store"], given["recipe"], files, tasks)
    with contextlib.suppress(TamisError):
        work(plan, Store(plan.store).open("pool", plan.recipe, shards=len(tasks)))


if __name__ == "__main__":
    main()
