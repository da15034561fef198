"""diversity-threshold against the loop of the released filter: same rows, processor time.

    python benchmarks/diversity.py --rows 50000 --budget 10000 --out benchmarks/results/diversity.json

The loop takes rows by falling score, one at a time, gathers the vectors of all rows chosen so far, scales
them to length 1 and compares; a row stays when no cosine is above the threshold. Vectors are clustered, so
that rows are turned away. The loop runs up to `--loop` chosen rows and is extrapolated with the square of
the number from there.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np

from tamis.selections import choose_ranked


def clustered(rows: int, width: int, clusters: int) -> np.ndarray:
    draw = np.random.default_rng(0)
    centres = draw.standard_normal((clusters, width), dtype=np.float32)
    noise = draw.standard_normal((rows, width), dtype=np.float32)
    near = draw.uniform(0.1, 1.2, (rows, 1)).astype(np.float32)
    return centres[draw.integers(0, clusters, rows)] + near * noise


def released_loop(score: np.ndarray, vectors: np.ndarray, budget: int, most: float) -> list[int]:
    order = np.argsort(-score, kind="stable")
    picks = [int(order[0])]
    for row in order[1:]:
        if len(picks) >= budget:
            break
        chosen = vectors[picks]
        chosen = chosen / np.linalg.norm(chosen, axis=1, keepdims=True)
        own = vectors[row] / np.linalg.norm(vectors[row])
        if not (chosen @ own > most).any():
            picks.append(int(row))
    return picks


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--budget", type=int, default=10_000)
    parser.add_argument("--loop", type=int, default=2_000)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    vectors = clustered(given.rows, given.width, given.rows // 5)
    score = np.random.default_rng(1).permutation(given.rows).astype(float)
    loop_rows = min(given.loop, given.budget)
    cpu = time.process_time()
    expected = released_loop(score, vectors, loop_rows, 0.9)
    loop_s = time.process_time() - cpu
    cpu, wall = time.process_time(), time.perf_counter()
    choice = choose_ranked("diversity-threshold", score, given.budget, vectors=vectors, tie_seed=None)
    own_s, own_wall = time.process_time() - cpu, time.perf_counter() - wall
    assert choice.positions[:loop_rows].tolist() == expected
    whole = loop_s * (given.budget / loop_rows) ** 2
    result = {
        "rows": given.rows, "width": given.width, "budget": given.budget, "notes": dict(choice.notes),
        "loop_rows": loop_rows, "loop_cpu_s": loop_s, "loop_cpu_s_extrapolated": whole,
        "own_cpu_s": own_s, "own_wall_s": own_wall, "ratio": whole / own_s,
    }  # fmt: skip
    print(json.dumps(result, indent=1))
    if given.out:
        given.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
