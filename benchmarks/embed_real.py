"""What each representation finds of the right sources on real rows, by target and selection.

    python benchmarks/embed_real.py --encoder PATH --model ../shared/models/pool-9m \
        --out benchmarks/results/embed_real.json

Sample: rows drawn from every source of the real pool in proportion. For a target with R rows of right sources
in the sample the budget is R, and the number is the share of the R chosen rows that are right, so that 1 is
perfect and chance is R / rows; `early` is the same of the first R / 4. Right sources of GSM8K, HumanEval and
TyDi QA are those of the data's README; those of the three groups of MMLU subjects (their development
questions) are ours: the sources that teach the field. The exit code is 1 when `embed`, in the mean over the
targets, finds less than `ngrams` by top-k or round-robin.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

import tamis
from tamis.core import status as statuses
from tamis.study.signals import compared

ROOT = Path(__file__).resolve().parents[1]
MAP = ROOT / "examples/maps/shared-pool.yaml"
MATHEMATICS = ("gsm8k_train", "mawps_train", "flan_cot_aqua")
SCIENCE = ("arc_easy_train", "arc_challenge_train")
SELECTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "top-k": ("top-k", {}),
    "top-k max": ("top-k", {"aggregate": "max"}),
    "round-robin": ("round-robin", {}),
    "doubly-greedy": ("doubly-greedy", {}),
    "knn-uniform": ("knn-uniform", {}),
    "knn-kde": ("knn-kde", {}),
    "transport": ("transport", {}),
}
COMPARED = ("top-k", "round-robin")


@dataclass(frozen=True)
class Target:
    """`first` query rows of the files that fit `paths`, and the files whose rows are right."""

    paths: tuple[str, ...]
    right: tuple[str, ...]
    first: int | None = None


def subjects(*names: str) -> tuple[str, ...]:
    """Development files of MMLU subjects."""
    return tuple(f"mmlu/dev/{name}_dev.csv" for name in names)


TARGETS = {
    "gsm8k": Target(("gsm8k/exemplars_8shot.jsonl",), MATHEMATICS),
    "humaneval": Target(("humaneval/HumanEval.jsonl.gz",), ("codealpaca_new", "codealpaca_2k"), 40),
    "tydiqa-korean": Target(("tydiqa/korean_tydiqa_dev.json.gz",), ("tydiqa_train_ko",), 20),
    "tydiqa-swahili": Target(("tydiqa/swahili_tydiqa_dev.json.gz",), ("tydiqa_train_sw",), 20),
    "mmlu-medicine": Target(
        subjects("clinical_knowledge", "college_medicine", "professional_medicine", "medical_genetics"),
        ("medalpaca_meadow_small",),
    ),
    "mmlu-mathematics": Target(
        subjects("elementary_mathematics", "high_school_mathematics", "college_mathematics"), MATHEMATICS
    ),
    "mmlu-science": Target(
        subjects("high_school_biology", "high_school_physics", "high_school_chemistry", "astronomy"), SCIENCE
    ),
}


def pool_of(shared: Path, rows: int, seed: int, work: Path) -> tuple[Any, np.ndarray]:
    """A proportional sample as a pool, and the file that each of its rows is from."""
    whole = tamis.read_pool([shared / "data/pool/*.jsonl.gz"], map=MAP, store=work / "store")
    files = np.array([Path(row.file).name.split(".")[0] for row in whole.iter_rows()], dtype=object)
    rng = Random(seed)
    path = work / f"sample-{seed}.jsonl"
    with open(path, "w", encoding="utf-8") as out:
        for name in sorted(set(files)):
            members = np.flatnonzero(files == name).tolist()
            for position in rng.sample(members, max(1, round(rows * len(members) / len(files)))):
                turns = [message._asdict() for message in whole.row(position).messages]
                out.write(json.dumps({"messages": turns, "source": name}) + "\n")
    pool = tamis.read_pool([path], store=work / "store")
    return pool, pool.sources


def query_of(target: Target, shared: Path, work: Path) -> Any:
    """The target's query set."""
    paths = [shared / "data/targets" / path for path in target.paths]
    whole = tamis.read_pool(paths, map=MAP, merge_duplicates=False, store=work / "store")
    path = work / "query.jsonl"
    with open(path, "w", encoding="utf-8") as file:
        for messages in whole.conversations(0, target.first or len(whole)):
            file.write(json.dumps({"messages": [message._asdict() for message in messages]}) + "\n")
    return tamis.read_pool([path], merge_duplicates=False, store=work / "store")


def representations(given: argparse.Namespace) -> dict[str, tuple[str, dict[str, Any]]]:
    """Name in the table → method and keyword arguments of `represent`."""
    found: dict[str, tuple[str, dict[str, Any]]] = {"ngrams": ("ngrams", {})}
    for text in given.text:
        name = "embed" if text == "conversation" else f"embed {text}"
        found[name] = ("embed", {"parameters": {"encoder": str(given.encoder), "text": text}})
    if given.model:
        found["rds"] = (
            "rds",
            {"model": str(given.model), "dtype": "float32", "max_tokens": 512, "template": "tulu"},
        )
    return found


