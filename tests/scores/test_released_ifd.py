"""The released IFD programs, token for token: goldens of Cherry and Superfiltering."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from tamis.models.lm import load_model
from tamis.models.losses import LossEngine
from tamis.scores._released_ifd import Pair, mean_losses, pair, ratios
from tests.conftest import Conformance, shared

pytest.importorskip("torch")


def words(text: str) -> np.ndarray:
    """A tokenizer of one token a letter, and BOS."""
    return np.array([0, *map(ord, text)], np.int32)


def test_slices_by_hand() -> None:
    found = pair(words, "Ask: ", "yes", ": ", most=100, spare=4)
    assert (found.prompt_tokens, found.given.start, found.given.stop) == (6, 6, 9)
    assert (found.direct.start, found.direct.stop, found.direct.scored) == (3, 6, 3)
    cut = pair(words, "Ask: ", "yes", ": ", most=8, spare=4)
    assert (cut.given.scored, cut.direct.scored) == (2, 3)  # the passes need not score as many tokens
    assert pair(words, "A long question: ", "yes", ": ", most=8, spare=4).given.scored < 0


def test_the_last_occurrence_of_the_response_is_scored() -> None:
    found = pair(words, "Say ho: ", "ho", "", most=100, spare=1)
    assert found.given.start == len(words("Say ho: "))


def prompts(kind: str, row: dict[str, str]) -> tuple[str, str]:
    """Prompt and marker of the released program."""
    asked = "\n".join(text for text in (row["instruction"], row["input"]) if text)
    if kind == "superfiltering":
        return asked + "\n", ""
    if kind == "vicuna512":
        opening = (
            "A chat between a curious user and an artificial intelligence assistant. The assistant gives "
            "helpful, detailed, and polite answers to the user's questions. USER: "
        )
        asked = "\nInput:\n".join(text for text in (row["instruction"], row["input"]) if text)
        return f"{opening}{asked} ASSISTANT:", "ASSISTANT:"
    task = "Below is an instruction that describes a task"
    ask = "Write a response that appropriately completes the request.\n\n### Instruction:\n"
    if not row["input"]:
        return f"{task}. {ask}{row['instruction']}\n\n### Response:", "### Response:"
    context = f"{task}, paired with an input that provides further context. {ask}{row['instruction']}"
    return f"{context}\n\n### Input:\n{row['input']}\n\n### Response:", "### Response:"


@pytest.mark.parametrize(
    ("kind", "most", "spare"), [("superfiltering", 1024, 1), ("alpaca512", 512, 4), ("vicuna512", 512, 6)]
)
def test_golden(kind: str, most: int, spare: int, conforms: Conformance) -> None:
    golden = shared("golden")
    lm = load_model(str(golden / "model"), "float32", "cpu")

    def encode(text: str) -> np.ndarray:
        return np.array(lm.tokenizer.encode(text), np.int32)

    wanted = [json.loads(line) for line in (golden / "losses.jsonl").read_text(encoding="utf-8").splitlines()]
    by_id: dict[str, Any] = {row["id"]: row for row in wanted}
    lines = (golden / "alpaca_rows.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    pairs: list[Pair] = []
    for row in rows:
        prompt, marker = prompts(kind, row)
        pairs.append(pair(encode, prompt, row["output"], marker, most, spare))
    engine = LossEngine(lm)
    given, direct = (mean_losses(engine, [getattr(p, name) for p in pairs]) for name in ("given", "direct"))
    found = ratios(given, direct, perplexity=kind == "superfiltering")
    compared = 0
    for row, made, value in zip(rows, pairs, found, strict=True):
        entry = by_id[row["id"]]
        expected = entry[kind] if kind == "superfiltering" else entry["cherry"][kind]
        number = expected["ifd_ppl" if kind == "superfiltering" else "ifd"]
        assert made.prompt_tokens == expected["prompt_tokens"], row["id"]
        if number is None:
            assert not np.isfinite(value), row["id"]
            continue
        assert made.given.scored == expected["scored_tokens_condition"], row["id"]
        assert made.direct.scored == expected["scored_tokens_direct"], row["id"]
        tolerance = 5e-5 if kind == "superfiltering" else 1e-5
        conforms.close(f"released IFD, {kind}", [value], [number], rtol=tolerance)
        compared += 1
    assert compared > 55
