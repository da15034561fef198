"""What a projection keeps of real gradients: cosines of LESS's features against the exact ones.

    python benchmarks/projection.py --shared ../shared --out benchmarks/results/projection.json

Two trained models, each with the adapter of a warm-up (the recipe less-warmup at `--rate`) at its last
checkpoint: the nano model on the laboratory, and where `shared` is given the small real model on real rows.
Features of pool rows that the warm-up did not see as LESS has them, moments folded in, and plain gradients of
query rows of a few tasks. Against the cosines without a projection:

rmse        of all cosines
spearman    of a row's score for a task, the mean over its queries: mean over the tasks
each        the same for every query alone
overlap     share of the tenth of the rows that a task scores highest

Medians over the seeds, and the worst. `balanced`: rows times (v + eps)^(1/4), v the second moment, and
queries divided by it, before the projection, lengths taken before that: the exact cosine stays what it is,
but neither side has its weight where the other has none. What could be gained; tamis does not do it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _warmed import folded, moments_of, rendered, warmed
from real_model import MAPPING, plain_pools, queries, sample
from scipy.stats import spearmanr

import tamis
from tamis.lab import NANO, write_lab
from tamis.models.gradients import GradientEngine
from tamis.models.lm import load_model
from tamis.models.projections import Concatenation, projection

DIMENSIONS = (1024, 2048, 4096, 8192, 16384)
LAB_TASKS = ("arithmetic", "sort-words", "dates", "python")


@dataclass(frozen=True)
class Features:
    """Exact features of pool rows (n, p) and query rows (m, p), the task (m,) of each query, and v."""

    engine: GradientEngine
    pool: torch.Tensor
    query: torch.Tensor
    task: np.ndarray
    second: torch.Tensor
    facts: dict[str, Any]

    @property
    def cosines(self) -> np.ndarray:
        return unit(self.pool.numpy()) @ unit(self.query.numpy()).T


def laboratory(work: Path, count: int) -> tuple[str, Path, dict[str, Path]]:
    """Model, pool file and query files of the laboratory: `count` queries of each task."""
    write_lab(work / "lab", rows=2000, seed=0, query_rows=count)
    return (
        str(NANO),
        work / "lab" / "pool.jsonl",
        {t: work / "lab" / "queries" / f"{t}.jsonl" for t in LAB_TASKS},
    )


def real(shared: Path, work: Path) -> tuple[str, Path, dict[str, Path]]:
    """The same of real rows: 1,500 of the plain sources; GSM8K's exemplars and HumanEval."""
    work.mkdir(parents=True, exist_ok=True)
    path = work / "real.jsonl"
    if not path.exists():
        sample(plain_pools(shared, work / "store"), 1500, 0, path)
        lines = path.read_text(encoding="utf-8").splitlines()
        np.random.default_rng(0).shuffle(lines)
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str((shared / "models" / "pool-9m").resolve()), path, queries(shared, work)


def features(
    model: str, path: Path, asked: dict[str, Path], work: Path, given: argparse.Namespace
) -> Features:
    adapter = warmed(model, path, work, given.rank, take=400, learning_rate=given.rate)[-1]
    lm = load_model(str(adapter.folder), "float32", "cpu")
    engine = GradientEngine(lm)
    pool = tamis.read_pool(path)
    ids, targets = rendered(lm.tokenizer, pool, 512)
    chosen = np.linspace(400, len(ids) - 1, given.rows).astype(int)  # rows that the warm-up did not see
    exact = Concatenation(engine.layout)
    rows = engine.features(
        [ids[i] for i in chosen], [targets[i] for i in chosen], exact, folded(adapter, engine)
    ).features
    found, task = [], []
    for number, file in enumerate(asked.values()):
        query = tamis.read_pool(file, map=MAPPING)
        parts = [
            part[: given.queries - len(task)] for part in rendered(lm.tokenizer, query, 512, role="query")
        ]
        found.append(engine.features(*parts, exact).features)
        task += [number] * len(parts[0])
    moved = {
        kind: round(sum(float((p**2).sum()) for n, p in engine._parameters.items() if kind in n) ** 0.5, 3)
        for kind in ("lora_A", "lora_B")
    }
    moments = moments_of(adapter, engine)
    second = torch.cat([moments[slot.name].second for slot in engine.layout])
    query_rows = torch.from_numpy(np.concatenate(found))
    made = Features(engine, torch.from_numpy(rows), query_rows, np.array(task), second, {})
    made.facts.update(
        model=Path(model).name,
        rank=given.rank,
        rate=given.rate,
        parameters=engine.parameters,
        norms=moved,
        rows=len(rows),
        queries=len(task),
        tasks=list(asked),
        cosine_mean=round(float(made.cosines.mean()), 4),
        cosine_spread=round(float(made.cosines.std()), 4),
    )
    return made


