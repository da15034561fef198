"""LESS on the laboratory, whose truth is known: what it finds beside RDS+, and what its cheaper forms lose.

    python benchmarks/lab_less.py --out benchmarks/results/lab_less.json

Two models. `nano` is the shipped one, which was trained on all skills: what it can learn of them it knows, so
that the expected gradient of a skill's rows is about zero. `novice` has the same architecture and begins from
random weights: two epochs on another laboratory (`--novice-seed`, clean rows, prompts included), after which
it knows the forms of answers and hardly any answer. The share of a skill's rows that is found, with a budget
of as many rows as the pool has of it, for every selection; chance is 5 %. `learned`: how far the mean label
loss of the skill's held-out tests falls by the warm-up. `cheaper`: all skills as one request, against all
checkpoints.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
import yaml
from real_less import cheaper, query_loss

import tamis
from tamis.core.cost import totals
from tamis.lab import NANO, write_lab
from tamis.study.gradient_signal import gradient_similarity
from tamis.study.laboratory import as_rows, shares, survey
from tamis.study.signals import Settings
from tamis.study.strategies import resolve

SELECTIONS = ("round-robin", "doubly-greedy", "top-k", "knn-uniform", "knn-kde", "transport")
NOVICE = {
    "epochs": 2, "batch_rows": 32, "learning_rate": 2e-3, "schedule": "cosine", "max_tokens": 512,
    "loss_on_prompt": True,
}  # fmt: skip
WARM_UP = {
    "nano": "{}",
    "novice": "{share: 0.25, recipe: {recipe: less-warmup, batch_rows: 16, learning_rate: 5e-4}}",
}
"""Values of --set less.…: the defaults, and for the novice what makes some 250 steps."""


def novice(work: Path, seed: int, rows: int) -> str:
    """The model that has just begun to learn."""
    lab, begin = work / "novice-lab", work / "novice-begin"
    if not (work / "novice" / "config.json").exists():
        write_lab(lab, rows=rows, seed=seed)
        torch.manual_seed(0)
        config = transformers.AutoConfig.from_pretrained(NANO)
        transformers.AutoModelForCausalLM.from_config(config).float().save_pretrained(begin)
        transformers.AutoTokenizer.from_pretrained(NANO).save_pretrained(begin)
        truth = [json.loads(line) for line in (lab / "truth.jsonl").read_text(encoding="utf-8").splitlines()]
        lines = (lab / "pool.jsonl").read_text(encoding="utf-8").splitlines()
        clean = [line for line, fact in zip(lines, truth, strict=True) if not fact["fault"]]
        (lab / "clean.jsonl").write_text("\n".join(clean) + "\n", encoding="utf-8")
        pool = tamis.read_pool([lab / "clean.jsonl"], store=work / "store")
        tamis.train(pool, model=str(begin), recipe=NOVICE, store=work / "store", out=work / "novice")
    return str(work / "novice")


def learned(base: str, adapter: str, lab: Path, store: Path) -> dict[str, list[float]]:
    """Mean label loss of each skill's tests by the base, and after the warm-up."""
    found = {}
    for path in sorted((lab / "tests").glob("*.jsonl")):
        rows = tamis.read_pool([path], store=store, merge_duplicates=False)
        found[path.stem] = [query_loss(base, rows), query_loss(adapter, rows)]
    return found


def on(model: str, warm: dict[str, Any], lab: Path, work: Path, signals: tuple[str, ...]) -> dict[str, Any]:
    """The table of one model."""
    store = work / "store"
    pool = tamis.read_pool([lab / "pool.jsonl"], store=store)
    settings = Settings(store=store, model=model, dtype="float32")
    start = time.perf_counter()
    folder = tamis.warm_up(pool, model=model, parameters=warm, store=store, dtype="float32")
    training = json.loads((Path(folder) / "training.json").read_text(encoding="utf-8"))["done"]
    found: dict[str, Any] = {
        "warm_up": {name: training[name] for name in ("rows", "steps", "loss_first", "loss_last")},
        "learned": learned(model, folder, lab, store),
    }
    names = [f"{signal}/{selection}" for signal in signals for selection in SELECTIONS]
    surveyed = survey(pool, lab, resolve(names, {"less": warm}), settings)
    found["seconds"] = round(time.perf_counter() - start)
    found["shares"] = shares(surveyed)
    found["rows"] = as_rows(surveyed)
    found["mean"] = {name: float(np.mean([v[name] for v in found["shares"].values()])) for name in names}
    queries = {
        path.stem: tamis.read_pool([path], store=store, merge_duplicates=False)
        for path in sorted((lab / "queries").glob("*.jsonl"))
    }
    trained = Settings(store=store, model=folder, dtype="float32")
    compared = gradient_similarity("less", {}, pool, queries, trained)
    found["cheaper"] = cheaper(compared, len(pool) // 10)
    spent = totals(store, set(compared.digests[: len(compared.parts)]))
    found["seconds_per_checkpoint"] = [round(spent[d]["seconds"], 1) for d in compared.digests if d in spent]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, default=Path("/tmp/tamis-lab-less"))
    parser.add_argument("--rows", type=int, default=4000)
    parser.add_argument("--novice-seed", type=int, default=77)
    parser.add_argument("--novice-rows", type=int, default=2500)
    parser.add_argument("--models", nargs="+", default=["novice", "nano"], choices=list(WARM_UP))
    parser.add_argument("--warm-up", help="values of --set less.…, as YAML, in place of those of each model")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    lab = given.work / "lab"
    if not lab.exists():
        write_lab(lab, rows=given.rows, seed=0)
    results: dict[str, Any] = {}
    if given.out and given.out.exists():
        results = json.loads(given.out.read_text(encoding="utf-8"))
    for name in given.models:
        model = str(NANO) if name == "nano" else novice(given.work, given.novice_seed, given.novice_rows)
        warm = yaml.safe_load(given.warm_up or WARM_UP[name])
        results[name] = {"asked": warm, **on(model, warm, lab, given.work, ("less", "rds"))}
        print(
            name,
            json.dumps({k: results[name][k] for k in ("warm_up", "mean", "cheaper", "seconds")}, indent=1),
        )
        if given.out:
            given.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
