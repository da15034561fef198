"""Embed: the published texts, prefixes, statuses, and what must not change a vector."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tamis
from tamis.core.errors import RequestError
from tamis.core.status import words
from tamis.models.encoder import SentenceEncoder, batches_by_length
from tamis.representations import REPRESENTATIONS
from tamis.representations._context import Context, Encoded
from tamis.representations._embed_texts import INSTRUCTION, texts_of
from tests.conftest import shared
from tests.models.tiny import Turn, talk
from tests.models.tiny_encoder import save_encoder

pytest.importorskip("sentence_transformers")
EMBED = REPRESENTATIONS["embed"]
TALKS = [
    talk("user:What is the sum?", "assistant:23"),
    talk("system:Be kind.", "user:Hi", "assistant:Hello.", "user:Rain?", "assistant:It falls."),
    talk("user:" + "rivers run " * 60, "assistant:Yes."),
    talk("user: \n", "assistant:"),
    talk("user:rain"),
]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_encoder(tmp_path_factory.mktemp("encoders") / "tiny"))


def prepared(saved: str, context: dict[str, Any] | None = None, **parameters: Any) -> Any:
    return EMBED.run(EMBED.configure({"encoder": saved, **parameters}), Context(**(context or {})))


def encode(
    talks: list[list[Turn]], saved: str, context: dict[str, Any] | None = None, **parameters: Any
) -> Encoded:
    found: Encoded = prepared(saved, context, **parameters).encode(talks, lambda tokens: None)
    return found


# --- texts -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["pool", "query"])
def test_texts_of_the_references(role: str) -> None:
    wanted = {row["id"]: row for row in _lines("golden/embedding_texts.jsonl")}
    rows = _lines(f"golden/{role}.jsonl")
    talks = [[Turn(m["role"], m["content"]) for m in row["messages"]] for row in rows]
    first = texts_of("conversation", talks, role)
    second = texts_of("conversation-eos", talks, role, "<s>", "</s>")
    prefix = INSTRUCTION if role == "query" else ""
    assert first == [wanted[row["id"]]["hamishivi"] for row in rows]
    assert [prefix + text for text in second] == [wanted[row["id"]]["dcml"] for row in rows]
    assert len(rows) == {"pool": 64, "query": 12}[role]


def _lines(name: str) -> list[dict[str, Any]]:
    with shared(name).open() as file:
        return [json.loads(line) for line in file]


def test_texts_by_hand() -> None:
    row = [talk("system:Be kind. ", "user: Hi", "assistant: Hello. ")]
    assert texts_of("conversation", row, "pool") == [
        "<|system|>\nBe kind. \n<|user|>\n Hi\n<|assistant|>\nHello."
    ]
    assert texts_of("contents", row, "query") == ["Be kind.\nHi\nHello."]
    assert texts_of("conversation-eos", row, "query", "<s>", "</s>") == [
        "<|system|>\nBe kind. \n<|user|>\n Hi\n<|assistant|>\n Hello."
    ]
    assert texts_of("conversation", [talk("user: ", "assistant:\n"), []], "pool") == ["", ""]
    assert texts_of("contents", [talk("user:half \ud83d a pair")], "pool") == ["half \ufffd a pair"]


# --- vectors ---------------------------------------------------------------------------------------------


def test_vectors_are_those_of_the_library(saved: str) -> None:
    import sentence_transformers

    library = sentence_transformers.SentenceTransformer(saved, device="cpu")
    texts = texts_of("conversation", TALKS, "pool")
    wanted = library.encode([text for text in texts if text], normalize_embeddings=True)
    got = encode(TALKS, saved)
    np.testing.assert_allclose(got.arrays["vectors"][[0, 1, 2, 4]], wanted, atol=1e-6)
    assert not got.arrays["vectors"][3].any() and got.arrays["vectors"].dtype == np.float32


def test_statuses_and_tokens(saved: str) -> None:
    got = encode(TALKS, saved)
    assert list(words(got.status)) == ["ok", "ok", "truncated", "no_target_tokens", "ok"]
    assert got.tokens[2] == 64 and got.tokens[3] == 0 and 0 < got.tokens[4] < got.tokens[1] < 64
    short = encode(TALKS, saved, max_tokens=8)
    assert list(words(short.status)) == ["truncated"] * 3 + ["no_target_tokens", "ok"]  # 8 fit
    assert short.tokens.tolist() == [8, 8, 8, 0, 8]
    # What was cut off has no part in the vector.
    longer = [talk("user:" + "rivers run " * 60, "assistant:No.")]
    cut = encode([TALKS[2], *longer], saved).arrays["vectors"]
    np.testing.assert_allclose(cut[0], cut[1], atol=1e-6)


def test_a_prefix_belongs_to_its_side(saved: str) -> None:
    plain = encode(TALKS[:1], saved)
    query = {"role": "query"}
    same = encode(TALKS[:1], saved, query, pool_prefix="instruct")
    np.testing.assert_allclose(same.arrays["vectors"], plain.arrays["vectors"], atol=1e-6)
    asked = encode(TALKS[:1], saved, query, query_prefix="instruct")
    written = encode(TALKS[:1], saved, query, query_prefix=INSTRUCTION)
    np.testing.assert_array_equal(asked.arrays["vectors"], written.arrays["vectors"])
    assert abs(asked.arrays["vectors"] - plain.arrays["vectors"]).max() > 1e-3
    assert asked.tokens[0] > plain.tokens[0]


def test_a_prompt_of_the_files_is_not_put_in(saved: str, tmp_path: Path) -> None:
    folder = tmp_path / "prompted"
    shutil.copytree(saved, folder)
    path = folder / "config_sentence_transformers.json"
    given = json.loads(path.read_text())
    path.write_text(json.dumps({**given, "prompts": {"rain": "rain "}, "default_prompt_name": "rain"}))
    got = encode(TALKS[:1], str(folder)).arrays["vectors"]
    np.testing.assert_allclose(got, encode(TALKS[:1], saved).arrays["vectors"], atol=1e-6)


@pytest.mark.parametrize("batch_tokens", [1, 70, 10**6])
def test_batches_do_not_change_vectors(saved: str, batch_tokens: int) -> None:
    alone = np.concatenate([encode([row], saved).arrays["vectors"] for row in TALKS])
    got = encode(TALKS, saved, {"batch_tokens": batch_tokens})
    np.testing.assert_allclose(got.arrays["vectors"], alone, atol=2e-6)


def test_progress_counts_the_tokens(saved: str) -> None:
    done: list[int] = []
    got = prepared(saved).encode(TALKS, done.append)
    assert sum(done) == got.tokens.sum()


def test_bfloat16_keeps_halves(saved: str) -> None:
    got = encode(TALKS, saved, {"dtype": "bfloat16"})
    assert got.arrays["vectors"].dtype == np.float16
    whole = encode(TALKS, saved).arrays["vectors"]
    np.testing.assert_allclose((got.arrays["vectors"].astype(float) * whole).sum(1)[:3], 1, atol=2e-2)


def test_numbers_that_are_not_finite_have_a_status(saved: str, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "broken"
    shutil.copytree(saved, folder)
    encoder = SentenceEncoder(saved, "auto", "cpu")
    bad = encoder.tokenizer("poem", add_special_tokens=False)["input_ids"][-1]
    tensors = load_file(folder / "model.safetensors")
    tensors["embeddings.word_embeddings.weight"][bad] = float("nan")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    got = encode([talk("user:rain"), talk("user:poem")], str(folder))
    assert list(words(got.status)) == ["ok", "non_finite"] and "not finite" in got.reasons[1]
    assert np.isfinite(got.arrays["vectors"]).all()


def test_no_rows(saved: str) -> None:
    assert encode([], saved).arrays["vectors"].shape == (0, 32)


def test_width_of_a_projection(tmp_path: Path) -> None:
    folder = save_encoder(tmp_path / "dense", dense=8)
    assert encode(TALKS[:2], str(folder)).arrays["vectors"].shape == (2, 8)


# --- identity --------------------------------------------------------------------------------------------


def test_recipe_holds_what_changes_the_numbers_and_nothing_else(saved: str, tmp_path: Path) -> None:
    def recipe(path: str = saved, context: dict[str, Any] | None = None, **parameters: Any) -> str:
        return json.dumps(prepared(path, context, **parameters).recipe, sort_keys=True)

    moved = tmp_path / "elsewhere"
    shutil.copytree(saved, moved)
    base = recipe()
    assert recipe(str(moved)) == recipe(context={"batch_tokens": 3}) == recipe(query_prefix="x") == base
    other = save_encoder(tmp_path / "other", seed=1)
    changed = [
        base,
        recipe(str(other)),
        recipe(text="contents"),
        recipe(pool_prefix="x"),
        recipe(max_tokens=9),
        recipe(context={"role": "query"}),
        recipe(context={"dtype": "bfloat16"}),
    ]
    assert len(set(changed)) == len(changed)


def test_weights_are_not_loaded_before_rows_come(saved: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from tamis.models import encoder as module

    loads: list[Any] = []
    real = module._loaded
    monkeypatch.setattr(module, "_loaded", lambda *given: loads.append(given) or real(*given))
    encoder = prepared(saved)
    assert encoder.recipe and encoder.dimensions == 32 and encoder.count_tokens(TALKS)[0] > 0
    assert encoder.flops_per_token > 2 * 2 * 4 * 32 * 32 and not loads
    encoder.encode(TALKS, lambda tokens: None)
    assert len(loads) == 1


def test_parameters_of_the_body_are_all_but_the_embeddings(saved: str) -> None:
    layer = 4 * (32 * 32 + 32) + 2 * 32 * 48 + 48 + 32 + 4 * 32  # attention, feed-forward, two norms
    pooler, embedding_norm = 32 * 32 + 32, 2 * 32
    encoder = SentenceEncoder(saved, "auto", "cpu")
    assert encoder.body_parameters == 2 * layer + pooler + embedding_norm
    assert encoder.forward_flops(10) == 2 * encoder.body_parameters + 4 * 2 * 32 * 10


def test_batches_by_length() -> None:
    lengths = np.array([3, 10, 4, 4, 100, 1])
    found = batches_by_length(lengths, np.arange(6), 12)
    assert [batch.tolist() for batch in found] == [[4], [1], [2, 3, 0], [5]]


# --- refusals --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"encoder": ""}, "--set embed.encoder=PATH_OR_ID"),
        ({"encoder": "./nowhere"}, "no such folder"),
        ({"text": "words"}, "text='words': expected one of conversation"),
        ({"max_tokens": -1}, "max_tokens=-1"),
        ({"max_tokens": 65}, "takes at most 64 tokens"),
    ],
)
def test_refusals_before_any_work(saved: str, parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        prepared(saved, **parameters)


def test_a_language_model_is_no_encoder(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(RequestError, match=r"no modules\.json"):
        prepared(str(tmp_path))


def test_an_unknown_dtype_is_refused(saved: str) -> None:
    with pytest.raises(RequestError, match="--dtype 'int8': expected auto, float32"):
        prepared(saved, {"dtype": "int8"})


# --- end to end ------------------------------------------------------------------------------------------


def test_select_by_an_encoder(saved: str, tmp_path: Path) -> None:
    rows = [
        {"prompt": text, "completion": "yes"}
        for text in ("rain falls", "the sum of 4", "rivers run", "7 and 12")
    ]
    (tmp_path / "pool.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "query.jsonl").write_text(json.dumps(rows[2]))
    pool = tamis.read_pool([tmp_path / "pool.jsonl"], store=tmp_path / "store")
    subset = tamis.select(
        pool, query={"rain": tmp_path / "query.jsonl"}, strategy="embed/round-robin", budget=2,
        parameters={"embed": {"encoder": saved}}, store=tmp_path / "store",
    )  # fmt: skip
    assert subset.positions[0] == 2 and abs(subset.score[0] - 1) < 1e-5


def test_weights_of_every_module_are_part_of_the_identity(tmp_path: Path) -> None:
    folder = save_encoder(tmp_path / "dense", dense=8)
    (stored,) = (path for path in folder.glob("*/*.safetensors") if "Dense" in path.parent.name)
    older = stored.with_name("pytorch_model.bin")  # what older releases of the library wrote for this module
    stored.rename(older)
    before = SentenceEncoder(str(folder), "float32", "cpu").fingerprint
    older.write_bytes(older.read_bytes() + b"\0")
    assert SentenceEncoder(str(folder), "float32", "cpu").fingerprint != before
