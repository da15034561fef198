"""RDS encoding against the published loop: same rows, same weights, processor time and wall clock.

    python benchmarks/rds_encoding.py --shared ../shared --out benchmarks/results/rds_encoding.json

The loop is the published program's, written out plainly: one row at a time, tokenised as it comes, the whole
model with all hidden states, logits and the default cache, then the weighted mean. Ours is the encoder of
`rds`, from messages to vectors. The two take turns; a figure is the median of the repeats.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from tamis.models.packing import batches
from tamis.representations import rds
from tamis.representations._context import Context

Message = namedtuple("Message", "role content")
TULU = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] | trim }}"
    "{{ eos_token if m['role'] == 'assistant' }}{{ '\n' if not loop.last }}{% endfor %}"
)
MAX_TOKENS = 2048


def rows(shared: Path, count: int) -> list[list[dict[str, str]]]:
    """Half general instructions, half arithmetic, evenly spaced over their files, in turns."""
    found = []
    for name, asked, answered in (
        ("alpaca_random_9k", "instruction", "output"),
        ("gsm8k_train", "question", "answer"),
    ):
        with gzip.open(shared / "data" / "pool" / f"{name}.jsonl.gz", "rt", encoding="utf-8") as file:
            lines = [json.loads(line) for line in file]
        part = []
        for i in np.linspace(0, len(lines) - 1, count // 2).astype(int):
            prompt = "\n\n".join(text for text in (lines[i][asked], lines[i].get("input")) if text)
            part.append(
                [{"role": "user", "content": prompt}, {"role": "assistant", "content": lines[i][answered]}]
            )
        found.append(part)
    return [row for pair in zip(*found, strict=True) for row in pair]


def published_loop(model: Any, tokenizer: Any, talks: list[list[dict[str, str]]]) -> np.ndarray:
    """Vectors (n, d) by the loop described above."""
    vectors = []
    for messages in talks:
        text = tokenizer.apply_chat_template(messages, chat_template=TULU, tokenize=False)
        given = tokenizer(text, return_tensors="pt", truncation=True, max_length=MAX_TOKENS)
        with torch.inference_mode():
            hidden = model(input_ids=given["input_ids"], output_hidden_states=True).hidden_states[-1]
        weights = torch.arange(1, hidden.shape[1] + 1)[None, :, None]
        pooled = (hidden * (weights / weights.sum())).sum(dim=1)
        vectors.append(torch.nn.functional.normalize(pooled.float(), dim=-1)[0].numpy())
    return np.stack(vectors)


def timed(work: Callable[[], np.ndarray]) -> tuple[float, float, np.ndarray]:
    """Processor seconds of all threads, wall seconds, result."""
    cpu, wall = time.process_time(), time.perf_counter()
    result = work()
    return time.process_time() - cpu, time.perf_counter() - wall, result


def matmul_peak(dtype: torch.dtype) -> float:
    """Floating-point operations per second of processor time in a large matrix product, best of 5."""
    a, b = torch.randn(2048, 1024).to(dtype), torch.randn(1024, 1024).to(dtype)
    best = 0.0
    for _ in range(5):
        cpu = time.process_time()
        for _ in range(10):
            a @ b
        best = max(best, 10 * 2 * 2048 * 1024 * 1024 / (time.process_time() - cpu))
    return best


def random_llama(tokenizer: str, folder: str) -> str:
    """An untrained Llama of 6 layers, hidden 256, with the tokenizer of another model."""
    own = transformers.AutoTokenizer.from_pretrained(tokenizer)
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=len(own),
        hidden_size=256,
        intermediate_size=1024,
        num_hidden_layers=6,
        num_attention_heads=4,
        max_position_embeddings=MAX_TOKENS,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    own.save_pretrained(folder)
    return folder


def measure(model: str, dtype: str, talks: list[list[dict[str, str]]], repeats: int) -> dict[str, Any]:
    """Ratios published / ours for one model in one dtype."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    published = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, dtype)).eval()
    context = Context(model=model, template="tulu", dtype=dtype, max_tokens=MAX_TOKENS, device="cpu")
    encoder = rds.METHODS[0].run(rds.Config(), context)
    conversations = [[Message(m["role"], m["content"]) for m in messages] for messages in talks]

    def ours() -> np.ndarray:
        return np.asarray(encoder.encode(conversations, lambda tokens: None).arrays["vectors"])

    published_loop(published, tokenizer, talks[:20])
    ours()
    pairs = [
        (timed(lambda: published_loop(published, tokenizer, talks)), timed(ours)) for _ in range(repeats)
    ]
    lengths = encoder.count_tokens(conversations)
    tokens = sum(lengths)
    cpu = [[run[0] for run in side] for side in zip(*pairs, strict=True)]
    wall = [[run[1] for run in side] for side in zip(*pairs, strict=True)]
    before, after = pairs[-1][0][2], pairs[-1][1][2].astype(np.float32)
    budget = encoder.execution["batch_tokens"]
    padded = [
        [lengths[i] for i in batch] for batch in batches(range(len(lengths)), lengths, budget, "padded")
    ]
    own = statistics.median(cpu[1])
    return {
        "model": Path(model).name if "tmp" not in model else "random Llama, 6 layers, hidden 256",
        "dtype": dtype,
        "mode": encoder.execution["mode"],
        "batch_tokens": budget,
        "tokens": tokens,
        "published_cpu_s": [round(s, 3) for s in cpu[0]],
        "ours_cpu_s": [round(s, 3) for s in cpu[1]],
        "published_wall_s": [round(s, 3) for s in wall[0]],
        "ours_wall_s": [round(s, 3) for s in wall[1]],
        "cpu_ratio": round(statistics.median(a / b for a, b in zip(*cpu, strict=True)), 3),
        "wall_ratio": round(statistics.median(a / b for a, b in zip(*wall, strict=True)), 3),
        "ours_tokens_per_cpu_s": round(tokens / own),
        "ours_share_of_matmul_peak": round(
            tokens * encoder.flops_per_token / own / matmul_peak(getattr(torch, dtype)), 3
        ),
        "padding_waste": 0.0
        if encoder.execution["mode"] == "packed"
        else 1 - tokens / sum(len(batch) * max(batch) for batch in padded),
        "padding_waste_if_padded": round(1 - tokens / sum(len(batch) * max(batch) for batch in padded), 4),
        "max_abs_difference": float(np.abs(before - after).max()),
        "min_cosine": float((before * after).sum(axis=1).min()),
    }


def main() -> None:
    """Measure both models in both dtypes and write the results."""
    parser = argparse.ArgumentParser(description="RDS encoding against the published loop.")
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    parser.add_argument("--rows", type=int, default=500)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--threads", type=int, default=2, help="1 on a machine that is busy: threads that wait spin"
    )
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    talks = rows(given.shared, given.rows)
    trained = str(given.shared / "models" / "pool-9m")
    with tempfile.TemporaryDirectory() as folder:
        models = (trained, random_llama(trained, folder))
        cases = []
        for model in models:
            for dtype in ("float32", "bfloat16"):
                cases.append(measure(model, dtype, talks, given.repeats))
                print(cases[-1], file=sys.stderr, flush=True)
    found = {
        "rows": len(talks),
        "threads": given.threads,
        "load_average": [round(load, 1) for load in os.getloadavg()],
        "repeats": given.repeats,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "machine": f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}",
        "cases": cases,
    }
    text = json.dumps(found, indent=1)
    print(text)
    if given.out:
        given.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
