"""Response losses at a vocabulary of 128,256 against the loss of transformers: time and peak memory.

    python benchmarks/losses.py --out benchmarks/results/losses.json

Both score the response tokens of the same made-up rows (prompt and response of like length, 2,048 tokens a
batch) with the same random model in float32. The loss of transformers is `model(ids, mask, labels=…).loss` on
padded batches. Each measurement is a process of its own, in turns; peak memory is above what the process held
with the model loaded and one small batch done.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

VOCABULARY, BATCH_TOKENS = 128_256, 2048


def rows(count: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Token ids and marks of the response, the second half of each row; 60 to 400 tokens."""
    draw = np.random.default_rng(0)
    ids = [draw.integers(0, VOCABULARY, int(n)).astype(np.int32) for n in draw.integers(60, 400, count)]
    return ids, [np.arange(len(row)) >= len(row) // 2 for row in ids]


def model(hidden: int, layers: int) -> Any:
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=hidden, intermediate_size=4 * hidden, num_hidden_layers=layers,
        num_attention_heads=hidden // 64, tie_word_embeddings=True,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config).eval()


def by_transformers(lm: Any, ids: list[np.ndarray], marks: list[np.ndarray]) -> list[float]:
    """Loss of each batch, rows of like length together."""
    import torch

    found = []
    order = sorted(range(len(ids)), key=lambda row: -len(ids[row]))
    while order:
        take = max(1, BATCH_TOKENS // len(ids[order[0]]))
        batch, order = order[:take], order[take:]
        width = len(ids[batch[0]])
        tokens = torch.zeros(len(batch), width, dtype=torch.long)
        mask, labels = torch.zeros_like(tokens), torch.full_like(tokens, -100)
        for i, row in enumerate(batch):
            length = len(ids[row])
            tokens[i, :length] = torch.from_numpy(ids[row].astype(np.int64))
            mask[i, :length] = 1
            labels[i, :length] = torch.where(torch.from_numpy(marks[row]), tokens[i, :length], -100)
        with torch.inference_mode():
            found.append(float(lm(input_ids=tokens, attention_mask=mask, labels=labels).loss))
    return found


def by_tamis(lm: Any, ids: list[np.ndarray], marks: list[np.ndarray]) -> list[float]:
    from tamis.models.lm import LanguageModel
    from tamis.models.losses import LossEngine

    wrapped = LanguageModel("random", None, lm.config, None, "float32", "cpu", lm)
    return [
        float(values.mean(dtype=np.float64))
        for values in LossEngine(wrapped, BATCH_TOKENS).losses(ids, marks)
    ]


def held(name: str) -> int:
    return int(re.search(rf"{name}:\s+(\d+)", Path("/proc/self/status").read_text()).group(1)) * 1024  # type: ignore[union-attr]


def one(which: str, count: int, hidden: int, layers: int) -> dict[str, float]:
    import torch

    torch.set_num_threads(1)
    lm = model(hidden, layers)
    run = by_tamis if which == "tamis" else by_transformers
    ids, marks = rows(count)
    run(lm, [ids[0][:20]], [marks[0][:20] | (np.arange(20) > 10)])
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again
    before, start, cpu = held("VmRSS"), time.perf_counter(), time.process_time()
    losses = run(lm, ids, marks)
    return {
        "seconds": time.perf_counter() - start,
        "cpu_seconds": time.process_time() - cpu,
        "peak_bytes": held("VmHWM") - before,
        "loss": statistics.fmean(losses),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=24)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--one", choices=["tamis", "transformers"])
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(one(given.one, given.rows, given.hidden, given.layers)))
        return
    found: dict[str, list[dict[str, float]]] = {"transformers": [], "tamis": []}
    shape = [f"--{name}={getattr(given, name)}" for name in ("rows", "hidden", "layers")]
    for _ in range(given.repeats):
        for which, runs in found.items():
            command = [sys.executable, __file__, "--one", which, *shape]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            runs.append(json.loads(done.stdout.splitlines()[-1]))
    middle = {
        which: {key: statistics.median(run[key] for run in runs) for key in runs[0]}
        for which, runs in found.items()
    }
    result = {
        "vocabulary": VOCABULARY,
        "shape": shape,
        "runs": found,
        "cpu_ratio": middle["transformers"]["cpu_seconds"] / middle["tamis"]["cpu_seconds"],
        "wall_ratio": middle["transformers"]["seconds"] / middle["tamis"]["seconds"],
        "memory_ratio": middle["transformers"]["peak_bytes"] / middle["tamis"]["peak_bytes"],
        **middle,
    }
    print(json.dumps({key: value for key, value in result.items() if key != "runs"}, indent=1))
    if given.out:
        given.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
