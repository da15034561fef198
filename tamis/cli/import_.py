"""`tamis import`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tamis.cli.reading import mapping_of, named_paths, read
from tamis.core.errors import RequestError


@dataclass(frozen=True)
class Given:
    """Arguments as given."""

    pool: Sequence[str]
    name: str
    vectors: Path | None
    bergson: Path | None
    scores: Path | None
    ids: Path | None
    by_position: bool
    id_column: str
    column: str | None
    lower_is_better: bool
    query: Sequence[str]
    query_vectors: Path | None
    query_ids: Path | None
    inner_product: bool
    allow_unknown: bool
    allow_repeated: bool
    maps: Sequence[str] | None
    skip_bad_rows: bool
    store: Path
    quiet: bool
    as_json: bool


def run(given: Given) -> None:
    """Check, read, match, store, and say how many rows met and how to use them."""
    kind = _kind(given)
    from tamis.study.importing import import_scores, import_vectors
    from tamis.study.select import read_query

    paths = named_paths(given.query)
    pool = read(given.pool, given.maps, given.store, skip_bad_rows=given.skip_bad_rows, quiet=given.quiet)
    if kind == "scores":
        found = import_scores(pool, _score_parameters(given), given.name, given.store)
    else:
        mapping = mapping_of(given.maps)
        queries = {name: read_query(path, mapping, given.store) for name, path in paths.items()}
        found = import_vectors(pool, queries, _vector_parameters(given), given.name, given.store)
    method = "import-score" if kind == "scores" else "import"
    example = "top-k" if kind == "scores" else "round-robin"
    found["use"] = f"--strategy {method}/{example} --set {method}.name={given.name}"
    if given.as_json:
        print(json.dumps(found, ensure_ascii=False))
    elif not given.quiet:
        _show(found)


def _kind(given: Given) -> str:
    """vectors or scores; raises RequestError for options that do not go together."""
    sources = {"--vectors": given.vectors, "--bergson": given.bergson, "--scores": given.scores}
    named = [option for option, value in sources.items() if value is not None]
    if len(named) != 1:
        raise RequestError(f"give one of {', '.join(sources)}; got {', '.join(named) or 'none'}")
    if given.bergson is not None and not given.bergson.is_dir():
        raise RequestError(f"--bergson {given.bergson}: no such folder")
    scores = given.scores is not None
    if scores and not given.column:
        raise RequestError("--scores needs --column NAME, the column of the numbers")
    foreign = {
        "--ids": given.ids, "--query": given.query, "--query-vectors": given.query_vectors,
        "--query-ids": given.query_ids, "--inner-product": given.inner_product,
    } if scores else {"--column": given.column, "--lower-is-better": given.lower_is_better}  # fmt: skip
    wrong = [option for option, value in foreign.items() if value]
    if wrong:
        raise RequestError(f"{', '.join(wrong)}: not for {named[0]}")
    return "scores" if scores else "vectors"


def _score_parameters(given: Given) -> dict[str, Any]:
    return {
        "file": str(given.scores),
        "id": given.id_column,
        "column": given.column,
        "better": "lower" if given.lower_is_better else "higher",
        "by_position": given.by_position,
        "allow_unknown": given.allow_unknown,
        "allow_repeated": given.allow_repeated,
    }


def _vector_parameters(given: Given) -> dict[str, Any]:
    files = {
        "file": given.vectors or given.bergson,
        "ids": given.ids,
        "query": given.query_vectors,
        "query_ids": given.query_ids,
    }
    return {
        **{name: str(path) for name, path in files.items() if path is not None},
        "by_position": given.by_position,
        "normalise": not given.inner_product,
        "allow_unknown": given.allow_unknown,
        "allow_repeated": given.allow_repeated,
    }


def _show(found: dict[str, Any]) -> None:
    for side, facts in found.items():
        if not isinstance(facts, dict):
            continue
        counts = facts["matched"]
        print(
            f"{side}: {counts['matched']:,} of {facts['rows']:,} rows matched, {counts['missing']:,} have no "
            f"value; {counts['file_rows']:,} in the file, {counts['unknown']:,} of them not here, "
            f"{counts['repeated']:,} repeated; "
            + ", ".join(f"{count:,} {word}" for word, count in facts["status"].items())
        )
    print(f"use it with: tamis select … {found['use']}")
