"""What `ngrams` finds of the right sources in a pool of 86,115 real rows, beside a TF-IDF reference.

    python benchmarks/real_pool.py --data ../shared/data --out benchmarks/results/real_pool.json

For every target: 500 rows by top-k of the mean similarity and by round-robin, counted by the file they come
from. The reference (data README, "Ground truth") is TF-IDF of word tokens with sublinear term frequency over
prompt and answer, the first 4,000 characters. `--set ngrams.buckets=10000` and the like try other parameters.
The exit code is 1 when a target with a right source gets fewer rows of it than the reference finds.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import tamis
from tamis.core.cost import peak_memory_bytes
from tamis.study.signals import compared

ROOT = Path(__file__).resolve().parents[1]
MAP = ROOT / "examples/maps/shared-pool.yaml"
BUDGET = 500
SELECTIONS: dict[str, dict[str, Any]] = {"top-k": {"aggregate": "mean"}, "round-robin": {}}
CHINESE = (
    "alpaca_gpt4_zh_1k", "oasst_sft_zh", "oasst_rm_zh", "glaive_toolcall_zh", "dpo_zh",
    "lawyer_llama_judicial_exam", "firefly_dummy",
)  # fmt: skip


@dataclass(frozen=True)
class Target:
    """`first` query rows of `path`; the right files, and how many of 500 the reference finds in them by top-k
    and by round-robin. Without a right file: how many come from the largest, a fact and not a goal."""

    path: str
    first: int | None
    right: tuple[str, ...]
    reference: tuple[int, int]


TARGETS = {
    "gsm8k": Target(
        "gsm8k/exemplars_8shot.jsonl", None, ("gsm8k_train", "mawps_train", "flan_cot_aqua"), (475, 431)
    ),
    "humaneval": Target(
        "humaneval/HumanEval.jsonl.gz", None, ("codealpaca_new", "codealpaca_2k"), (448, 388)
    ),
    "tydiqa-korean": Target("tydiqa/korean_tydiqa_dev.json.gz", 20, ("tydiqa_train_ko",), (500, 460)),
    "tydiqa-swahili": Target("tydiqa/swahili_tydiqa_dev.json.gz", 20, ("tydiqa_train_sw",), (500, 495)),
    "arc-challenge": Target(
        "multiple_choice/arc_challenge.jsonl", 100, ("arc_easy_train", "arc_challenge_train"), (287, 229)
    ),
    "xquad-chinese": Target("squad/xquad.zh.json.gz", 20, CHINESE, (207, 207)),
    "bbh": Target("bbh/query_81.jsonl", None, (), (202, 125)),
    "mmlu": Target("mmlu/dev/*.csv", None, (), (247, 136)),
}


def query_pool(target: Target, targets: Path, folder: Path) -> tamis.Pool:
    """The target's first rows, as a query set."""
    whole = tamis.read_pool([targets / target.path], map=MAP, merge_duplicates=False, store=folder)
    path = folder / "query.jsonl"
    with open(path, "w", encoding="utf-8") as file:
        for messages in whole.conversations(0, target.first or len(whole)):
            turns = [{"role": message.role, "content": message.content} for message in messages]
            file.write(json.dumps({"messages": turns}) + "\n")
    return tamis.read_pool([path], merge_duplicates=False, store=folder)


def composition(positions: np.ndarray, files: np.ndarray, right: tuple[str, ...]) -> dict[str, Any]:
    """Rows by file, and those of the right files (of the largest file when none is right)."""
    counts = Counter(files[positions].tolist()).most_common()
    found = sum(count for name, count in counts if name in right) if right else counts[0][1]
    return {"found": found, "files": dict(counts)}


def measure(data: Path, parameters: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Read the pool, encode it once, and choose for every target."""
    settings: dict[str, Any] = {"store": folder, "parameters": parameters}
    began = time.perf_counter()
    pool = tamis.read_pool([data / "pool/*.jsonl.gz"], map=MAP, store=folder)
    read = time.perf_counter()
    rows = tamis.represent(pool, "ngrams", **settings)
    seconds = {"read": read - began, "represent": time.perf_counter() - read}
    files = np.array([Path(row.file).name.split(".")[0] for row in pool.iter_rows()], dtype=object)
    found: dict[str, Any] = {}
    for name, target in TARGETS.items():
        queries = query_pool(target, data / "targets", folder)
        began = time.perf_counter()
        similarity = compared([tamis.represent(queries, "ngrams", role="query", **settings)], rows)
        found[name] = {"queries": similarity.m, "reference": target.reference}
        for selection, own in SELECTIONS.items():
            positions = tamis.choose(selection, similarity, budget=BUDGET, **own)
            found[name][selection] = composition(positions, files, target.right)
        found[name]["seconds"] = round(time.perf_counter() - began, 2)
    return {
        "rows": int(pool.counts.sum()),
        "rows_merged": len(pool),
        "parameters": parameters,
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
        "peak_memory_bytes": peak_memory_bytes(),
        "targets": found,
    }


def show(results: dict[str, Any]) -> bool:
    """Print the table; whether every target with a right source has at least the reference's rows."""
    print(f"{results['rows']} rows, {results['parameters'] or 'default parameters'}, {results['seconds']}")
    print(f"{'target':16}{'queries':>8}{'top-k':>8}{'(ref.)':>8}{'r-robin':>9}{'(ref.)':>8}{'seconds':>9}")
    reached = True
    for name, found in results["targets"].items():
        ours = [found[selection]["found"] for selection in SELECTIONS]
        below = any(mine < theirs for mine, theirs in zip(ours, found["reference"], strict=True))
        note = "  below the reference" if below else ""
        if not TARGETS[name].right:
            below, note = False, "  largest source"
        reached = reached and not below
        pairs = f"{ours[0]:8}{found['reference'][0]:8}{ours[1]:9}{found['reference'][1]:8}"
        print(f"{name:16}{found['queries']:8}{pairs}{found['seconds']:9}{note}")
    return reached


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared/data")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--set", action="append", default=[], metavar="ngrams.NAME=VALUE")
    arguments = parser.parse_args()
    pairs = [text.removeprefix("ngrams.").split("=", 1) for text in arguments.set]
    parameters = {name: json.loads(value) if value[0].isdigit() else value for name, value in pairs}
    with tempfile.TemporaryDirectory() as folder:
        results = measure(arguments.data, parameters, Path(folder))
    reached = show(results)
    if arguments.out:
        results = {"machine": platform.machine(), "python": platform.python_version(), **results}
        arguments.out.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    sys.exit(0 if reached else 1)


if __name__ == "__main__":
    main()
