"""`OUT/manifest.json`: what was asked, what came out and what it cost; first incomplete, last whole."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tamis.core.cost import totals
from tamis.core.digest import file_digest
from tamis.core.errors import RequestError
from tamis.core.files import read_json, write_json

if TYPE_CHECKING:
    from tamis.pools.pool import Pool
    from tamis.study.hygiene import Found
    from tamis.study.select import Request
    from tamis.study.signals import Signal
    from tamis.study.subset import Subset

SCHEMA = 1
OUTSIDE_IDENTITY = ("ledger", "execution", "elsewhere")
"""Keys that hold times, machines and what else is in the store; all others are equal for equal
recipes."""

_PACKAGES = ("tamis", "numpy", "pyarrow", "scipy", "torch", "transformers", "tokenizers")


def versions() -> dict[str, str]:
    """Installed versions of the packages that numbers can depend on."""
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def begin_manifest(out: Path, name: str, recipe: Mapping[str, Any]) -> None:
    """Claim `out` for a recipe; refuses a folder that holds another selection."""
    path = out / "manifest.json"
    if path.exists():
        found = read_json(path)
        if found.get("digest") != name:
            raise RequestError(
                f"{out} holds another selection ({found.get('digest')}); give another --out or remove it"
            )
        return
    write_json(path, {"schema": SCHEMA, "complete": False, "digest": name, "recipe": recipe})


def finish_manifest(
    out: Path,
    name: str,
    recipe: Mapping[str, Any],
    pool: Pool,
    request: Request,
    signals: Mapping[str, Signal],
    subsets: Sequence[Subset],
    also: Sequence[str] = (),
    checked: Found | None = None,
) -> None:
    """Write the whole manifest over the incomplete one. `also`: further stored things that were paid for.

    `checked`: what was found in the pool before."""
    used = {strategy: signal.digests for strategy, signal in signals.items()}
    pools = [Path(read.path).name for read in (pool, *request.queries.values())]
    checks = () if checked is None else checked.digests
    paid = {name, *also, *checks, *pools, *(digest for digests in used.values() for digest in digests)}
    paid |= {digest for signal in signals.values() for digest in signal.pre_digests}
    spent = totals(request.settings.store, paid)
    manifest = {
        "schema": SCHEMA,
        "complete": True,
        "digest": name,
        "recipe": recipe,
        "versions": versions(),
        "pool": {"rows": len(pool), "files": [_plain(report) for report in pool.files]},
        "queries": {
            task: {"rows": len(query), "files": [_plain(report) for report in query.files]}
            for task, query in request.queries.items()
        },
        "hygiene": None if checked is None else checked.facts,
        "subsets": [_entry(subset, out, used[subset.strategy.name]) for subset in subsets],
        "execution": {
            "pool": str(Path(pool.path).resolve()),
            "model": request.settings.model,
            "signals": {strategy: dict(signal.execution) for strategy, signal in signals.items()},
        },
        "elsewhere": {str(subset.relative): subset.elsewhere for subset in subsets},
        "ledger": spent,
    }
    write_json(out / "manifest.json", manifest)


def _entry(subset: Subset, out: Path, signals: Sequence[str]) -> dict[str, Any]:
    folder = out / subset.relative
    files = {path: file_digest(folder / path) for path in ("selection.parquet", "subset.jsonl")}
    return {
        "strategy": subset.strategy.name,
        "budget": subset.budget.folder,
        "seed": subset.seed,
        "folder": str(subset.relative),
        "files": files,
        "signals": list(signals),
        **subset.facts,
    }


def _plain(report: Any) -> dict[str, Any]:
    """A file report as JSON, its path as text."""
    return {key: str(value) if isinstance(value, Path) else value for key, value in vars(report).items()}
