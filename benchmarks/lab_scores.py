"""Scores on the laboratory, whose truth is known: quality scores and IFD against planted faults, and how DSIR
is smoothed.

    python benchmarks/lab_scores.py --out benchmarks/results/lab_scores.json

Faults: the share of pairs of a clean and a faulty row in which the clean one scores higher (ROC), by fault;
0.5 is chance. `quality` is by a scorer that is tuned here: the nano model, fine-tuned on the rows of another
laboratory (`--tuning-seed`, no prompt of which is in the one that is scored), whose prompts are those of a
digit scorer and whose answers are 6 for a clean row and 1 for one with a wrong or a mismatched answer; beside
it the same scorer before tuning. Perplexity is that of the response, negated.

DSIR: for every skill as many rows are drawn as the pool has of it; the share of them that is of the skill,
mean over the skills, by `pseudo_count`, and `ngrams/top-k` beside it.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import rankdata

import tamis
from tamis.lab import NANO, write_lab
from tamis.scores._digit_prompts import PLAIN, exchanges
from tamis.study.laboratory import survey, truth_of
from tamis.study.signals import Settings
from tamis.study.strategies import resolve

GOOD, BAD = "6", "1"
WRONG = ("mismatched", "wrong")
TEMPLATE = "{% for m in messages %}{{ m.content }}{{ eos_token if m.role == 'assistant' }}{% endfor %}"
"""Text as a digit scorer sees it: the prompt, then the digit."""
RECIPE = {"epochs": 4, "batch_rows": 32, "learning_rate": 1e-3, "schedule": "cosine", "max_tokens": 512}
PSEUDO_COUNTS = (0.0, 0.01, 0.03, 0.1, 0.3, 1.0)


def roc(clean: np.ndarray, faulty: np.ndarray) -> float:
    """Share of pairs in which the clean row scores higher, ties half."""
    ranks = rankdata(np.concatenate([clean, faulty]))
    above = ranks[: len(clean)].sum() - len(clean) * (len(clean) + 1) / 2
    return float(above / (len(clean) * len(faulty)))


def tuning_rows(pool: Any, faults: np.ndarray, seen: set[str]) -> list[dict[str, str]]:
    """Prompts of a digit scorer with their digits: rows of one exchange whose prompt is not in `seen`."""
    found = []
    for row, fault in zip(pool.iter_rows(), faults, strict=True):
        asked = exchanges(row.messages)
        if len(asked) != 1 or asked[0].instruction in seen or fault not in ("", *WRONG):
            continue
        text = PLAIN["quality"].format(instruction=asked[0].instruction, response=asked[0].response)
        found.append({"prompt": text, "completion": BAD if fault in WRONG else GOOD})
    return found


def tuned_scorer(pool: Any, work: Path, rows: int, seed: int) -> tuple[Path, dict[str, Any]]:
    """A quality scorer for the laboratory, and what it was tuned on."""
    seen = {each.instruction for row in pool.iter_rows() for each in exchanges(row.messages)}
    lab = work / "tuning"
    lab.mkdir()
    write_lab(lab, rows=rows, seed=seed, fault_share=0.5)
    other = tamis.read_pool([lab / "pool.jsonl"], store=work / "store")
    made = tuning_rows(other, truth_of(other, lab).faults, seen)
    path, template = work / "scorer.jsonl", work / "scorer.jinja"
    path.write_text("".join(json.dumps(row) + "\n" for row in made), encoding="utf-8")
    template.write_text(TEMPLATE, encoding="utf-8")
    trained = tamis.train(
        tamis.read_pool([path], store=work / "store"), model=str(NANO), recipe=RECIPE,
        template=str(template), store=work / "store",
    )  # fmt: skip
    names = ("steps", "tokens", "first_loss", "last_loss")
    facts = {name: trained.summary[name] for name in names if name in trained.summary}
    bad = sum(row["completion"] == BAD for row in made)
    return trained.path, {"seed": seed, "rows": len(made), "bad": bad, **facts}


def rocs(values: np.ndarray, faults: np.ndarray) -> dict[str, float]:
    """ROC of clean rows against those of each fault."""
    scored = np.isfinite(values)
    clean = values[scored & (faults == "")]
    return {
        fault: roc(clean, values[scored & (faults == fault)])
        for fault in sorted(set(faults) - {""})
        if (scored & (faults == fault)).any()
    }


def against_faults(pool: Any, lab: Path, work: Path, rows: int, seed: int) -> dict[str, Any]:
    """ROC by score and fault, and how many rows are above 1 by IFD."""
    common: dict[str, Any] = {"model": str(NANO), "store": work / "store"}
    faults = truth_of(pool, lab).faults
    ifd = tamis.score(pool, "ifd", **common).values
    perplexity = tamis.score(
        pool, "perplexity", parameters={"tokens": "response", "turns": "first"}, **common
    )
    scorer, tuning = tuned_scorer(pool, work, rows, seed)
    by_scorer = {
        name: tamis.score(
            pool, "quality", parameters={"model": str(path), "prompt": "plain"}, **common
        ).values
        for name, path in (("quality", scorer), ("quality, not tuned", NANO))
    }
    scores = {"ifd": ifd, "perplexity, negated": -perplexity.values, **by_scorer}
    scored = np.isfinite(ifd)
    return {
        "roc": {name: rocs(values, faults) for name, values in scores.items()},
        "scored": int(scored.sum()),
        "above_1": int((ifd[scored] > 1).sum()),
        "tuning": tuning,
        "rows": {fault or "clean": int((scored & (faults == fault)).sum()) for fault in sorted(set(faults))},
    }


def shares(pool: Any, lab: Path, store: Path) -> dict[str, float]:
    """Mean share of the right skill among as many rows as there are of it."""
    found = {}
    for name, parameters in [
        ("ngrams/top-k", {}),
        *((f"dsir {count:g}", {"importance": {"pseudo_count": count}}) for count in PSEUDO_COUNTS),
    ]:
        strategies = resolve([name.split(" ")[0]], parameters)
        findings = survey(pool, lab, strategies, Settings(store=store))
        found[name] = float(np.mean([finding.share for finding in findings]))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=4000)
    parser.add_argument("--tuning-rows", type=int, default=1500)
    parser.add_argument("--tuning-seed", type=int, default=11)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        lab, store = Path(folder) / "lab", Path(folder) / "store"
        lab.mkdir()
        write_lab(lab, rows=given.rows)
        pool = tamis.read_pool([lab / "pool.jsonl"], store=store)
        found = {
            "rows": len(pool),
            "faults": against_faults(pool, lab, Path(folder), given.tuning_rows, given.tuning_seed),
            "share": shares(pool, lab, store),
        }
    print(json.dumps(found, indent=1))
    if given.out:
        given.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