def measure(given: argparse.Namespace, seed: int, work: Path) -> dict[str, Any]:
    """One sample: every representation, target and selection."""
    shared = given.shared.resolve()
    pool, sources = pool_of(shared, given.rows, seed, work)
    queries = {name: query_of(target, shared, work) for name, target in TARGETS.items()}
    budgets = {name: int(np.isin(sources, target.right).sum()) for name, target in TARGETS.items()}
    found: dict[str, Any] = {"rows": len(pool), "right_in_sample": budgets, "representations": {}}
    for name, (method, options) in representations(given).items():
        began = time.perf_counter()
        rows = tamis.represent(pool, method, store=work / "store", **options)
        facts: dict[str, Any] = {"seconds": round(time.perf_counter() - began, 1)}
        facts["status"] = statuses.counts(rows.codes)
        facts["tokens"] = int(np.maximum(rows.tokens, 0).sum())
        facts["share"], facts["early"], facts["sources"] = {}, {}, {}
        for target, query in queries.items():
            asked = tamis.represent(query, method, role="query", store=work / "store", **options)
            similarity = compared([asked], rows)
            usable = statuses.scored(rows.codes)
            budget = budgets[target]
            chosen = {
                label: sources[tamis.choose(selection, similarity, budget=budget, usable=usable, **own)]
                for label, (selection, own) in SELECTIONS.items()
                if selection in tamis.SELECTIONS
            }
            facts["share"][target] = {label: _right(names, target) for label, names in chosen.items()}
            facts["early"][target] = {
                label: _right(names[: max(1, budget // 4)], target) for label, names in chosen.items()
            }
            facts["sources"][target] = {
                label: dict(Counter(names.tolist()).most_common(5)) for label, names in chosen.items()
            }
        found["representations"][name] = facts
        print(f"seed {seed}: {name} done in {facts['seconds']} s", file=sys.stderr, flush=True)
    return found


def _right(names: np.ndarray, target: str) -> float:
    return round(float(np.isin(names, TARGETS[target].right).mean()), 4)


def means(samples: Sequence[dict[str, Any]], what: str) -> dict[str, dict[str, dict[str, float]]]:
    """representation → target → selection → mean share over the samples."""
    first = samples[0]["representations"]
    return {
        name: {
            target: {
                label: round(
                    sum(s["representations"][name][what][target][label] for s in samples) / len(samples), 3
                )
                for label in shares
            }
            for target, shares in facts[what].items()
        }
        for name, facts in first.items()
    }


def markdown(table: dict[str, dict[str, dict[str, float]]], chance: dict[str, float]) -> str:
    """The table of the documents: a row for each representation and selection, a column for each target."""
    lines = [f"| representation | selection | {' | '.join(TARGETS)} | mean |"]
    lines.append("|---|---|" + "---:|" * (len(TARGETS) + 1))
    for name, targets in table.items():
        for label in next(iter(targets.values())):
            shares = [targets[target][label] for target in TARGETS]
            cells = " | ".join(f"{share:.2f}" for share in shares)
            lines.append(f"| {name} | {label} | {cells} | {np.mean(shares):.2f} |")
    cells = " | ".join(f"{chance[target]:.2f}" for target in TARGETS)
    lines.append(f"| chance | | {cells} | {np.mean(list(chance.values())):.2f} |")
    return "\n".join(lines)


def reached(table: dict[str, dict[str, dict[str, float]]]) -> bool:
    """Whether `embed` finds at least what `ngrams` finds, in the mean over the targets; prints where not."""
    good = True
    for label in COMPARED:
        ours, theirs = ([table[name][target][label] for target in TARGETS] for name in ("embed", "ngrams"))
        below = [t for t, mine, other in zip(TARGETS, ours, theirs, strict=True) if mine < other]
        print(f"{label}: embed {np.mean(ours):.3f}, ngrams {np.mean(theirs):.3f}; below on {below or 'none'}")
        good = good and np.mean(ours) >= np.mean(theirs)
    return bool(good)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shared", type=Path, default=ROOT.parent / "shared")
    parser.add_argument("--encoder", type=Path, required=True, help="folder of a sentence encoder")
    parser.add_argument("--text", nargs="*", default=["conversation"], help="texts of `embed` to compare")
    parser.add_argument("--model", type=Path, help="language model for `rds`; left out without one")
    parser.add_argument("--rows", type=int, default=4000)
    parser.add_argument("--samples", type=int, default=1)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        samples = [measure(given, seed, Path(folder)) for seed in range(given.samples)]
    table, early = means(samples, "share"), means(samples, "early")
    rows = Counter({name: 0.0 for name in TARGETS})
    for sample in samples:
        for name, right in sample["right_in_sample"].items():
            rows[name] += right / sample["rows"] / len(samples)
    for title, numbers in (("share of R", table), ("share of the first R / 4", early)):
        print(f"\n{title}\n\n{markdown(numbers, rows)}")
    good = all([reached(table), reached(early)])
    if given.out:
        results = {
            "encoder": given.encoder.name,
            "chance": dict(rows),
            "mean": table,
            "early": early,
            "samples": samples,
        }
        given.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
