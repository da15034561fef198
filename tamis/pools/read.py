"""Reading a pool: files in any known form → rows in the store, each distinct conversation once.

1. The files are found and looked at; those that cannot be read are refused, all at once, before any work.
2. Their contents, the map and the version of the reader name the pool: what was read once is not read again.
3. Shards of about 32 MiB of input are parsed, by several processes when there is much; shards are cut by
   bytes of the input alone, so that the number of processes changes nothing.
4. Equal rows are merged into the first, with a count, and the pool is complete.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tamis.core.cost import booked
from tamis.core.errors import PoolError, RequestError
from tamis.core.progress import progress
from tamis.core.store import Store, Thing
from tamis.pools import _workers
from tamis.pools._workers import Plan
from tamis.pools.containers import container_of
from tamis.pools.inputs import Input, Segment, first_items, parse, unwrapped
from tamis.pools.map_file import Map, read_map
from tamis.pools.mapping import Rule, renamed
from tamis.pools.merge import copy_rejected, merge, reports
from tamis.pools.pool import Pool
from tamis.pools.segments import Content, content_of, cut
from tamis.pools.shapes import BadRow, shape_of
from tamis.pools.sources import Origin, origins

VERSION = 1
"""Rises when the same input is read as other rows, ids or columns."""

_LOOKED_AT_ROWS = 200
_SHOWN = 10
_POLL_S = 0.2


def read_pool(
    paths: str | Path | Iterable[str | Path],
    *,
    map: str | Path | Mapping[str, str] | None = None,
    skip_bad_rows: bool = False,
    merge_duplicates: bool = True,
    store: str | Path = ".tamis",
    rejected: str | Path | None = None,
    quiet: bool = True,
) -> Pool:
    """Read files into a `Pool`.

    `paths`: files, globs, folders that `datasets` wrote, or hub ids `org/name:split[:rows]`; one or
    several, read in the order given, the files of a glob by name. `map`: a field map (dict or
    `instruction=q,output=a`) or the path of a mapping file (see `tamis.pools.mapping`). Bad rows stop the
    reading with a `PoolError` that lists the first ten, unless `skip_bad_rows`; then all of them are
    written, whole, to `rejected` (default: the file `rejected.jsonl` in the pool's folder of the store).
    `merge_duplicates=False` keeps equal rows apart, as a query set wants them: each row is a query, and ids
    may repeat.
    """
    root = Store(store)
    files, tasks, thing = find_pool(paths, map=map, merge_duplicates=merge_duplicates, store=store)
    recipe = thing.recipe
    if thing.state != "complete":
        plan = Plan(str(root.root), recipe, files, tasks)
        with booked(root.root, "pool", thing.digest, "read") as entry:
            _make(thing, plan, skip_bad_rows, quiet)
            entry["bytes"] = sum(file.bytes for file in files)
            entry["rows"] = sum(report["rows"] for report in thing.summary["files"])
    facts = thing.summary
    if facts["bad_rows"] and not skip_bad_rows:
        raise _bad_rows(files, facts["bad_rows"], facts["first_bad"])
    if rejected is not None:
        copy_rejected(thing, files, Path(rejected))
    return Pool(thing.folder, reports(facts, files))


def find_pool(
    paths: str | Path | Iterable[str | Path],
    *,
    map: str | Path | Mapping[str, str] | None = None,
    merge_duplicates: bool = True,
    store: str | Path = ".tamis",
) -> tuple[list[Input], list[list[Segment]], Thing]:
    """Files, their shards, and the stored pool that they are or would become, in whatever state; the files
    are looked at and hashed, but no row is read. Raises what `read_pool` raises for files it cannot read."""
    root = Store(store)
    found = origins(paths, root.root)
    files = _looked_at(found, read_map(map))
    contents = [content_of(Path(file.path), file.kind == "jsonl" and file.codec is None) for file in files]
    files = [_with_content(file, content) for file, content in zip(files, contents, strict=True)]
    tasks = cut(files, contents)
    return files, tasks, root.open("pool", _recipe(files, merge_duplicates), shards=len(tasks))


def _recipe(files: Sequence[Input], merge_duplicates: bool) -> dict[str, Any]:
    names = ("digest", "stem", "kind", "codec", "rule")
    listed = [{name: getattr(file, name) for name in names} for file in files]
    return {"reader": VERSION, "merge_duplicates": merge_duplicates, "files": listed}


def _with_content(file: Input, content: Content) -> Input:
    return Input(**{**vars(file), "digest": content.digest, "bytes": content.bytes})


# --- looking before reading ------------------------------------------------------------------------------


def _looked_at(found: Sequence[Origin], given: Map) -> list[Input]:
    """Container and rule of every file; the files that cannot be read are refused, all at once."""
    files: list[Input] = []
    broken: list[str] = []
    unmapped: list[str] = []
    fitted = given.fields is None
    for origin in found:
        try:
            file, fits = _looked_at_one(origin, given)
            fitted |= fits
            files.append(file)
        except _NoShape as error:
            unmapped.append(str(error))
        except PoolError as error:
            broken.append(str(error))
    if broken:
        raise PoolError("\n".join([*broken, *unmapped]))
    if unmapped:
        raise RequestError("\n".join([f"{len(unmapped)} of {len(found)} files need a map:", *unmapped]))
    if not fitted:
        raise RequestError(
            f"--map {','.join(f'{field}={column}' for field, column in (given.fields or {}).items())}: "
            "no file has all of these columns"
        )
    return files


class _NoShape(RequestError):
    """A file whose rows have no known shape."""


def _looked_at_one(origin: Origin, given: Map) -> tuple[Input, bool]:
    """The file with its rule, and whether a field map fits it."""
    entry = given.entry_for(origin.path)
    rule = Rule(entry) if entry else None
    with _named_errors(origin.name):
        container = container_of(origin.path, origin.name, lambda row: _is_row(row, rule, given))
    file = Input(str(origin.path), origin.name, origin.stem, container.kind, container.codec, "", 0, entry)
    with _named_errors(origin.name):
        items = first_items(file, _LOOKED_AT_ROWS)
    rows: list[dict[str, Any]] = []
    reasons: list[str] = []
    for _, raw, value in items:
        try:
            if isinstance(value, BadRow):
                raise value
            rows.append(unwrapped(parse(raw) if value is None and raw is not None else value))
        except BadRow as error:
            reasons.append(str(error))
    if items and not rows:
        raise PoolError(f"{origin.name}: none of its first {len(items)} rows can be read: {reasons[0]}")
    if given.fields is not None and any(_has(row, given.fields) for row in rows):
        return Input(**{**vars(file), "rule": {"fields": dict(given.fields)}}), True
    if rule is not None and rule.converts:
        return file, False
    if rows and not any(shape_of(row) for row in rows):
        raise _NoShape(_no_shape(file, rows[0]))
    return file, False


@contextlib.contextmanager
def _named_errors(name: str) -> Any:
    try:
        yield
    except OSError as error:
        raise PoolError(f"{name}: cannot be read: {error}") from error


def _has(row: Mapping[str, Any], fields: Mapping[str, str]) -> bool:
    return all(column in row for column in fields.values())


def _is_row(row: dict[str, Any], rule: Rule | None, given: Map) -> bool:
    """Whether a JSON object that is alone in its file is a row rather than a holder of rows."""
    if rule is not None and rule.each:
        return rule.each[0] in row
    if given.fields is not None and _has(row, given.fields):
        return shape_of(renamed(row, given.fields)) is not None
    return shape_of(row) is not None


def _no_shape(file: Input, row: dict[str, Any]) -> str:
    keys = [str(key) for key in row]
    texts = [key for key, value in row.items() if isinstance(value, str)] + keys + ["question", "answer"]
    first, second = texts[0], next(text for text in texts if text != texts[0])
    return (
        f"{file.name}: rows of no known shape; their keys are {', '.join(keys) or 'none'}. Map them, for "
        f"example: --map instruction={first},output={second}, or with a mapping file: --map FILE.yaml"
    )


# --- making ----------------------------------------------------------------------------------------------


def _make(thing: Thing, plan: Plan, skip_bad_rows: bool, quiet: bool) -> None:
    """Read the missing shards, here and in helping processes, then merge; bad input leaves nothing."""
    thing.begin()
    try:
        _read_shards(thing, plan, quiet)
        facts = merge(thing, plan.files, plan.recipe["merge_duplicates"])
        if facts["bad_rows"] and not skip_bad_rows:
            raise _bad_rows(plan.files, facts["bad_rows"], facts["first_bad"])
        thing.finish(facts)
    except PoolError:
        if thing.state != "complete":
            Store(plan.store).remove(thing)
        raise
    except FileNotFoundError:
        if thing.state != "complete":  # else another process has finished the same pool meanwhile
            raise


def _read_shards(thing: Thing, plan: Plan, quiet: bool) -> None:
    total = sum(file.bytes for file in plan.files)
    with progress(total, "bytes", "reading the pool", quiet) as advance, _workers.helping(plan, thing, total):
        done = 0
        while thing.missing():
            worked = _workers.work(plan, thing, once=True)
            share = total * (1 - len(thing.missing()) / thing.shards)
            advance(int(share) - done)
            done = int(share)
            if not worked and thing.missing():
                time.sleep(_POLL_S)


def _bad_rows(files: Sequence[Input], count: int, first: Sequence[Sequence[Any]]) -> PoolError:
    """The error that lists the first bad rows; `first` holds (file number, line, reason)."""
    lines = [f"{files[number].name}:{line}: {reason}" for number, line, reason in first[:_SHOWN]]
    more = f"\n… and {count - len(lines)} more" if count > len(lines) else ""
    return PoolError(
        f"{count} bad {'row' if count == 1 else 'rows'}; nothing was stored\n"
        + "\n".join(lines) + more + "\nmend them, or leave them out with --skip-bad-rows (skip_bad_rows=True)"
    )  # fmt: skip
