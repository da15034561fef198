"""Scores on the laboratory, whose truth is known: IFD against planted faults, and how DSIR is smoothed.

    python benchmarks/lab_scores.py --out benchmarks/results/lab_scores.json

IFD: the share of pairs of a clean and a faulty row in which the clean one scores higher (ROC), by fault; 0.5
is chance. DSIR: for every skill as many rows are drawn as the pool has of it; the share of them that is of
the skill, mean over the skills, by `pseudo_count`, and `ngrams/top-k` beside it.
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
from tamis.study.laboratory import survey, truth_of
from tamis.study.signals import Settings
from tamis.study.strategies import resolve

PSEUDO_COUNTS = (0.0, 0.01, 0.03, 0.1, 0.3, 1.0)


def roc(clean: np.ndarray, faulty: np.ndarray) -> float:
    """Share of pairs in which the clean row scores higher, ties half."""
    ranks = rankdata(np.concatenate([clean, faulty]))
    above = ranks[: len(clean)].sum() - len(clean) * (len(clean) + 1) / 2
    return float(above / (len(clean) * len(faulty)))


def ifd_and_faults(pool: Any, lab: Path, store: Path) -> dict[str, Any]:
    """ROC by fault, and how many rows are above 1."""
    scores = tamis.score(pool, "ifd", model=str(NANO), store=store)
    values, faults = scores.values, truth_of(pool, lab).faults
    scored = np.isfinite(values)
    clean = values[scored & (faults == "")]
    found = {
        fault: roc(clean, values[scored & (faults == fault)])
        for fault in sorted(set(faults) - {""})
        if (scored & (faults == fault)).any()
    }
    return {"roc": found, "scored": int(scored.sum()), "above_1": int((values[scored] > 1).sum())}


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
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        lab, store = Path(folder) / "lab", Path(folder) / "store"
        lab.mkdir()
        write_lab(lab, rows=given.rows)
        pool = tamis.read_pool([lab / "pool.jsonl"], store=store)
        found = {
            "rows": len(pool),
            "ifd": ifd_and_faults(pool, lab, store),
            "share": shares(pool, lab, store),
        }
    print(json.dumps(found, indent=1))
    if given.out:
        given.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
