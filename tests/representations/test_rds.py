"""RDS: the worked example, the published vectors, statuses, and what must not change a number."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tamis.core.errors import RequestError
from tamis.core.method import CARD_FIELDS
from tamis.core.status import words
from tamis.representations import rds
from tamis.representations._context import Context
from tests.conftest import shared
from tests.models.tiny import Turn, save_llama, talk
from tests.scores.test_released_ifd import prompts

torch = pytest.importorskip("torch")
METHODS = {method.name: method for method in rds.METHODS}
TALKS = [
    talk("user:What is the sum?", "assistant:23"),
    talk("system:Be kind.", "user:Hi", "assistant:Hello.", "user:Rain?", "assistant:It falls."),
    talk("user:" + "rivers run " * 40, "assistant:Yes."),
    talk("assistant:Well"),
    talk("user:open"),
]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return str(save_llama(tmp_path_factory.mktemp("rds") / "llama"))


def encode(name: str, talks, **settings):
    return METHODS[name].run(rds.Config(), Context(**settings)).encode(talks, lambda tokens: None)


# --- by hand ---------------------------------------------------------------------------------------------

STATES = np.array([[1, 0], [0, 1], [1, 1], [2, 0]], dtype=np.float32)


@pytest.mark.parametrize(
    ("weights", "wanted"),
    [
        (rds.position_weights, [1.2 / 1.3, 0.5 / 1.3]),  # 0.1, 0.2, 0.3, 0.4 -> (1.2, 0.5)
        (rds.last_weights, [1, 0]),
        (rds.uniform_weights, [2 / 5**0.5, 1 / 5**0.5]),  # (1, 0.5)
    ],
)
def test_worked_example(weights, wanted):
    np.testing.assert_allclose(weights(4).sum(), 1, rtol=1e-6)
    np.testing.assert_allclose(rds.unit((weights(4) @ STATES)[None])[0], wanted, atol=1e-6)


def test_unit_keeps_zeros_and_tiny_rows_finite():
    rows = np.array([[0, 0], [1e-20, 0], [3, 4]], dtype=np.float32)
    np.testing.assert_allclose(rds.unit(rows), [[0, 0], [1e-8, 0], [0.6, 0.8]], atol=1e-9)


# --- published vectors -----------------------------------------------------------------------------------


def golden_talks(name: str):
    with shared(f"golden/{name}.jsonl").open() as file:
        return [[Turn(m["role"], m["content"]) for m in json.loads(line)["messages"]] for line in file]


@pytest.mark.parametrize("template", ["tulu", "auto"])
@pytest.mark.parametrize(("name", "key"), [("rds", "rds"), ("rds-mean", "mean"), ("rds-eos", "eos")])
def test_published_vectors(name, key, template, conforms):
    wanted = np.load(shared("golden/representations.npz"), allow_pickle=False)
    model = str(shared("golden/model"))
    pool = encode(name, golden_talks("pool"), model=model, template=template)
    query = encode(name, golden_talks("query"), model=model, template=template)
    conforms.close(f"`{name}`, pool vectors", pool.arrays["vectors"], wanted[f"{key}_pool"], atol=1e-5)
    np.testing.assert_allclose(query.arrays["vectors"], wanted[f"{key}_query"], atol=1e-5)
    similarity = query.arrays["vectors"] @ pool.arrays["vectors"].T
    conforms.close(f"`{name}`, cosines", similarity, wanted[f"{key}_similarity"], atol=1e-5)
    assert set(words(pool.status)) == {"ok", "truncated"}  # a-p057 has no target and is scored all the same


def test_published_query_side(conforms):
    wanted = np.load(shared("golden/representations.npz"), allow_pickle=False)
    model = str(shared("golden/model"))
    query = encode("rds", golden_talks("query"), model=model, template="tulu", role="query")
    np.testing.assert_allclose(query.arrays["vectors"], wanted["rds_query_promptlabel"], atol=1e-5)
    similarity = query.arrays["vectors"] @ wanted["rds_pool"].T
    conforms.close(
        "`rds`, cosines of prompt + label queries",
        similarity,
        wanted["rds_promptlabel_similarity"],
        atol=1e-5,
    )


def test_published_norms():
    wanted = np.load(shared("golden/representations.npz"), allow_pickle=False)
    encoder = METHODS["rds"].run(rds.Config(), Context(model=str(shared("golden/model")), template="tulu"))
    sequences = [row.ids for row in encoder.render(golden_talks("pool"))]
    sums = encoder._executor.weighted_sums(sequences, rds.position_weights)
    np.testing.assert_allclose(np.linalg.norm(sums, axis=1), wanted["rds_pool_norm"], rtol=1e-5)


# --- parts of a row --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "role", "row", "wanted"),
    [
        ("rds-prompt", "pool", 1, "<|system|>\nBe kind.\n<|user|>\nHi</s>"),
        ("rds-label", "pool", 1, "<|assistant|>\nHello.</s>"),
        (
            "rds-prompt",
            "query",
            1,
            "<|system|>\nBe kind.\n<|user|>\nHi\n<|assistant|>\nHello.</s>\n<|user|>\nRain?</s>",
        ),
        ("rds-label", "query", 1, "It falls.</s>"),
        ("rds-label", "pool", 3, "<|assistant|>\nWell</s>"),
        ("rds-prompt", "query", 4, "<|user|>\nopen</s>"),
    ],
)
def test_prompt_and_label_by_hand(saved, name, role, row, wanted):
    encoder = METHODS[name].run(rds.Config(), Context(model=saved, template="tulu", role=role))
    (rendered,) = encoder.render([TALKS[row]])
    assert encoder.renderer.tokenizer.decode(rendered.ids.tolist()) == wanted


def test_the_prompt_mean_is_over_all_before_the_first_answer(saved):
    encoder = METHODS["prompt-mean"].run(rds.Config(), Context(model=saved, template="tulu"))
    rendered = encoder.render([TALKS[1]])[0]
    text = encoder.renderer.tokenizer.decode(rendered.ids.tolist())
    assert text == "<|system|>\nBe kind.\n<|user|>\nHi\n<|assistant|>\n"
    got = encoder.encode(TALKS, lambda tokens: None)
    (hidden,) = encoder._executor.hidden([rendered.ids])
    mean = hidden[0][1].double().mean(0).numpy()
    np.testing.assert_allclose(got.arrays["vectors"][1], mean, atol=1e-5)
    assert got.reasons == {3: "nothing comes before the first answer"}
    assert list(words(got.status)) == ["ok", "ok", "ok", "no_target_tokens", "ok"]


def test_prompt_means_of_the_reference(conforms):
    golden = np.load(shared("golden/cherry_cluster.npz"))
    lines = (shared("golden") / "alpaca_rows.jsonl").read_text(encoding="utf-8").splitlines()
    rows = {row["id"]: row for row in map(json.loads, lines)}
    given = Context(model=str(shared("golden/model")), template="alpaca")
    encoder = METHODS["prompt-mean"].run(rds.Config(), given)
    texts = [prompts("alpaca512", rows[name])[0] for name in golden["ids"].tolist()]
    ids = [ids[:512] for ids in encoder.renderer.token_ids(texts)]
    means = encoder._executor.weighted_sums(ids, encoder.variant.weights)
    conforms.close("`prompt-mean`, given the prompts", means, golden["embedding"], atol=1e-5)


def test_parts_follow_the_template_in_use(saved):
    label = METHODS["rds-label"].run(rds.Config(), Context(model=saved))
    text = label.renderer.tokenizer.decode(label.render([TALKS[0]])[0].ids.tolist())
    assert text == "<|im_start|>assistant\n23<|im_end|>"


def test_rows_without_the_part_are_not_scored(saved):
    got = encode("rds-prompt", TALKS, model=saved, template="tulu")
    assert list(words(got.status)) == ["ok", "ok", "ok", "no_target_tokens", "ok"]
    assert got.reasons == {3: "the row has no user turn"} and not got.arrays["vectors"][3].any()
    got = encode("rds-label", TALKS, model=saved, template="tulu")
    assert list(words(got.status)) == ["ok"] * 4 + ["no_target_tokens"]


# --- statuses and types ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
def test_vectors_have_length_one_and_the_right_type(saved, name):
    for dtype, kept in (("float32", np.float32), ("bfloat16", np.float16)):
        encoder = METHODS[name].run(rds.Config(), Context(model=saved, template="tulu", dtype=dtype))
        got = encoder.encode(TALKS, lambda tokens: None)
        vectors = got.arrays["vectors"]
        assert vectors.dtype == kept == encoder.dtype and vectors.shape == (5, encoder.dimensions)
        scored = got.status == 0
        lengths = np.linalg.norm(vectors[scored].astype(np.float64), axis=1)
        assert name == "prompt-mean" or np.allclose(lengths, 1, atol=2e-3)
        assert got.status.dtype == np.uint8 and got.tokens.dtype == np.int32


def test_truncated_and_refused_rows(saved):
    talks = [TALKS[2], talk("user:"), talk("tool:x", "user:y", "assistant:z")]
    got = encode("rds", talks, model=saved, template="none", max_tokens=20)
    assert list(words(got.status)) == ["truncated", "no_target_tokens", "ok"]
    assert got.tokens[0] == 20
    got = encode("rds", talks, model=saved, template="alpaca")
    assert list(words(got.status)) == ["ok", "ok", "refused"]
    assert "no place for a tool turn" in got.reasons[2] and not got.arrays["vectors"][2].any()


def test_numbers_that_are_not_finite_have_a_status(tmp_path):
    folder = save_llama(tmp_path / "broken")
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    encoder = METHODS["rds"].run(rds.Config(), Context(model=str(folder), template="none"))
    (bad,) = encoder.renderer.token_ids(["é"])
    tensors["model.embed_tokens.weight"][int(bad[-1])] = float("nan")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    got = encode(
        "rds", [talk("user:rain"), talk("user:é"), talk("user:sun")], model=str(folder), template="none"
    )
    assert list(words(got.status)) == ["ok", "non_finite", "ok"]
    assert np.isfinite(got.arrays["vectors"]).all() and "not a finite number" in got.reasons[1]


def test_a_learned_table_of_positions_is_not_run_past(tmp_path):
    import transformers

    from tests.models.tiny import tokenizer

    config = transformers.GPT2Config(
        vocab_size=500, n_embd=32, n_layer=1, n_head=2, n_positions=64, bos_token_id=0, eos_token_id=1
    )
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    with pytest.raises(RequestError, match=r"ends at 64 tokens.*--max-tokens 64"):
        encode("rds", TALKS, model=str(tmp_path), template="tulu")
    query = [talk("user:" + "river " * 40, "assistant:" + "rain " * 40)]
    got = encode("rds", query, model=str(tmp_path), template="tulu", max_tokens=64, role="query")
    assert list(words(got.status)) == ["too_long"] and "ends at 64" in got.reasons[0]


def test_a_model_is_needed():
    with pytest.raises(RequestError, match="rds-eos needs a model"):
        METHODS["rds-eos"].run(rds.Config(), Context())


def test_no_rows(saved):
    got = encode("rds", [], model=saved)
    assert got.arrays["vectors"].shape == (0, 32) and len(got.status) == 0


# --- identity --------------------------------------------------------------------------------------------


def test_recipe_holds_what_changes_the_numbers_and_nothing_else(saved):
    def recipe(name="rds", **settings):
        found = (
            METHODS[name]
            .run(rds.Config(), Context(**{"model": saved, "template": "tulu", **settings}))
            .recipe
        )
        return json.dumps(found, sort_keys=True)

    base = recipe()
    assert recipe(batch_tokens=7) == recipe(device="cpu") == recipe(dtype="float32") == base
    changed = [recipe(name) for name in METHODS]
    changed += [
        recipe(template="chatml"),
        recipe(max_tokens=9),
        recipe(role="query"),
        recipe(dtype="bfloat16"),
    ]
    assert len(set(changed)) == len(changed)


def test_batch_tokens_change_nothing(saved):
    one, other = (encode("rds", TALKS, model=saved, batch_tokens=size) for size in (1, 10**6))
    np.testing.assert_allclose(one.arrays["vectors"], other.arrays["vectors"], atol=1e-5)
    np.testing.assert_array_equal(one.tokens, other.tokens)


def test_weights_are_not_loaded_before_rows_come(saved, monkeypatch):
    loads = []
    real = rds.shared_model

    def counted(*given):
        loads.append(given)
        return real(*given)

    monkeypatch.setattr(rds, "shared_model", counted)
    encoder = METHODS["rds"].run(rds.Config(), Context(model=saved))
    assert encoder.recipe and encoder.dimensions == 32 and "mode" not in encoder.execution
    assert encoder.count_tokens(TALKS)[0] > 0 and not loads
    encoder.encode(TALKS, lambda tokens: None)
    assert len(loads) == 1 and encoder.execution["mode"] == "packed"
    assert encoder.flops_per_token > 2 * encoder._described.body_parameters


@pytest.mark.parametrize("name", METHODS)
def test_cards_are_complete(name):
    assert list(METHODS[name].card) == list(CARD_FIELDS)
