from __future__ import annotations

import argparse
import json
from itertools import islice

import pytest

from tamis.core.errors import RequestError
from tamis.lab import NANO, SKILLS, corpus, generate
from tamis.lab.generate import CORPUS_SEEDS
from tamis.lab.train_nano import (
    answers,
    batches,
    encode,
    exact_match,
    main,
    new_model,
    train,
    train_tokenizer,
)

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

MESSAGES = [
    {"role": "system", "content": " Be polite. "},
    {"role": "user", "content": "What is 3 + 4?"},
    {"role": "assistant", "content": "7"},
    {"role": "tool", "content": "ok"},
    {"role": "user", "content": "And 5?\n"},
    {"role": "assistant", "content": "12"},
]
# Held-out exact match of the shipped model, far above what guessing gives (1 in 36 or less for these).
FLOORS = {"units": 0.8, "multiplication": 0.8, "past-tense": 0.7, "opposites": 0.6}


@pytest.fixture(scope="module")
def tokenizer():
    return transformers.AutoTokenizer.from_pretrained(NANO)


@pytest.fixture(scope="module")
def model():
    return transformers.AutoModelForCausalLM.from_pretrained(NANO, dtype=torch.float32).eval()


def test_the_shipped_folder_is_small_and_needs_no_code():
    files = [path for path in NANO.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 8_000_000
    assert {path.suffix for path in files} <= {".json", ".jinja", ".safetensors"}
    config = json.loads((NANO / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"] and "auto_map" not in config


def test_the_shipped_model_is_bf16_and_tied(model):
    stored = transformers.AutoModelForCausalLM.from_pretrained(NANO)
    assert {p.dtype for p in stored.parameters()} == {torch.bfloat16}
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_the_record_has_every_skill():
    record = json.loads((NANO / "training.json").read_text())
    assert set(record["exact_match"]) == set(SKILLS)
    assert record["losses"][-1]["loss"] < record["losses"][0]["loss"]


@pytest.mark.parametrize("skill", FLOORS)
def test_the_shipped_model_answers_held_out_questions(model, tokenizer, skill):
    tests = generate(rows=40, seed=2, test_rows=20).tests[skill]
    assert exact_match(model, tokenizer, tests) >= FLOORS[skill]


def test_answers_do_not_depend_on_the_batch(model, tokenizer):
    rows = [items[0] for items in generate(rows=40, seed=2, test_rows=1).tests.values()][:6]
    assert answers(model, tokenizer, rows) == answers(model, tokenizer, rows, batch_rows=1)


def test_text_survives_the_tokenizer(tokenizer):
    assert len(tokenizer) <= 2048
    for text in (
        "def f(x):\n    return x % 3",
        "  two  spaces ",
        "naïve – 東京 🙂",
        '{"a": 10}',
        "tab\tend\n",
    ):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.decode(ids) == text
    digits = tokenizer("1234", add_special_tokens=False)["input_ids"]
    assert tokenizer.convert_ids_to_tokens(digits) == list("1234")


def test_the_chat_template_by_hand(tokenizer):
    text = tokenizer.apply_chat_template(MESSAGES, tokenize=False)
    assert text == (
        "<|system|>\nBe polite.\n<|user|>\nWhat is 3 + 4?\n<|assistant|>\n7<|endoftext|>\n"
        "<|tool|>\nok\n<|user|>\nAnd 5?\n<|assistant|>\n12<|endoftext|>"
    )


def test_a_generation_prompt_is_a_prefix_of_the_conversation(tokenizer):
    for messages in [MESSAGES, *corpus(200, CORPUS_SEEDS.start)]:
        for turn, message in enumerate(messages):
            if message["role"] == "assistant":
                ids = tokenizer.apply_chat_template(messages, return_dict=False)
                start = tokenizer.apply_chat_template(
                    messages[:turn], add_generation_prompt=True, return_dict=False
                )
                assert ids[: len(start)] == start and len(ids) > len(start)


def test_answers_and_their_end_carry_the_full_weight(tokenizer):
    ids, weights = encode(tokenizer, MESSAGES, 0.25)
    full = [token for token, weight in zip(ids, weights, strict=True) if weight == 1]
    assert tokenizer.decode(full) == "\n7<|endoftext|>\n12<|endoftext|>"
    assert set(weights) == {0.25, 1.0}


def test_batches_hold_whole_rows_and_repeat_with_the_seed(tokenizer):
    first, again = (list(islice(batches(tokenizer, CORPUS_SEEDS.start, 512, 0.25), 5)) for _ in range(2))
    for (ids, weights), (same_ids, same_weights) in zip(first, again, strict=True):
        assert torch.equal(ids, same_ids) and torch.equal(weights, same_weights)
        assert ids.numel() <= 512
        assert torch.equal(weights == 0, ids == tokenizer.pad_token_id)
        ends = (weights > 0).sum(1) - 1
        assert (ids[torch.arange(len(ids)), ends] == tokenizer.eos_token_id).all()


def test_training_from_scratch_lowers_the_loss():
    tokenizer = train_tokenizer(CORPUS_SEEDS.start, 400, rows=200)
    assert len(tokenizer) == 400
    model = new_model(tokenizer, 0)
    settings = argparse.Namespace(
        seed=CORPUS_SEEDS.start,
        steps=20,
        minutes=9,
        batch_tokens=256,
        prompt_weight=1.0,
        rate=3e-3,
        bf16=False,
    )
    ids, weights = next(batches(tokenizer, CORPUS_SEEDS.start + 50, 2048, 1.0))

    def loss() -> float:
        with torch.inference_mode():
            return float(model.eval()(input_ids=ids, labels=ids.masked_fill(weights == 0, -100)).loss)

    before = loss()
    record = train(model, tokenizer, settings)
    assert record["steps"] == 20 and loss() < before - 0.5


def test_a_seed_of_pools_is_refused_before_any_work(tmp_path):
    with pytest.raises(RequestError, match="corpus seed 0"):
        main(["--out", str(tmp_path / "model"), "--seed", "0"])
    assert not (tmp_path / "model").exists()
