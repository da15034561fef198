"""An instruction pool with known truth: sixteen skills, small talk, and planted faults.

    lab = generate(rows=4000, seed=0)      # in memory
    write_lab("lab", rows=4000, seed=0)    # pool.jsonl, truth.jsonl, queries/ and tests/ by skill

What a row is about and what is wrong with it stands only in the truth, by line of the pool, never in the row.
Every user turn belongs, by a hash of its letters and digits, to the pool, to the queries or to the tests,
whatever the seed: a test is never in a pool, and never in the text a nano model was trained on.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any

from tamis.core.errors import RequestError
from tamis.lab.chat import CLOSERS, OPENERS, SYSTEMS, chat
from tamis.lab.question import Question
from tamis.lab.skills import MAKERS, SKILLS
from tamis.lab.words import NAMES

FAULTS = ("wrong", "mismatched", "empty", "duplicate", "near-duplicate")
SOURCES = ("archive", "classroom", "forum", "helpdesk", "workbook")
CORPUS_SEEDS = range(1_000_000, 2_000_000)  # text for training nano models; no pool may use them

_SOURCE_WEIGHTS = (4, 3, 2, 1, 1)  # turned from skill to skill: a source hints at a skill, no more
_KINDS: tuple[str | None, ...] = (*SKILLS, None, None, None, None)  # one row in five is of no skill
_CORPUS_KINDS: tuple[str | None, ...] = (*SKILLS, None)  # talk is easy: less of it to learn from
_MAX_TRIES = 2000

Row = dict[str, Any]


@dataclass(frozen=True)
class RowTruth:
    """What is known about one line of the pool."""

    line: int  # from 0, in the order of `Lab.rows` and of pool.jsonl
    skill: str | None  # of the question; None for small talk
    fault: str | None  # one of FAULTS, None for a clean row
    duplicate_of: int | None  # an earlier line, for the two kinds of duplicate


@dataclass(frozen=True)
class Lab:
    """A pool, the truth about it, and disjoint queries and tests for each skill."""

    rows: list[Row]
    truth: list[RowTruth]
    queries: dict[str, list[Row]]
    tests: dict[str, list[Row]]
    seed: int


@dataclass(frozen=True)
class _Draft:
    skill: str | None
    messages: tuple[tuple[str, str], ...]  # (role, content), the last one the answer
    wrong: str
    fault: str | None = None
    copy_of: int | None = None  # index of the draft it copies


def part_of(prompt: str) -> str:
    """`"pool"`, `"query"` or `"test"`: where this user turn may appear; only its letters and digits count."""
    place = hashlib.blake2b(_key(prompt).encode(), digest_size=1).digest()[0] % 16
    return "query" if place == 0 else "test" if place < 4 else "pool"


def _key(prompt: str) -> str:
    return "".join(letter for letter in prompt.casefold() if letter.isalnum())


def generate(
    rows: int = 4000, seed: int = 0, fault_share: float = 0.15, query_rows: int = 12, test_rows: int = 50
) -> Lab:
    """A lab of `rows` pool rows, of which `fault_share` are faulty, in equal parts of each kind in FAULTS.

    Each skill gets `query_rows` queries and `test_rows` tests, all clean and of one question.
    Raises `RequestError` when a number is out of range or a skill has not that many different questions.
    """
    _check(rows, seed, fault_share, query_rows, test_rows)
    rng = Random(seed)
    used: set[str] = set()
    queries = {skill: _held_out(rng, skill, "query", query_rows, used) for skill in SKILLS}
    tests = {skill: _held_out(rng, skill, "test", test_rows, used) for skill in SKILLS}
    drafts = _with_faults(rng, rows, round(rows * fault_share), used)
    order = _order(rng, drafts)
    line_of = {index: line for line, index in enumerate(order)}
    truth = []
    for line, index in enumerate(order):
        draft = drafts[index]
        origin = None if draft.copy_of is None else line_of[draft.copy_of]
        truth.append(RowTruth(line, draft.skill, draft.fault, origin))
    pool = [_row(drafts[index].messages) | {"source": _source(rng, drafts[index].skill)} for index in order]
    return Lab(pool, truth, queries, tests, seed)


def write_lab(
    folder: str | Path,
    rows: int = 4000,
    seed: int = 0,
    fault_share: float = 0.15,
    query_rows: int = 12,
    test_rows: int = 50,
) -> Lab:
    """Generate a lab and write it: JSON lines, UTF-8, the same bytes for the same arguments everywhere."""
    lab = generate(rows, seed, fault_share, query_rows, test_rows)
    folder = Path(folder)
    _write(folder / "pool.jsonl", lab.rows)
    _write(folder / "truth.jsonl", (asdict(entry) for entry in lab.truth))
    for name, parts in (("queries", lab.queries), ("tests", lab.tests)):
        for skill, items in parts.items():
            _write(folder / name / f"{skill}.jsonl", items)
    return lab


def corpus(rows: int, seed: int) -> Iterator[list[dict[str, str]]]:
    """`rows` clean conversations of the pool's part, skills and talk in equal shares, for training a nano.

    `seed` must be in CORPUS_SEEDS, where no pool's seed can be.
    """
    if seed not in CORPUS_SEEDS:
        raise RequestError(
            f"corpus seed {seed} is not in {CORPUS_SEEDS.start}..{CORPUS_SEEDS.stop - 1}, "
            "the range kept apart from the seeds of pools; choose one of those"
        )
    rng = Random(seed)
    for _ in range(rows):
        yield _row(_draft(rng, rng.choice(_CORPUS_KINDS), "pool", set()).messages)["messages"]


def _check(rows: int, seed: int, fault_share: float, query_rows: int, test_rows: int) -> None:
    if rows < 2 * len(_KINDS):
        raise RequestError(f"rows is {rows}; a lab needs at least {2 * len(_KINDS)}, two of each skill")
    if not 0 <= fault_share <= 0.5:
        raise RequestError(f"fault_share is {fault_share}; expected a share from 0 to 0.5")
    if query_rows < 1 or test_rows < 1:
        raise RequestError(f"query_rows is {query_rows} and test_rows {test_rows}; expected 1 or more")
    if seed < 0 or seed in CORPUS_SEEDS:
        raise RequestError(
            f"seed is {seed}; expected one from 0 on, outside {CORPUS_SEEDS.start}..{CORPUS_SEEDS.stop - 1}, "
            "which the training text of the nano model uses"
        )


def _draft(rng: Random, skill: str | None, part: str, used: set[str], single: bool = False) -> _Draft:
    """A clean conversation whose user turns all belong to `part` and whose last one is not in `used`."""
    make = chat if skill is None else MAKERS[skill]
    for _ in range(_MAX_TRIES):
        asked = [_dressed(rng, make(rng)) for _ in range(1 if single or rng.randrange(10) else 2)]
        key = _key(asked[-1].prompt)
        if key in used or any(part_of(question.prompt) != part for question in asked):
            continue
        used.add(key)
        turns = [("system", rng.choice(SYSTEMS))] if rng.randrange(6) == 0 else []
        for question in asked:
            turns += [("user", question.prompt), ("assistant", question.answer)]
        return _Draft(skill, tuple(turns), asked[-1].wrong)
    raise RequestError(
        f"{_MAX_TRIES} draws gave no new question of skill {skill or 'chat'!r} for the {part} "
        f"({len(used)} questions are in use); ask for fewer rows"
    )


def _dressed(rng: Random, question: Question) -> Question:
    """The question with, at times, a greeting before it or a word of thanks after it."""
    opener = rng.choice(OPENERS) if rng.randrange(3) == 0 else ""
    closer = rng.choice(CLOSERS).format(name=rng.choice(NAMES)) if rng.randrange(4) == 0 else ""
    stop = "." if closer and question.prompt[-1] not in ".?" else ""
    return Question(f"{opener}{question.prompt}{stop}{closer}", question.answer, question.wrong)


def _held_out(rng: Random, skill: str, part: str, rows: int, used: set[str]) -> list[Row]:
    return [_row(_draft(rng, skill, part, used, single=True).messages) for _ in range(rows)]


def _with_faults(rng: Random, rows: int, faulty: int, used: set[str]) -> list[_Draft]:
    """Drafts of all rows: originals, some of them spoilt, then copies of clean ones."""
    count = {fault: (faulty + len(FAULTS) - 1 - i) // len(FAULTS) for i, fault in enumerate(FAULTS)}
    originals = rows - count["duplicate"] - count["near-duplicate"]
    drafts = [_draft(rng, _KINDS[i % len(_KINDS)], "pool", used) for i in range(originals)]
    order = rng.sample(range(originals), originals)
    answers = [(draft.skill, draft.messages[-1][1]) for draft in drafts]
    for fault in ("wrong", "mismatched", "empty"):
        # Small talk has no right answer, hence no wrong one.
        able = [i for i in order if drafts[i].fault is None and (fault != "wrong" or drafts[i].skill)]
        for index in able[: count[fault]]:
            drafts[index] = _spoilt(rng, drafts[index], fault, answers)
    clean = [i for i in order if drafts[i].fault is None]
    # Different originals for every copy, so that each group of duplicates has exactly two members.
    for i, index in enumerate(clean[: count["duplicate"] + count["near-duplicate"]]):
        if i < count["duplicate"]:
            drafts.append(_Draft(drafts[index].skill, drafts[index].messages, "", "duplicate", index))
        else:
            drafts.append(_altered(rng, drafts[index], index, used))
    return drafts


def _spoilt(rng: Random, draft: _Draft, fault: str, answers: list[tuple[str | None, str]]) -> _Draft:
    answer = draft.messages[-1][1]
    if fault == "wrong":
        text = draft.wrong
    elif fault == "empty":
        text = ""
    else:
        skill, text = draft.skill, answer
        # The answer to another question may be right by chance: "9" for "The sum is 9.".
        while skill == draft.skill or text in answer or answer in text:
            skill, text = rng.choice(answers)
    return _Draft(draft.skill, (*draft.messages[:-1], ("assistant", text)), draft.wrong, fault)


def _altered(rng: Random, draft: _Draft, index: int, used: set[str]) -> _Draft:
    """A near duplicate: the last user turn with other case, other punctuation or one more word."""
    prompt = draft.messages[-2][1]
    while True:
        changed = rng.choice(
            (
                prompt.lower(),
                prompt[0].lower() + prompt[1:],
                prompt.rstrip("?.!"),
                prompt + "!",
                f"So, {prompt}",
                f"{prompt} Now.",
                f"{rng.choice(NAMES)}: {prompt}",
            )
        )
        fresh = _key(changed) == _key(prompt) or _key(changed) not in used
        if changed != prompt and fresh and part_of(changed) == "pool":
            used.add(_key(changed))
            messages = (*draft.messages[:-2], ("user", changed), draft.messages[-1])
            return _Draft(draft.skill, messages, "", "near-duplicate", index)


def _order(rng: Random, drafts: list[_Draft]) -> list[int]:
    """A random order of the drafts in which no copy comes before its original."""
    order = rng.sample(range(len(drafts)), len(drafts))
    line_of = {index: line for line, index in enumerate(order)}
    for index, draft in enumerate(drafts):
        if draft.copy_of is not None and line_of[index] < line_of[draft.copy_of]:
            early, late = line_of[index], line_of[draft.copy_of]
            order[early], order[late] = draft.copy_of, index
    return order


def _source(rng: Random, skill: str | None) -> str:
    turn = 0 if skill is None else SKILLS.index(skill)
    place = rng.choice([place for place, weight in enumerate(_SOURCE_WEIGHTS) for _ in range(weight)])
    return SOURCES[(place + turn) % len(SOURCES)]


def _row(messages: tuple[tuple[str, str], ...]) -> Row:
    return {"messages": [{"role": role, "content": content} for role, content in messages]}


def _write(path: Path, rows: Iterable[Row]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    path.write_bytes("".join(lines).encode())
