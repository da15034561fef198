"""RDS+ on real rows with a small language model: which sources it finds, and what a whole pool costs.

    python benchmarks/real_model.py --shared ../shared --out benchmarks/results/real_model.json [--whole]

Sample: 4,000 rows drawn in proportion from the sources whose columns are plain; at most 512 tokens; float32.
Queries and right sources are those of the model folder's README. `--whole` then encodes the pool (86,115
rows) in one resumable run of the command line and reports its time, tokens and statuses.
"""

from __future__ import annotations

import argparse
import gzip
import json
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

import tamis

ROOT = Path(__file__).resolve().parents[1]
MAPPING = ROOT / "examples" / "maps" / "shared-pool.yaml"
NOT_PLAIN = ("commonsenseqa", "tydiqa", "gorilla", "self_instruct", "foundry_finetune")
MAPPED = "mawps_train"  # plain too, but its columns have names of their own
RIGHT = {
    "gsm8k": ("gsm8k_train", "mawps_train", "flan_cot_aqua"),
    "humaneval": ("codealpaca_new", "codealpaca_2k"),
}
AT_LEAST = {
    "gsm8k": {"rds/top-k": 290, "rds/round-robin": 275},
    "humaneval": {"rds/top-k": 235, "rds/round-robin": 230},
}


def plain_pools(shared: Path, store: Path) -> list[Any]:
    """The sources whose columns are plain, read by their shape alone, and one that needs names of columns."""
    paths = sorted((shared / "data/pool").glob("*.jsonl.gz"))
    plain = [path for path in paths if not path.name.startswith((*NOT_PLAIN, MAPPED))]
    mapped = [path for path in paths if path.name.startswith(MAPPED)]
    return [tamis.read_pool(plain, store=store), tamis.read_pool(mapped, map=MAPPING, store=store)]


def sample(pools: list[Any], rows: int, seed: int, path: Path) -> Counter[str]:
    """Write `rows` rows drawn in proportion to the sources; returns rows by source."""
    by_source: dict[str, list[tuple[Any, int]]] = {}
    for pool in pools:
        for position, source in enumerate(pool.sources):
            by_source.setdefault(source, []).append((pool, position))
    total = sum(map(len, pools))
    rng = Random(seed)
    drawn: Counter[str] = Counter()
    with open(path, "w", encoding="utf-8") as file:
        for source, candidates in by_source.items():
            for pool, position in rng.sample(candidates, round(rows * len(candidates) / total)):
                turns = [message._asdict() for message in pool.row(position).messages]
                file.write(json.dumps({"messages": turns, "source": source}, ensure_ascii=False) + "\n")
                drawn[source] += 1
    return drawn


def queries(shared: Path, work: Path) -> dict[str, Path]:
    """GSM8K: 8 exemplars; HumanEval: the first 40 problems, prompt and solution."""
    paths = {
        "gsm8k": shared / "data/targets/gsm8k/exemplars_8shot.jsonl",
        "humaneval": work / "humaneval.jsonl",
    }
    with gzip.open(shared / "data/targets/humaneval/HumanEval.jsonl.gz", "rt", encoding="utf-8") as file:
        problems = [json.loads(line) for line in file][:40]
    rows = [{"prompt": p["prompt"], "completion": p["canonical_solution"]} for p in problems]
    paths["humaneval"].write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
    return paths


def on_a_sample(shared: Path, work: Path, rows: int, seed: int) -> dict[str, Any]:
    """Rows of the right sources among 300, by query set and selection."""
    pools = plain_pools(shared, work / "store")
    sources = sample(pools, rows, seed, work / f"sample-{seed}.jsonl")
    drawn = tamis.read_pool([work / f"sample-{seed}.jsonl"], store=work / "store")
    found: dict[str, Any] = {"rows": len(drawn)}
    model = str(shared / "models/pool-9m")
    for name, path in queries(shared, work).items():
        subsets = tamis.select(
            drawn, query={name: tamis.read_pool([path], map=MAPPING, store=work / "store")},
            strategy=["rds/top-k", "rds/round-robin", "random"], budget=[300], model=model, dtype="float32",
            max_tokens=512, store=work / "store",
        )  # fmt: skip
        right = {
            s.strategy.name: int(sum(s.pool.sources[p] in RIGHT[name] for p in s.positions)) for s in subsets
        }
        found[name] = {"right_of_300": right, "right_in_sample": sum(sources[s] for s in RIGHT[name])}
    return found


def over_samples(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean over the samples beside what the model folder's README asks for."""
    return {
        name: {
            strategy: {
                "mean": sum(s[name]["right_of_300"][strategy] for s in samples) / len(samples),
                "at_least": least,
            }
            for strategy, least in AT_LEAST[name].items()
        }
        for name in RIGHT
    }


def whole_pool(shared: Path, work: Path, dtype: str) -> dict[str, Any]:
    """Encode everything by the command line, in a process of its own."""
    command = [
        sys.executable, "-m", "tamis", "represent", "rds", "--pool", str(shared / "data/pool/*.jsonl.gz"),
        "--map", str(MAPPING), "--model", str(shared / "models/pool-9m"), "--max-tokens", "1024",
        "--dtype", dtype, "--store", str(work / "store"), "--json",
    ]  # fmt: skip
    start = time.perf_counter()
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, cwd=ROOT)
    found: dict[str, Any] = json.loads(done.stdout)
    found["wall_s"] = round(time.perf_counter() - start, 1)
    found["tokens_per_s"] = round(found["tokens"] / found["ledger"]["seconds"])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shared", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("/tmp/tamis-real-model"))
    parser.add_argument("--rows", type=int, default=4000)
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--dtype", default="bfloat16", help="of the whole pool's run")
    parser.add_argument("--whole", action="store_true")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    shared = given.shared.resolve()
    samples = [on_a_sample(shared, given.work, given.rows, seed) for seed in range(given.samples)]
    results: dict[str, Any] = {"mean": over_samples(samples), "samples": samples}
    if given.whole:
        results["whole_pool"] = whole_pool(shared, given.work, given.dtype)
    print(json.dumps(results, indent=1))
    if given.out:
        given.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
