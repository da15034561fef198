"""`tamis trace`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_TEXT = 300


def run(row: str, store: Path, as_json: bool) -> None:
    """Show what a store knows of one row."""
    from tamis.study.trace import trace

    found = trace(row, store)
    if as_json:
        print(json.dumps(found, ensure_ascii=False))
        return
    print(f"row {found['id']}")
    for place in found["rows"]:
        _place(place)


def _place(place: dict[str, Any]) -> None:
    print(f"\n{place['role']} {place['pool']}, row {place['position']}, source {place['source']}")
    for i, (file, line) in enumerate(place["occurrences"]):
        print(f"  {'read from' if i == 0 else 'merged with its duplicate at'} {file}:{line}")
    for message in place["messages"]:
        print(f"  {message['role']}: {_short(message['content'])}")
    print("signals" if place["signals"] else "no signal is stored for it")
    for signal in place["signals"]:
        _signal(signal)
    if place["role"] == "pool":
        print("selections" if place["subsets"] else "no selection from this pool is stored")
    for subset in place["subsets"]:
        _subset(subset)


def _signal(signal: dict[str, Any]) -> None:
    parts = [f"{signal['status']}" + (f" ({signal['reason']})" if "reason" in signal else "")]
    if "value" in signal:
        parts.append(f"{signal['value']:g}")
    if "rank" in signal:
        parts.append(f"rank {signal['rank']:,} of {signal['of']:,}")
    if signal.get("tokens", -1) >= 0:
        parts.append(f"{signal['tokens']:,} tokens")
    if "full_tokens" in signal and signal["full_tokens"] > signal["tokens"]:
        parts.append(f"{signal['full_tokens']:,} before truncation")
    if "supervised_tokens" in signal:
        parts.append(f"{signal['supervised_tokens']:,} of them trained on")
    side = " (as a query)" if signal["role"] == "query" else ""
    state = "" if signal["state"] == "complete" else f" ({signal['state']})"
    given = ", ".join(f"{name} {value}" for name, value in signal["parameters"].items())
    name = f"{signal['kind']} {signal['method']}{side}" + (f" ({given})" if given else "")
    print(f"  {name} {signal['digest'][:8]}{state}: {', '.join(parts)}")


def _subset(subset: dict[str, Any]) -> None:
    name = f"{subset['strategy']}, budget {subset['budget']}, seed {subset['seed']}, {subset['digest'][:8]}"
    if subset["chosen"]:
        text = f"chosen as number {subset['rank'] + 1:,} of {subset['rows']:,}"
        if subset["score"] is not None:
            text += f", gain {subset['score']:.4g}"
    else:
        text = f"not chosen: {subset['reason']}"
        text += f" ({subset['detail']})" if "detail" in subset else ""
        if subset.get("last_chosen_score") is not None:
            text += f"; the last one chosen had {subset['last_chosen_score']:.4g}"
        if subset.get("score") is not None:
            text += f", this row {subset['score']:.4g}"
        if subset.get("best_similarity") is not None:
            text += f", this row's best similarity is {subset['best_similarity']:.4g}"
        if "rank" in subset:
            text += f"; it would be number {subset['rank'] + 1:,}"
    print(f"  {name}: {text}")
    if query := subset.get("query"):
        task = query.get("task") or subset.get("task", "")
        print(f"    {'chosen by' if subset['chosen'] else 'nearest'} query row {query['row']} of {task}: "
              f"{_short(query.get('text', 'no longer in the store'))}")  # fmt: skip


def _short(text: str) -> str:
    line = " ".join(text.split())
    # Control characters of a row could move the cursor of a terminal.
    line = "".join(c if c.isprintable() else "\ufffd" for c in line)
    return line if len(line) <= _TEXT else line[: _TEXT - 1] + "…"
