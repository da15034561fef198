"""`tamis inspect`: what a pool holds, and one row as the model is trained on it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.text import Text

from tamis.cli.reading import mapping_of, read
from tamis.cli.tables import console, table
from tamis.core.errors import RequestError

if TYPE_CHECKING:
    from tamis.pools.pool import Pool

_SHOWN = 10
_BAR = 40


@dataclass(frozen=True)
class Given:
    """Arguments as given."""

    pool: Sequence[str]
    maps: Sequence[str] | None
    row: str | None
    model: str | None
    template: str
    max_tokens: int
    skip_bad_rows: bool
    store: Path
    quiet: bool
    as_json: bool
    remote_code: bool
    near: bool = False
    against: Sequence[str] = ()


def run(given: Given) -> None:
    """Show a pool, or one row of it; exit 3 when rows are bad, unless they may be skipped."""
    pool = read(given.pool, given.maps, given.store, skip_bad_rows=True)
    if given.row is not None:
        _show_row(pool, given)
        return
    facts = {**facts_of(pool, given), **_hygiene(pool, given)}
    if given.as_json:
        print(json.dumps(facts, ensure_ascii=False))
    else:
        _show(facts)
    if facts["bad_rows"] and not given.skip_bad_rows:
        raise SystemExit(3)


def facts_of(pool: Pool, given: Given) -> dict[str, Any]:
    """Files, sources, turns, roles, lengths, duplicates and bad rows, as JSON."""
    turns: Counter[int] = Counter()
    roles: Counter[str] = Counter()
    empty = 0
    for row in pool.iter_rows():
        turns[len(row.messages)] += 1
        roles.update(message.role for message in row.messages)
        answers = [message.content for message in row.messages if message.role == "assistant"]
        empty += not answers or not answers[-1].strip()
    unit, lengths = _lengths(pool, given)
    return {
        "rows": len(pool),
        "rows_read": sum(report.rows for report in pool.files),
        "bad_rows": sum(report.bad_rows for report in pool.files),
        "exact_duplicates": int((np.asarray(pool.counts) - 1).sum()),
        "files": [{**vars(report), "path": str(report.path)} for report in pool.files],
        "sources": dict(Counter(pool.sources.tolist()).most_common()),
        "turns": {str(count): rows for count, rows in sorted(turns.items())},
        "roles": dict(roles.most_common()),
        "last_answer_empty": empty,
        "length_unit": unit,
        "length": {f"p{q}": float(np.percentile(lengths, q)) for q in (0, 5, 50, 95, 100)}
        if len(pool)
        else {},
        "histogram": _histogram(lengths),
        "rejected": _rejected(pool),
    }


def _hygiene(pool: Pool, given: Given) -> dict[str, Any]:
    """Near duplicates, and text of other files in the pool, with the first examples of each."""
    from tamis.pools.contamination import contamination
    from tamis.pools.near_duplicates import near_duplicates
    from tamis.study.hygiene import Hygiene, matched_lines, near_lines, target_facts
    from tamis.study.select import read_query

    found: dict[str, Any] = {}
    if given.near:
        near = near_duplicates(pool, given.store, quiet=given.quiet)
        examples = list(islice(near_lines(pool, near, set()), _SHOWN))
        found["near_duplicates"] = {**near.summary, "examples": examples}
    if given.against:
        mapping = mapping_of(given.maps)
        targets = {path: read_query(path, mapping, given.store) for path in given.against}
        matches = contamination(pool, targets, given.store, quiet=given.quiet)
        examples = list(islice(matched_lines(pool, targets, matches, Hygiene(), "pool", set()), _SHOWN))
        found["against"] = {"targets": target_facts(matches), "examples": examples}
    return found


def _lengths(pool: Pool, given: Given) -> tuple[str, np.ndarray]:
    if given.model is None:
        return "characters", np.asarray(pool.chars)
    from tamis.models.lengths import rendered_lengths

    thing = rendered_lengths(
        pool, given.model, given.template, given.max_tokens, given.store, given.remote_code, given.quiet
    )
    return "tokens", thing.joined("tokens")


def _histogram(lengths: np.ndarray) -> list[dict[str, int]]:
    """Rows by length in powers of two."""
    if not len(lengths):
        return []
    bins = np.ceil(np.log2(np.maximum(lengths, 1).astype(float))).astype(int)
    counts = np.bincount(bins)
    return [{"up_to": 1 << i, "rows": int(count)} for i, count in enumerate(counts) if count]


def _rejected(pool: Pool) -> list[dict[str, Any]]:
    path = Path(pool.path) / "rejected.jsonl"
    if not path.exists():
        return []
    with open(path, encoding="utf-8") as file:
        lines = [json.loads(line) for _, line in zip(range(_SHOWN), file, strict=False)]
    return [{key: line[key] for key in ("file", "line", "reason")} for line in lines]


def _show(facts: dict[str, Any]) -> None:
    screen = console()
    made = table("files", "file", "container", "shape", "rows", "bad", "duplicates", "notes")
    for report in facts["files"]:
        notes = report["notes"]
        text = (
            ", ".join(f"{key} {count}" for key, count in notes.items()) if isinstance(notes, dict) else notes
        )
        made.add_row(
            Text(Path(report["path"]).name), str(report["container"]), str(report["shape"]),
            f"{report['rows']:,}", f"{report['bad_rows']:,}", f"{report['duplicate_rows']:,}",
            Text(str(text or "")),
        )  # fmt: skip
    screen.print(made)
    screen.print(
        f"\n{facts['rows_read']:,} rows read, {facts['bad_rows']:,} bad, {facts['exact_duplicates']:,} exact "
        f"duplicates merged, {facts['rows']:,} rows; {facts['last_answer_empty']:,} with an empty last answer"
    )
    for entry in facts["rejected"]:
        screen.print(Text(f"  {entry['file']}:{entry['line']}: {entry['reason']}", style="red"))
    sources = list(facts["sources"].items())
    made = table("\nsources", "source", "rows", "share")
    for name, rows in sources[:20]:
        made.add_row(Text(name), f"{rows:,}", f"{rows / max(facts['rows'], 1):.1%}")
    if len(sources) > 20:
        made.add_row(f"{len(sources) - 20} more", f"{sum(rows for _, rows in sources[20:]):,}", "")
    screen.print(made)
    screen.print(
        "\nmessages a row: " + ", ".join(f"{turns}: {rows:,}" for turns, rows in facts["turns"].items())
    )
    screen.print("roles: " + ", ".join(f"{role} {count:,}" for role, count in facts["roles"].items()))
    screen.print(f"\nlength in {facts['length_unit']}")
    most = max((entry["rows"] for entry in facts["histogram"]), default=1)
    for entry in facts["histogram"]:
        bar = "█" * max(1, round(_BAR * entry["rows"] / most))
        screen.print(f"  up to {entry['up_to']:>8,}  {bar} {entry['rows']:,}")
    _show_hygiene(facts)


def _show_hygiene(facts: dict[str, Any]) -> None:
    screen = console()
    if near := facts.get("near_duplicates"):
        count, groups = near["near_duplicates"], near["groups"]
        screen.print(f"\n{count:,} rows nearly repeat one of {groups:,} earlier rows")
        for group in near["examples"]:
            screen.print(_one_line(f"  row {group['kept']['row']}: ", group["kept"]["text"]))
            for row in group["repeats"][:3]:
                screen.print(_one_line(f"    {row['similarity']:.2f} row {row['row']}: ", row["text"]))
    if against := facts.get("against"):
        made = table("\ntext of other files", "file", "rows", "rows in the pool", "pool rows", "not checked")
        for name, target in against["targets"].items():
            made.add_row(
                Text(name), f"{target['rows']:,}", f"{target['rows_found']:,}", f"{target['pool_rows']:,}",
                f"{target['rows_not_checked']:,}",
            )  # fmt: skip
        screen.print(made)
        for line in against["examples"]:
            where = f"  row {line['row']}, {line['part']} of row {line['target_row']} of {line['task']}"
            screen.print(_one_line(f"{where}, {line['share']:.0%}: ", line["text"]))


def _one_line(where: str, text: str) -> Text:
    return Text(where + " ".join(text.split()))


def _position(pool: Pool, given: str) -> int:
    """Position of a row given by number or by the beginning of its id."""
    if given.isdigit() and len(given) < 8:
        if int(given) >= len(pool):
            raise RequestError(f"--row {given}: the pool has rows 0 to {len(pool) - 1}")
        return int(given)
    return pool.find(given)


def _show_row(pool: Pool, given: Given) -> None:
    position = _position(pool, given.row or "")
    row = pool.row(position)
    facts: dict[str, Any] = {
        "row": position, "id": row.id, "source": row.source, "file": str(row.file), "line": row.line,
        "count": row.count, "messages": [message._asdict() for message in row.messages],
    }  # fmt: skip
    if given.model is None:
        _print_row(facts, given.as_json, None)
        return
    from tamis.models.lm import load_model
    from tamis.models.render import Renderer
    from tamis.models.show import show

    tokenizer = load_model(given.model, remote_code=given.remote_code, tokenizer_only=True).tokenizer
    rendered = Renderer(tokenizer, given.template, given.max_tokens).render(row.messages)
    facts.update(
        tokens=len(rendered.ids), tokens_full=rendered.tokens_full, truncated=rendered.truncated,
        supervised_tokens=int(rendered.mask.sum()), status=rendered.status,
        input_ids=rendered.ids.tolist(), mask=rendered.mask.astype(int).tolist(),
    )  # fmt: skip
    _print_row(facts, given.as_json, show(rendered, tokenizer))


def _print_row(facts: dict[str, Any], as_json: bool, shown: Text | None) -> None:
    if as_json:
        print(json.dumps(facts, ensure_ascii=False))
        return
    screen = console()
    where = f"{facts['file']}:{facts['line']}"
    screen.print(Text(f"row {facts['row']}  id {facts['id']}  source {facts['source']}  {where}"))
    if shown is None:
        for message in facts["messages"]:
            screen.print(Text.assemble((f"\n{message['role']}\n", "bold"), message["content"]))
        screen.print(
            Text("\nwith --model the row is shown as it is trained on, with its loss mask", style="dim")
        )
        return
    screen.print(
        f"{facts['tokens']} tokens, {facts['supervised_tokens']} supervised, status {facts['status']}"
        + (f", cut from {facts['tokens_full']}" if facts["truncated"] else "")
    )
    screen.print(shown)
