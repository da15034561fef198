"""LESS on real rows with a small language model: right sources beside those of RDS+ and n-grams, agreement of
the cheaper forms with the full one, and the query loss after fine-tuning on each choice.

    python benchmarks/real_less.py --shared ../shared --out benchmarks/results/real_less.json

Sample, queries and right sources are those of real_model.py: 4,000 rows drawn in proportion, at most 512
tokens, 300 rows chosen. The warm-up is what `--warm-up` says: with the default 200 rows and 128 a step
Adam would make 8 steps. Fine-tuning: recipe tulu2, one epoch, 16 rows a step and a rate for a model of this
size; the loss is the mean over the query rows of their mean label loss (T§4.3), on the query
set that chose the rows and on held-out items (GSM8K test, the remaining HumanEval problems).
"""

from __future__ import annotations

import argparse
import gzip
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from real_model import MAPPING, RIGHT, plain_pools, queries, sample
from scipy.stats import spearmanr

import tamis
from tamis.core import status as statuses
from tamis.core.cost import totals
from tamis.models.lm import load_model
from tamis.models.losses import LossEngine
from tamis.models.render import Renderer
from tamis.selections import choose
from tamis.study.gradient_signal import gradient_similarity, shortlist
from tamis.study.signals import Settings

BUDGET = 300
SELECTIONS = ("round-robin", "top-k", "doubly-greedy")
WARM_UP = """
share: 0.1
recipe: {recipe: less-warmup, epochs: 2, batch_rows: 16, learning_rate: 5e-4, max_tokens: 512}
"""
TUNING = {"recipe": "tulu2", "epochs": 1, "batch_rows": 16, "learning_rate": 5e-4, "max_tokens": 512}
HELD_OUT = 200


def held_out(shared: Path, work: Path) -> dict[str, Path]:
    """Items of the targets that no strategy has seen."""
    paths = {name: work / f"{name}-test.jsonl" for name in RIGHT}
    rows = [json.loads(line) for line in _lines(shared / "data/targets/gsm8k", "test")][:HELD_OUT]
    paths["gsm8k"].write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    problems = [json.loads(line) for line in _lines(shared / "data/targets/humaneval", "HumanEval")][40:]
    rows = [{"prompt": p["prompt"], "completion": p["canonical_solution"]} for p in problems]
    paths["humaneval"].write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return paths


def _lines(folder: Path, word: str) -> list[str]:
    path = next(p for p in sorted(folder.iterdir()) if word in p.name and ".jsonl" in p.name)
    data = path.read_bytes()
    return (gzip.decompress(data) if path.suffix == ".gz" else data).decode().splitlines()


def query_loss(model: str, rows: Any) -> float:
    """Mean over rows of the mean loss of the label's tokens, given the prompt."""
    lm = load_model(model, "float32", "cpu")
    rendered = Renderer(lm.tokenizer, "auto", 512).render_queries(rows.conversations())
    wanted = [np.concatenate([[False], row.mask[1:]]) for row in rendered]
    losses = LossEngine(lm).losses([row.ids for row in rendered], wanted)
    return float(np.mean([found.mean() for found in losses]))


def right_share(pool: Any, positions: np.ndarray, task: str) -> int:
    """Chosen rows of the right sources."""
    return int(np.isin(pool.sources[positions], RIGHT[task]).sum())


def agreement(full: np.ndarray, other: np.ndarray, usable: np.ndarray, budget: int) -> dict[str, float]:
    """Of similarities (m, n): rank correlation of the best score of each row over the usable rows, and the
    share of the rows chosen by turns that both choose."""
    rank = spearmanr(full[:, usable].max(axis=0), other[:, usable].max(axis=0)).statistic
    chosen = [set(choose("round-robin", s, budget=budget, usable=usable).tolist()) for s in (full, other)]
    return {"spearman": float(rank), "same_rows": len(chosen[0] & chosen[1]) / budget}


