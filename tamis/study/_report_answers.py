"""What one reads off a subset, in sentences: origin, lengths, queries, worst row, and beside random."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from tamis.study._report_charts import number, percent
from tamis.study._report_facts import View, same_size_sources
from tamis.study._report_text import Excerpt, excerpt, visible
from tamis.study.diagnostics import overlap

SHOWN = 3  # rows of each kind
CARD_CHARACTERS = 1200
BEGINNING = 120  # characters of a row in a sentence


@dataclass(frozen=True)
class Answer:
    """One question and its answer, `word` first."""

    question: str
    word: str
    text: str


@dataclass(frozen=True)
class Card:
    """One row as it stands on the page."""

    head: str
    source: str
    id: str
    text: Excerpt
    near: list[str]  # its nearest queries with their similarities
    rank: int | None  # in the subset


@dataclass(frozen=True)
class Group:
    """Rows with something in common."""

    title: str
    note: str
    cards: list[Card]


def answers(view: View) -> list[Answer]:
    """The five questions."""
    return [_origin(view), _length(view), _asked(view), _worst(view), _random(view)]


def _origin(view: View) -> Answer:
    rows = [row for row in view.entry["sources"] if row["rows"]]
    said = [
        f"{visible(row['source'])} {percent(row['share'])} ({percent(row['pool_share'])} of the pool)"
        for row in rows[:SHOWN]
    ]
    more = f" and {len(rows) - SHOWN} more" if len(rows) > SHOWN else ""
    absent = [row for row in view.entry["sources"] if not row["rows"]]
    missed = percent(sum(row["pool_share"] for row in absent))
    none = f" {len(absent)} sources with {missed} of the pool gave none." if absent else ""
    of = len(view.entry["sources"])
    return Answer(
        "Where do the rows come from?", f"{len(rows)} of {of} sources.", f"{', '.join(said)}{more}.{none}"
    )


def _length(view: View) -> Answer:
    facts = view.entry["length"]["characters"]
    draw = float(np.median(view.pool.chars[view.control])) if len(view.control) else 0.0
    text = (
        f"Median {number(facts['median'])} characters against {number(facts['pool_median'])} in the pool "
        f"and {number(draw)} in a random draw"
    )
    if tokens := view.entry["length"].get("tokens"):
        text += f"; {number(tokens['median'])} tokens against {number(tokens['pool_median'])}"
    return Answer(
        "Are they longer than the pool?", _longer(facts["median"], facts["pool_median"]), text + "."
    )


def _longer(mine: float, pool: float) -> str:
    if not pool:
        return "Cannot be said."
    ratio = mine / pool
    if 0.95 <= ratio <= 1.05:
        return "About the same."
    return f"{'Longer' if ratio > 1 else 'Shorter'}, {number(ratio, 2)} times the length."


def _asked(view: View) -> Answer:
    question = "Which query chose which row?"
    if not view.by_queries:
        signal = "the score of each row alone" if view.scored else "a random draw"
        return Answer(question, "None.", f"The rows were chosen by {signal}; no query was asked.")
    picks = view.picks
    most = int(picks.argmax())
    query = view.run.queries[most]
    verb = "chose" if view.chose else "is nearest to"
    verbs = "chose" if view.chose else "are nearest to"
    return Answer(
        question,
        f"{int((picks > 0).sum()):,} of {len(picks):,} queries {verbs} rows.",
        f"The median query {verb} {number(float(np.median(picks)))}; {visible(query.task)} #{query.number} "
        f"{verb} most, {number(int(picks[most]))}. Below, each row names its query and each query its rows.",
    )


def _worst(view: View) -> Answer:
    question = "What is the worst row chosen?"
    if not len(view.ranked):
        return Answer(question, "None.", "A random draw has no score, so no row is better than another.")
    rank = int(view.ranked[-1])
    best = float(view.score[view.ranked[0]])
    return Answer(
        question,
        f"Rank {rank:,}, score {number(float(view.score[rank]))}.",
        f"From {visible(str(view.pool.sources[view.positions[rank]]))}: “{_beginning(view, rank)}” "
        f"The best score is {number(best)}. Both are shown below.",
    )


def _beginning(view: View, rank: int) -> str:
    """The first words of a row."""
    turns = next(iter(view.pool.messages_at(view.positions[[rank]])))
    text = " ".join(excerpt(turns, 2 * BEGINNING).prompt.split())
    return text if len(text) <= BEGINNING else text[: BEGINNING - 1] + "…"


def _random(view: View) -> Answer:
    shared = overlap(view.positions, view.control, len(view.pool))
    rows = same_size_sources(view)
    mine, draw = (
        sum(abs(row[name] - row["pool_share"]) for row in rows) / 2 for name in ("share", "random_share")
    )
    text = (
        f"A random draw of the same size has {shared['shared']:,} of the {len(view):,} rows "
        f"({number(shared['expected'] * len(view))} by chance). {percent(mine)} of the rows would have to "
        f"change source to match the pool ({percent(draw)} of the random draw)."
    )
    found = view.entry.get("diagnostics") or {}
    if "random" in found:
        text += (
            f" Mean distance to the nearest query: {number(found['subset_to_query'])}, "
            f"random {number(found['random']['subset_to_query'])}."
        )
    word = percent(shared["share"]) + " in common."
    return Answer("How does it differ from random?", word, text)


def groups(view: View) -> list[Group]:
    """Best, worst and borderline rows, and rows of the random draw, with their texts."""
    k = len(view)
    last = list(range(max(0, k - SHOWN), k))
    found = []
    if len(view.ranked):
        best, worst = view.ranked[:SHOWN], view.ranked[::-1][:SHOWN]
        found.append(Group("Best rows", "highest score", _cards(view, best.tolist())))
        found.append(Group("Worst rows", "lowest score, the worst first", _cards(view, worst.tolist())))
    if view.scored:
        found.append(Group("Just inside the budget", "the last rows of the order", _cards(view, last)))
        beyond = view.outside[:SHOWN]
        heads = [
            f"would be rank {k + i:,}, score {number(float(score))}"
            for i, score in enumerate(view.outside_score[:SHOWN].tolist())
        ]
        note = "the next rows of the order" if len(beyond) else "not known for this strategy and budget"
        found.append(Group("Just outside the budget", note, _loose(view, beyond, heads)))
    draw = view.control[:SHOWN]
    values = view.control_value[:SHOWN].tolist()
    what = "similarity to its nearest query" if view.by_queries else "score"
    heads = [f"{what} {number(value)}" if np.isfinite(value) else "random draw" for value in values]
    found.append(
        Group("Beside them: rows of a random draw", "the first of its order", _loose(view, draw, heads))
    )
    return found


def _cards(view: View, ranks: list[int]) -> list[Card]:
    rows = view.positions[ranks]
    heads = [f"rank {rank:,}, score {number(float(view.score[rank]))}" for rank in ranks]
    near = [
        [
            f"{_query(view, int(query))} at {number(float(value))}"
            for query, value in zip(view.nearest[rank], view.similarity[rank], strict=True)
        ]
        for rank in ranks
    ]
    chosen = [
        f", chosen by {_query(view, int(view.chooser[rank]))}" if view.chooser[rank] >= 0 else ""
        for rank in ranks
    ]
    loose = _loose(view, rows, [head + who for head, who in zip(heads, chosen, strict=True)])
    return [
        Card(card.head, card.source, card.id, card.text, names, rank)
        for card, names, rank in zip(loose, near, ranks, strict=True)
    ]


def _query(view: View, query: int) -> str:
    asked = view.run.queries[query]
    return f"{visible(asked.task)} #{asked.number}"


def _loose(view: View, rows: np.ndarray, heads: list[str]) -> list[Card]:
    from tamis.pools.identity import hex_ids

    pool = view.pool
    names = hex_ids(pool.id_bytes[rows]).tolist() if len(rows) else []
    return [
        Card(head, visible(str(pool.sources[row])), name, excerpt(turns, CARD_CHARACTERS), [], None)
        for head, row, name, turns in zip(heads, rows.tolist(), names, pool.messages_at(rows), strict=True)
    ]


def distances(view: View) -> list[dict[str, Any]]:
    """Rows of the table of diagnostics: what, of the subset, of the random draw, and how it was found."""
    found = view.entry.get("diagnostics") or {}
    rows = []
    for key, what in (
        ("subset_to_query", "mean distance of a chosen row to its nearest query"),
        ("query_to_subset", "mean distance of a query to its nearest chosen row"),
    ):
        if found.get(key) is not None:
            rows.append(
                {"what": what, "mine": found[key], "draw": (found.get("random") or {}).get(key), "how": ""}
            )
    if moved := found.get("wasserstein"):
        other = (found.get("random") or {}).get("wasserstein") or {}
        how = f"{moved['kind']}, {moved['rows']:,} rows and {moved['queries']:,} queries"
        what = "Wasserstein distance of rows and queries"
        rows.append({"what": what, "mine": moved["value"], "draw": other.get("value"), "how": how})
    return rows
