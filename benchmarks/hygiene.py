"""Near duplicates and test rows planted in a real pool: what is found of them, what else, how fast.

    OMP_NUM_THREADS=1 RAYON_NUM_THREADS=1 python benchmarks/hygiene.py \\
        --data ../shared/data --out benchmarks/results/hygiene.json

Copies of rows that repeat no other row are changed in stated ways and added at the end of the pool; so are
test rows, inside conversations of the pool. Rows with `control` in their kind should not be found. What is
found beside the plants is counted: the pool has near duplicates and leaks of its own.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import re
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import tamis
from tamis.core.cost import peak_memory_bytes
from tamis.pools._shingles import shingles, words_of
from tamis.pools.contamination import Config, contamination, excerpt
from tamis.pools.near_duplicates import Config as Near
from tamis.pools.near_duplicates import near_duplicates
from tamis.pools.pool import Message
from tamis.pools.read import read_pool

ROOT = Path(__file__).resolve().parents[1]
MAP = ROOT / "examples/maps/shared-pool.yaml"
TARGETS = {
    "gsm8k": "gsm8k/test.jsonl",
    "humaneval": "humaneval/HumanEval.jsonl.gz",
    "xquad-zh": "squad/xquad.zh.json.gz",
}
LEAST_WORDS = 20
_PART = r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7a3]|\w+|\W"
Turns = list[tuple[str, str]]
VOCABULARY = [
    "amber", "river", "signal", "copper", "window", "garden", "silver", "motion", "paper", "stone",
    "bright", "tunnel", "market", "circle", "winter", "velvet", "engine", "harbor", "candle", "forest",
]  # fmt: skip


def replaced(chance: random.Random, text: str, share: float) -> str:
    """Each word (or character of a script without spaces) replaced by another with probability `share`."""
    parts = re.findall(_PART, text)
    return "".join(chance.choice(VOCABULARY) if p.isalnum() and chance.random() < share else p for p in parts)


def reset(chance: random.Random, text: str) -> str:
    """Other case, white space and punctuation."""
    text = re.sub(r"[.,;:!?] ", lambda m: chance.choice([" ", "! ", "  ", " - "]), text)
    return chance.choice([text.upper(), text.lower(), f"  {text}\n\n"]).replace("\n", " \n")


def shuffled(chance: random.Random, text: str) -> str:
    """The words (of a text without spaces: the characters) in another order."""
    parts = re.findall(_PART, text)
    return " ".join(chance.sample(parts, k=len(parts)))


def appended(chance: random.Random, turns: Turns) -> Turns:
    """Four words more in the last turn."""
    added = " ".join(chance.choices(VOCABULARY, k=4))
    return [*turns[:-1], (turns[-1][0], f"{turns[-1][1]} {added}.")]


def near_kinds() -> dict[str, Callable[[random.Random, Turns], Turns]]:
    """Ways to change a row."""

    def words(share: float) -> Callable[[random.Random, Turns], Turns]:
        return lambda chance, turns: [(role, replaced(chance, text, share)) for role, text in turns]

    return {
        "case, white space, punctuation": lambda chance, turns: [(r, reset(chance, t)) for r, t in turns],
        "four words appended": appended,
        "2 % of words replaced": words(0.02),
        "5 % of words replaced": words(0.05),
        "10 % of words replaced": words(0.1),
        "control: 30 % of words replaced": words(0.3),
    }


def leak_kinds() -> dict[str, Callable[[random.Random, Turns, Turns], Turns]]:
    """Ways to put a test row (prompt, answer) into a conversation."""

    def inside(change: Callable[[random.Random, str], str]) -> Callable[[random.Random, Turns, Turns], Turns]:
        def put(chance: random.Random, test: Turns, turns: Turns) -> Turns:
            text = f"{turns[0][1]}\n{change(chance, test[0][1])} {turns[-1][1]}"
            return [*turns, ("user", text), ("assistant", "Done.")]

        return put

    def words(share: float) -> Callable[[random.Random, Turns, Turns], Turns]:
        return inside(lambda chance, text: replaced(chance, text, share))

    return {
        "prompt, verbatim in a longer turn": words(0),
        "prompt, other case, white space, punctuation": inside(reset),
        "prompt, 5 % of words replaced": words(0.05),
        "prompt, 10 % of words replaced": words(0.1),
        "answer, verbatim in a longer turn": lambda chance, test, turns: [
            turns[0],
            ("assistant", f"{turns[-1][1]} {test[-1][1]}"),
        ],
        "control: 30 % of words replaced": words(0.3),
        "control: words in another order": inside(shuffled),
    }


def planted(folder: Path, rows: list[Turns]) -> Path:
    """A file of the rows."""
    path = folder / "planted.jsonl"
    with open(path, "w", encoding="utf-8") as file:
        for turns in rows:
            row = {"messages": [{"role": role, "content": text} for role, text in turns]}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    return path


def since(clock: tuple[float, float]) -> dict[str, float]:
    """Seconds of the wall and of the processor."""
    now = (time.perf_counter(), time.process_time())
    return {"wall_s": round(now[0] - clock[0], 2), "processor_s": round(now[1] - clock[1], 2)}


def messages(turns: Turns) -> list[Message]:
    return [Message(*turn) for turn in turns]


def plain_rows(pool: Any, out: np.ndarray, chance: random.Random) -> list[Turns]:
    """Rows of prompt and answer that repeat no other, with enough words, in random order."""
    rows: list[Turns] = []
    free = np.setdiff1d(np.arange(len(pool)), out)
    for turns in pool.messages_at(np.sort(chance.sample(free.tolist(), min(8000, len(free))))):
        size = len(words_of([turns]).hashes)
        if [role for role, _ in turns] == ["user", "assistant"] and LEAST_WORDS <= size <= 2000:
            rows.append([tuple(turn) for turn in turns])
    chance.shuffle(rows)
    return rows


def measured(files: list[Path], targets: dict[str, Any], folder: Path, arguments: Any) -> dict[str, Any]:
    """Plant, read, look, count."""
    chance = random.Random(arguments.seed)
    base = tamis.read_pool(files, map=MAP, store=folder / "store")
    before = near_duplicates(base, folder / "store")
    originals = plain_rows(base, np.concatenate([before.rows, before.of]), chance)
    near = [
        (kind, turns, change(chance, turns))
        for kind, change in near_kinds().items()
        for turns in (originals.pop() for _ in range(arguments.rows))
    ]
    leaks = planted_leaks(targets, originals, chance, arguments.rows)
    path = planted(folder, [turns for _, _, turns in (*near, *leaks)])
    clock = (time.perf_counter(), time.process_time())
    pool = tamis.read_pool([*files, path], map=MAP, store=folder / "store")
    seconds = since(clock)
    position = {row.line - 1: row.position for row in pool.iter_rows(len(base))}
    result: dict[str, Any] = {"rows": len(pool), "characters": int(pool.chars.sum())}
    result["reading"] = seconds
    result["near"] = near_result(pool, near, position, folder, 0.8)
    result["near, threshold 0.7"] = near_result(pool, near, position, folder, 0.7)
    result["near"]["in_the_pool_itself"] = {
        "rows": len(before.rows),
        "most": dict(Counter(base.sources[before.rows].tolist()).most_common(8)),
    }
    later = {line: position[line + len(near)] for line in range(len(leaks)) if line + len(near) in position}
    result["contamination"] = leak_result(pool, leaks, later, targets, len(base), folder)
    return result


def planted_leaks(targets: dict[str, Any], originals: list[Turns], chance: random.Random, rows: int) -> Any:
    """(kind, (target, its row), turns), the targets in turn."""
    tests = {
        name: [[tuple(turn) for turn in turns if turn.role != "system"] for turns in target.conversations()]
        for name, target in targets.items()
    }
    able = {
        (name, part): [i for i, t in enumerate(test) if len(words_of([messages([t[part]])]).hashes) >= 40]
        for name, test in tests.items()
        for part in (0, -1)
    }
    found = []
    for kind, put in leak_kinds().items():
        part = -1 if kind.startswith("answer") else 0
        names = [name for name in targets if part == 0 or name != "xquad-zh"]  # whose answers are too short
        for i in range(rows):
            name = names[i % len(names)]
            number = chance.choice(able[name, part])
            found.append((kind, (name, number), put(chance, tests[name][number], originals.pop())))
    return found


def near_result(
    pool: Any, near: Any, position: dict[int, int], folder: Path, threshold: float
) -> dict[str, Any]:
    clock = (time.perf_counter(), time.process_time())
    found = near_duplicates(pool, folder / "store", Near(threshold))
    seconds = since(clock)
    of = dict(zip(found.rows.tolist(), found.of.tolist(), strict=True))
    kinds: dict[str, Counter[str]] = {}
    for line, (kind, turns, changed) in enumerate(near):
        if line not in position:
            continue
        hit = position[line] in of
        same = hit and [tuple(turn) for turn in pool.row(of[position[line]]).messages] == turns
        similar = similarity(turns, changed) >= threshold
        kinds.setdefault(kind, Counter()).update(
            planted=1,
            found=hit,
            named_the_original=same,
            similar_enough=similar,
            found_of_those=similar and hit,
        )
    return {
        "time": seconds,
        "summary": found.summary,
        "kinds": {k: dict(c) for k, c in kinds.items()},
    }


def similarity(a: Turns, b: Turns) -> float:
    values, bounds = shingles(words_of([messages(a), messages(b)]), 3, 2)
    one, two = set(values[: bounds[1]].tolist()), set(values[bounds[1] :].tolist())
    return len(one & two) / len(one | two)


def leak_result(
    pool: Any, leaks: Any, position: dict[int, int], targets: Any, first: int, folder: Path
) -> dict[str, Any]:
    clock = (time.perf_counter(), time.process_time())
    found = contamination(pool, targets, folder / "store")
    seconds = since(clock)
    names = list(targets)
    matches = [
        (row, (names[target], number))
        for row, target, number in zip(
            *(getattr(found, name).tolist() for name in ("row", "target", "target_row")), strict=True
        )
    ]
    truth = {position[line]: test for line, (_, test, _) in enumerate(leaks) if line in position}
    pairs = set(matches)
    kinds: dict[str, Counter[str]] = {}
    for line, (kind, test, _) in enumerate(leaks):
        if line in position:
            kinds.setdefault(kind, Counter()).update(planted=1, found=(position[line], test) in pairs)
    other = [i for i, (row, test) in enumerate(matches) if truth.get(row) != test]
    return {
        "time": seconds,
        "targets": found.summary,
        "kinds": {kind: dict(counts) for kind, counts in kinds.items()},
        "beside_the_plants": {
            "other_test_rows_in_planted_rows": sum(matches[i][0] >= first for i in other),
            "in_the_pool_itself": [shown(pool, targets, found, i) for i in other if matches[i][0] < first],
        },
    }


def shown(pool: Any, targets: Any, found: Any, i: int) -> dict[str, Any]:
    """Where a match is, without its text."""
    name = list(targets)[found.target[i]]
    theirs = targets[name].row(int(found.target_row[i])).messages
    row = pool.row(int(found.row[i]))
    run = len(
        words_of([[Message("user", excerpt(row.messages, theirs, int(found.part[i]), Config()))]]).hashes
    )
    return {
        "source": row.source,
        "target": name,
        "share": round(float(found.share[i]), 3),
        "words_of_run": run,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--rows", type=int, default=200, help="planted rows of each kind")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    files = sorted((arguments.data / "pool").glob("*.jsonl.gz"))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        targets = {
            name: read_pool(
                [arguments.data / "targets" / path], map=MAP, store=folder / "store", merge_duplicates=False
            )
            for name, path in TARGETS.items()
        }
        result = measured(files, targets, folder, arguments)
    result["seed"] = arguments.seed
    result["peak_memory_mib"] = peak_memory_bytes() >> 20
    result["machine"] = {"processor": platform.machine(), "python": platform.python_version()}
    text = json.dumps(result, indent=1, ensure_ascii=False)
    print(text)
    if arguments.out:
        arguments.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