def cheaper(compared: Any, budget: int) -> dict[str, Any]:
    """The first checkpoint alone, and the shortlist of less-fast, against all checkpoints."""
    similarity, usable = compared.similarity, compared.usable
    rows = np.arange(similarity.n)
    full = similarity.columns(rows)
    first = similarity.parts[0].similarity
    alone = first.columns(rows)
    found: dict[str, Any] = {"first checkpoint": agreement(full, alone, usable, budget)}
    for share in (0.1, 0.2, 0.4):
        places = shortlist(first, usable, share)
        kept = np.isin(rows, places) & usable
        chosen = [
            set(choose("round-robin", full, budget=budget, usable=mask).tolist()) for mask in (usable, kept)
        ]
        found[f"shortlist {share}"] = {"same_rows": len(chosen[0] & chosen[1]) / budget}
    return found


def on_a_task(
    task: str, query: Path, drawn: Any, test: Path, given: Any, warm: dict[str, Any]
) -> dict[str, Any]:
    """Everything about one target."""
    work, model = given.work, str(given.shared.resolve() / "models/pool-9m")
    asked = tamis.read_pool([query], map=MAPPING, store=work / "store", merge_duplicates=False)
    held = tamis.read_pool([test], map=MAPPING, store=work / "store", merge_duplicates=False)
    names = [f"{signal}/{selection}" for signal in ("less", "rds", "ngrams") for selection in SELECTIONS]
    common = {"model": model, "max_tokens": 512, "store": work / "store"}
    subsets = tamis.select(
        drawn, query={task: asked}, strategy=[*names, "random"], budget=[BUDGET],
        parameters={"less": warm}, report=False, **common,
    )  # fmt: skip
    found: dict[str, Any] = {
        "right": {s.strategy.name: right_share(drawn, s.positions, task) for s in subsets}
    }
    less = next(s for s in subsets if s.strategy.name == "less/round-robin")
    found["gradients"] = less.facts["diagnostics"]["gradients"]
    folder = str(work / "store" / "model" / less.facts["pre"]["model"])
    settings = Settings(**{**common, "model": folder, "store": Path(common["store"])})
    compared = gradient_similarity("less", {}, drawn, {task: asked}, settings)
    found["cheaper"] = cheaper(compared, BUDGET)
    found["statuses"] = statuses.counts(compared.codes)
    spent = totals(work / "store", set(compared.digests[: len(compared.parts)]))
    found["seconds_per_checkpoint"] = [round(spent[d]["seconds"], 1) for d in compared.digests if d in spent]
    print(task, json.dumps(found, indent=1), flush=True)
    found["loss"] = {"untrained": [query_loss(model, asked), query_loss(model, held)]}
    trained = ("less/round-robin", "rds/round-robin", "ngrams/round-robin", "random")
    for subset in subsets:
        if given.seeds and subset.strategy.name in trained:
            tuned = [
                tamis.train(subset, model=model, recipe=TUNING, seed=seed, store=work / "store")
                for seed in range(given.seeds)
            ]
            pairs = [(query_loss(str(t), asked), query_loss(str(t), held)) for t in tuned]
            found["loss"][subset.strategy.name] = np.mean(pairs, axis=0).tolist()
            print(task, subset.strategy.name, found["loss"][subset.strategy.name], flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shared", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("/tmp/tamis-real-less"))
    parser.add_argument("--rows", type=int, default=4000)
    parser.add_argument("--seeds", type=int, default=1, help="of the fine-tuning; 0: none")
    parser.add_argument("--warm-up", default=WARM_UP, help="values of --set less.…, as YAML")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    warm = yaml.safe_load(given.warm_up)
    pools = plain_pools(given.shared.resolve(), given.work / "store")
    path = given.work / "sample-0.jsonl"
    sources = sample(pools, given.rows, 0, path)
    drawn = tamis.read_pool([path], store=given.work / "store")
    tests = held_out(given.shared.resolve(), given.work)
    start = time.perf_counter()
    results: dict[str, Any] = {"rows": len(drawn), "budget": BUDGET, "warm_up": warm, "fine_tuning": TUNING}
    for task, query in queries(given.shared.resolve(), given.work).items():
        results[task] = on_a_task(task, query, drawn, tests[task], given, warm)
        results[task]["right_in_sample"] = sum(sources[s] for s in RIGHT[task])
        print(json.dumps(results[task], indent=1), flush=True)
        if given.out:
            given.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(f"{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