def unit(found: np.ndarray) -> np.ndarray:
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def projected(name: str, of: Features, dimensions: int, seed: int) -> torch.Tensor:
    """Features (n + m, dimensions), projected parameter by parameter, as the engine does it."""
    made = projection(name.split(",")[0], of.engine.layout, dimensions, seed, "cpu")
    n = len(of.pool)
    out = torch.zeros(n + len(of.query), dimensions)
    for slot in of.engine.layout:
        part = slice(slot.offset, slot.offset + slot.size)
        rows = torch.cat([of.pool[:, part], of.query[:, part]])
        if name.endswith("balanced"):
            turned = (of.second[part] + 1e-8) ** 0.25
            rows[:n] *= turned
            rows[n:] /= turned
        made.add(out, slot, rows)
    return out


def cosines(name: str, of: Features, small: torch.Tensor) -> np.ndarray:
    """Cosines (n, m) of projected features."""
    sides = [of.pool, of.query] if name.endswith("balanced") else [small]
    small = small / torch.cat([torch.linalg.vector_norm(side, dim=1, keepdim=True) for side in sides])
    return (small[: len(of.pool)] @ small[len(of.pool) :].T).numpy()


def compared(exact: np.ndarray, found: np.ndarray, task: np.ndarray) -> dict[str, float]:
    """Cosines (n, m) against the exact ones."""
    best = max(1, len(exact) // 10)
    ranks, overlaps = [], []
    for one in np.unique(task):
        scores = exact[:, task == one].mean(axis=1), found[:, task == one].mean(axis=1)
        top = [set(np.argsort(-score, kind="stable")[:best].tolist()) for score in scores]
        ranks.append(float(spearmanr(*scores).statistic))
        overlaps.append(len(top[0] & top[1]) / best)
    each = [float(spearmanr(exact[:, q], found[:, q]).statistic) for q in range(exact.shape[1])]
    return {
        "rmse": float(np.sqrt(((found - exact) ** 2).mean())),
        "spearman": statistics.fmean(ranks),
        "each": statistics.fmean(each),
        "overlap": statistics.fmean(overlaps),
    }


def summed(name: str, dimensions: int, runs: list[dict[str, float]]) -> dict[str, Any]:
    """Median over the seeds, and the worst."""
    case: dict[str, Any] = {"projection": name, "dimensions": dimensions, "seeds": len(runs)}
    case |= {key: round(statistics.median(run[key] for run in runs), 4) for key in runs[0]}
    worst = {key: (max if key == "rmse" else min)(run[key] for run in runs) for key in runs[0]}
    case["worst"] = {key: round(value, 4) for key, value in worst.items()}
    case["rmse_times_root_d"] = round(case["rmse"] * dimensions**0.5, 3)
    return case


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shared", type=Path)
    parser.add_argument("--work", type=Path, default=Path("/tmp/tamis-projection"))
    parser.add_argument("--rank", type=int, default=128)
    parser.add_argument("--rate", type=float, default=2e-4, help="learning rate of the warm-up")
    parser.add_argument("--rows", type=int, default=300)
    parser.add_argument("--queries", type=int, default=40)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--dense-seeds", type=int, default=2, help="of rademacher, which is slow")
    parser.add_argument(
        "--dense-dimensions", type=int, default=8192, help="most of them; the first are fewer"
    )
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    given.work.mkdir(parents=True, exist_ok=True)
    settings = [laboratory(given.work, given.queries // len(LAB_TASKS))]
    if given.shared:
        settings.append(real(given.shared, given.work))
    found: list[dict[str, Any]] = []
    made = [features(*setting, given.work, given) for setting in settings]
    for of in made:
        found.append({**of.facts, "cases": []})
        print(json.dumps(of.facts), file=sys.stderr, flush=True)
    plan = [("count-sketch", d, given.seeds) for d in DIMENSIONS]
    plan += [("count-sketch, balanced", d, given.seeds) for d in DIMENSIONS]
    plan += [("rademacher", given.dense_dimensions, given.dense_seeds)] if given.dense_seeds else []
    for name, most, seeds in plan:
        widths = [d for d in DIMENSIONS if d <= most] if name == "rademacher" else [most]
        for number, of in enumerate(made):
            exact = of.cosines
            runs: dict[int, list[dict[str, float]]] = {d: [] for d in widths}
            for seed in range(seeds):
                whole = projected(name, of, most, seed)
                for d in widths:  # the first columns of a dense matrix of signs are one, too
                    runs[d].append(compared(exact, cosines(name, of, whole[:, :d]), of.task))
            for d in widths:
                found[number]["cases"].append(summed(name, d, runs[d]))
                print(of.facts["model"], json.dumps(found[number]["cases"][-1]), file=sys.stderr, flush=True)
            if given.out:
                result = {"torch": torch.__version__, "load": round(os.getloadavg()[0], 1), "settings": found}
                given.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
