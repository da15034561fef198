"""Train the nano model of the laboratory from scratch: tokenizer, weights, and what it can do.

    python -m tamis.lab.train_nano --out DIR --minutes 25 --seed 1000000

The text is `corpus` of `generate.py`: clean rows under seeds no pool may use, with no user turn of any query
or test. One conversation is one sequence; sequences of like length share a batch, so no attention crosses
conversations and little is spent on padding. The loss covers all tokens, those of the prompt with less
weight. Training stops by the clock unless `--steps` is given; `training.json` says what was done and reached.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

from tamis.core.extras import need
from tamis.lab.generate import CORPUS_SEEDS, corpus, generate
from tamis.lab.skills import SKILLS

EOS, PAD = "<|endoftext|>", "<|pad|>"
TAGS = ("<|system|>", "<|user|>", "<|assistant|>", "<|tool|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>\n' + message['content'] | trim }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}"
    "{% if not loop.last or add_generation_prompt %}{{ '\n' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
SHAPE = {
    "hidden_size": 192,
    "intermediate_size": 512,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}


def train_tokenizer(seed: int, entries: int = 1024, rows: int = 20_000) -> Any:
    """A byte-level BPE of at most `entries` entries; every digit is a token of its own."""
    tokenizers, transformers = need("tokenizers", extra="lm"), need("transformers", extra="lm")
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
    parts = tokenizers.pre_tokenizers
    bpe.pre_tokenizer = parts.Sequence([parts.Digits(True), parts.ByteLevel(add_prefix_space=False)])
    bpe.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=entries,
        special_tokens=[EOS, PAD, *TAGS],
        initial_alphabet=parts.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(
        (turn["content"] for messages in corpus(rows, seed) for turn in messages), trainer
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token=EOS,
        pad_token=PAD,
        chat_template=CHAT_TEMPLATE,
        model_max_length=SHAPE["max_position_embeddings"],
        clean_up_tokenization_spaces=False,
    )


def encode(
    tokenizer: Any, messages: list[dict[str, str]], prompt_weight: float
) -> tuple[list[int], list[float]]:
    """Token ids of a conversation and the weight of each as a target: 1 in answers, with their EOS."""
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    assistant, eos = tokenizer.convert_tokens_to_ids(["<|assistant|>", EOS])
    weights, inside = [], False
    for token in ids:
        weights.append(1.0 if inside else prompt_weight)
        inside = token == assistant or (inside and token != eos)
    return ids, weights


def batches(tokenizer: Any, seed: int, batch_tokens: int, prompt_weight: float) -> Iterator[tuple[Any, Any]]:
    """Endless batches of fresh rows: ids (b, t) int64 padded on the right, target weights (b, t) float32."""
    torch = need("torch", extra="lm")
    for round_seed in range(seed + 1, CORPUS_SEEDS.stop):
        rng = Random(round_seed)
        rows = [encode(tokenizer, messages, prompt_weight) for messages in corpus(4000, round_seed)]
        rows.sort(key=lambda row: len(row[0]))
        groups: list[list[tuple[list[int], list[float]]]] = [[]]
        for row in rows:
            if (len(groups[-1]) + 1) * len(row[0]) > batch_tokens:
                groups.append([])
            groups[-1].append(row)
        rng.shuffle(groups)
        for group in groups:
            longest = max(len(ids) for ids, _ in group)
            ids = torch.full((len(group), longest), tokenizer.pad_token_id)
            weights = torch.zeros((len(group), longest))
            for i, (row_ids, row_weights) in enumerate(group):
                ids[i, : len(row_ids)] = torch.tensor(row_ids)
                weights[i, : len(row_ids)] = torch.tensor(row_weights)
            yield ids, weights


def new_model(tokenizer: Any, seed: int) -> Any:
    """A Llama of SHAPE with random weights, tied embeddings, float32."""
    torch, transformers = need("torch", extra="lm"), need("transformers", extra="lm")
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **SHAPE,
    )
    return transformers.LlamaForCausalLM(config)


def train(model: Any, tokenizer: Any, settings: argparse.Namespace) -> dict[str, Any]:
    """AdamW under a cosine that ends with the minutes, or the steps; returns steps, tokens and losses."""
    torch = need("torch", extra="lm")
    matrices = [p for p in model.parameters() if p.dim() == 2]
    rest = [p for p in model.parameters() if p.dim() != 2]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.05}, {"params": rest, "weight_decay": 0.0}],
        lr=settings.rate,
        betas=(0.9, 0.97),
    )
    model.train()
    start, step, tokens, recent = time.monotonic(), 0, 0, 0.0
    losses: list[dict[str, float]] = []
    for ids, weights in batches(tokenizer, settings.seed, settings.batch_tokens, settings.prompt_weight):
        elapsed = (time.monotonic() - start) / (60 * settings.minutes)
        share = step / settings.steps if settings.steps else elapsed
        if share >= 1:
            break
        warm = min(1.0, (step + 1) / 100)
        for group in optimizer.param_groups:
            group["lr"] = settings.rate * warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * share)))
        # Right padding is harmless under causal attention: real tokens never see it and its weight is 0.
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=settings.bf16):
            logits = model(input_ids=ids).logits[:, :-1]
        each = torch.nn.functional.cross_entropy(
            logits.float().flatten(0, 1), ids[:, 1:].flatten(), reduction="none"
        )
        due = weights[:, 1:].flatten()
        loss = (each * due).sum() / due.sum()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step, tokens = step + 1, tokens + int((weights > 0).sum())
        recent = loss.item() if step == 1 else 0.98 * recent + 0.02 * loss.item()
        if step % 200 == 0:
            seconds = round(time.monotonic() - start)
            losses.append({"step": step, "seconds": seconds, "tokens": tokens, "loss": round(recent, 4)})
            print(json.dumps(losses[-1]), file=sys.stderr, flush=True)
    return {"steps": step, "tokens": tokens, "loss": round(recent, 4), "losses": losses}


def answers(model: Any, tokenizer: Any, rows: list[dict[str, Any]], batch_rows: int = 64) -> list[str]:
    """Greedy answers to the last user turn of each row."""
    torch = need("torch", extra="lm")
    model.eval()
    written: list[str] = []
    for first in range(0, len(rows), batch_rows):
        texts = [
            tokenizer.apply_chat_template(row["messages"][:-1], tokenize=False, add_generation_prompt=True)
            for row in rows[first : first + batch_rows]
        ]
        given = tokenizer(
            texts, return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False
        )
        with torch.inference_mode():
            out = model.generate(
                input_ids=given["input_ids"],
                attention_mask=given["attention_mask"],
                max_new_tokens=64,
                do_sample=False,
            )
        written += tokenizer.batch_decode(out[:, given["input_ids"].shape[1] :], skip_special_tokens=True)
    return [text.strip() for text in written]


def exact_match(model: Any, tokenizer: Any, rows: list[dict[str, Any]]) -> float:
    """Share of rows, 0 to 1, whose greedy answer is the right one to the letter."""
    written = answers(model, tokenizer, rows)
    right = [row["messages"][-1]["content"] for row in rows]
    hits: int = sum(a == b for a, b in zip(written, right, strict=True))
    return hits / len(rows)


def main(arguments: list[str] | None = None) -> None:
    """Train, evaluate and write one nano model."""
    parser = argparse.ArgumentParser(description="Train the nano model of the laboratory from scratch.")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--minutes", type=float, default=25.0, help="wall time of training")
    parser.add_argument(
        "--steps", type=int, default=0, help="stop after so many steps instead of by the clock"
    )
    parser.add_argument(
        "--start", type=Path, help="go on from this model and its tokenizer, with a new cosine"
    )
    parser.add_argument("--seed", type=int, default=CORPUS_SEEDS.start, help="first seed of the text")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--entries", type=int, default=1024, help="size of the vocabulary")
    parser.add_argument("--rate", type=float, default=3e-3, help="highest learning rate")
    parser.add_argument("--batch-tokens", type=int, default=2048)
    parser.add_argument(
        "--prompt-weight", type=float, default=0.2, help="weight of prompt tokens in the loss"
    )
    parser.add_argument("--bf16", action="store_true", help="autocast to bfloat16")
    parser.add_argument("--eval-rows", type=int, default=100, help="held-out rows for each skill")
    settings = parser.parse_args(arguments)
    torch = need("torch", extra="lm")
    torch.set_num_threads(settings.threads)
    next(corpus(1, settings.seed))  # refuses a seed of pools before any work
    if settings.start:
        transformers = need("transformers", extra="lm")
        tokenizer = transformers.AutoTokenizer.from_pretrained(settings.start)
        model = transformers.AutoModelForCausalLM.from_pretrained(settings.start, dtype=torch.float32)
    else:
        tokenizer = train_tokenizer(settings.seed, settings.entries)
        model = new_model(tokenizer, settings.seed)
    record = train(model, tokenizer, settings)
    model = model.to(torch.bfloat16)  # measured as it is shipped
    model.save_pretrained(settings.out)
    tokenizer.save_pretrained(settings.out)
    tests = generate(rows=100, seed=1, fault_share=0, test_rows=settings.eval_rows).tests
    model = model.float()
    accuracy = {skill: round(exact_match(model, tokenizer, tests[skill]), 3) for skill in SKILLS}
    asked = {name: value for name, value in vars(settings).items() if name not in ("out", "start")}
    before = json.loads((settings.start / "training.json").read_text()) if settings.start else None
    record = {
        "settings": asked,
        "parameters": sum(p.numel() for p in model.parameters()),
        "exact_match": accuracy,
        **record,
        "before": before,
    }
    (settings.out / "training.json").write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(accuracy))


if __name__ == "__main__":
    main()
