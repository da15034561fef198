"""LESS of rows: statuses, what the name of a stored thing holds, and faults found before any work."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tamis
from tamis.core.errors import RequestError
from tamis.core.method import CARD_FIELDS
from tamis.core.status import words
from tamis.representations import _gradient_encoder as module
from tamis.representations import less
from tamis.representations._context import Context
from tests.models.tiny import save_llama, talk, tokenizer
from tests.representations import warmed

torch = pytest.importorskip("torch")
pytest.importorskip("peft")

METHODS = {method.name: method for method in less.METHODS}
TALKS = [
    talk("user:What is the sum?", "assistant:23"),
    talk("user:open"),
    talk("user:Rain?", "assistant:It falls on the " + "rivers " * 12),
    talk("user:Say nothing.", "assistant:"),
    talk("tool:x", "user:y", "assistant:z"),
    talk("user:" + "rivers run " * 40, "assistant:Yes."),
]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_llama(tmp_path_factory.mktemp("less") / "llama"))


@pytest.fixture(scope="module")
def adapter(saved: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return warmed.checkpoints(saved, tmp_path_factory.mktemp("adapter"))


def side(
    adapter: Path, name: str = "less", parameters: dict[str, Any] | None = None, **settings: Any
) -> less.Gradients:
    method = METHODS[name]
    given = {"dimensions": 64, **(parameters or {})}
    context = Context(**{"model": str(adapter), "template": "tulu", **settings})
    found: less.Gradients = method.run(method.configure(given), context)
    return found


def encode(adapter: Path, talks: Any = TALKS, parameters: Any = None, **settings: Any) -> Any:
    part = side(adapter, parameters=parameters, **settings).parts[0]
    return part.encode(talks, lambda tokens: None)


# --- statuses --------------------------------------------------------------------------------------------


def test_rows_without_a_target_refused_and_truncated_have_a_status(adapter: Path) -> None:
    length = side(adapter, template="alpaca").parts[0].count_tokens(TALKS)[2]
    got = encode(adapter, template="alpaca", max_tokens=length - 3)
    status = words(got.status).tolist()
    assert status[1] == "no_target_tokens" and status[4] == "refused"
    assert "no place for a tool turn" in got.reasons[4] and set(got.reasons) == {4}
    assert status[0] == "ok" and status[2] == "truncated"
    scored = np.isin(got.status, [0, 1])
    lengths = np.linalg.norm(got.arrays["vectors"].astype(float), axis=1)
    np.testing.assert_allclose(lengths[scored], 1, atol=2e-3)
    assert not lengths[~scored].any()
    for name in ("norms", "losses"):
        np.testing.assert_array_equal(np.isfinite(got.arrays[name]), scored)


def test_a_row_whose_response_is_cut_off_has_no_score(adapter: Path) -> None:
    got = encode(adapter, [TALKS[5], TALKS[0]], max_tokens=30)
    assert words(got.status).tolist() == ["no_target_tokens", "ok"] and got.tokens[0] == 30


def test_of_an_empty_response_the_end_is_the_target(adapter: Path) -> None:
    part = side(adapter, parameters={"dtype": "float32"}).parts[0]
    (rendered,) = part.render([TALKS[3]])
    assert rendered.empty_response and rendered.mask.sum() == 1
    got = part.encode([TALKS[3]], lambda tokens: None)
    assert words(got.status).tolist() == ["ok"] and got.arrays["losses"][0] > 0


def test_numbers_that_are_not_finite_have_a_status(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    broken = save_llama(tmp_path / "broken", tie_word_embeddings=False)
    own = warmed.checkpoints(str(broken), tmp_path / "adapter", epochs=1)
    tensors = load_file(broken / "model.safetensors")
    (bad,) = side(own).parts[0].renderer.token_ids(["é"])
    tensors["model.embed_tokens.weight"][int(bad[-1])] = float("nan")
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    talks = [talk("user:rain", "assistant:23"), talk("user:é", "assistant:23"), TALKS[0]]
    for preconditioner in less.PRECONDITIONERS:
        got = encode(own, talks, {"preconditioner": preconditioner})
        assert words(got.status).tolist() == ["ok", "non_finite", "ok"]
        assert "not a finite number" in got.reasons[1] and set(got.reasons) == {1}
        assert np.isfinite(got.arrays["vectors"]).all() and not got.arrays["vectors"][1].any()
        assert np.isnan(got.arrays["norms"][1]) and np.isnan(got.arrays["losses"][1])


@pytest.mark.parametrize("preconditioner", ["less", "none"])
def test_a_gradient_of_zeros_is_no_feature(saved: str, tmp_path: Path, preconditioner: str) -> None:
    own = warmed.checkpoints(saved, tmp_path / "zero", epochs=1, scale=0.0)
    got = encode(own, TALKS[:1], {"preconditioner": preconditioner})
    assert words(got.status).tolist() == ["non_finite"] and got.reasons[0] == "the gradient is zero"
    assert not got.arrays["vectors"].any()


def test_a_learned_table_of_positions_is_not_run_past(tmp_path: Path) -> None:
    import transformers

    config = transformers.GPT2Config(
        vocab_size=500, n_embd=32, n_layer=1, n_head=2, n_positions=64, bos_token_id=0, eos_token_id=1
    )
    base = tmp_path / "gpt2"
    transformers.GPT2LMHeadModel(config).save_pretrained(base)
    tokenizer().save_pretrained(base)
    own = warmed.checkpoints(str(base), tmp_path / "adapter", epochs=1, target_modules=["c_attn"])
    with pytest.raises(RequestError, match=r"ends at 64 tokens.*--max-tokens 64"):
        encode(own)
    query = [talk("user:" + "river " * 40, "assistant:" + "rain " * 40), TALKS[0]]
    got = encode(own, query, max_tokens=64, role="query")
    assert words(got.status).tolist() == ["too_long", "ok"] and "ends at 64" in got.reasons[0]


def test_a_row_that_does_not_fit_into_memory_has_failed(
    adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = side(adapter).parts[0]
    inner = part._engine._states

    def small(rows: Any, packed: bool) -> Any:
        if sum(map(len, rows)) > 60:
            raise torch.OutOfMemoryError("too much")
        return inner(rows, packed)

    monkeypatch.setattr(part._engine, "_states", small)
    got = part.encode([TALKS[0], TALKS[1], TALKS[5]], lambda tokens: None)
    assert words(got.status).tolist() == ["ok", "no_target_tokens", "failed"]
    assert "do not fit into memory" in got.reasons[2] and set(got.reasons) == {2}


def test_no_rows(adapter: Path) -> None:
    got = encode(adapter, [])
    assert got.arrays["vectors"].shape == (0, 64) and len(got.status) == 0


# --- numbers ---------------------------------------------------------------------------------------------


def test_batches_change_nothing_and_halves_little(adapter: Path) -> None:
    wide = {"dtype": "float32"}
    one, other = (encode(adapter, TALKS[:4], wide, batch_tokens=size) for size in (1, 10**6))
    for name in ("vectors", "norms", "losses"):
        np.testing.assert_allclose(one.arrays[name], other.arrays[name], rtol=1e-4, atol=1e-5)
    half = encode(adapter, TALKS[:4]).arrays["vectors"]
    assert half.dtype == np.float16
    np.testing.assert_allclose(half, one.arrays["vectors"], atol=1e-3)


def test_queries_are_plain_and_pool_rows_what_the_optimizer_makes_of_them(adapter: Path) -> None:
    exact = {"projection": "none", "dtype": "float32"}
    plain = encode(adapter, TALKS[:1], {**exact, "preconditioner": "none"}).arrays
    query = encode(adapter, TALKS[:1], exact, role="query").arrays
    np.testing.assert_allclose(query["vectors"], plain["vectors"], atol=1e-5)
    names = ("less", "adam", "rms", "sign", "none")
    found = [encode(adapter, TALKS[:1], {**exact, "preconditioner": n}).arrays["vectors"][0] for n in names]
    assert np.max(np.array(found) @ np.array(found).T - np.eye(5)) < 0.999
    (own,) = encode(adapter, TALKS[:1], exact).arrays["vectors"]
    np.testing.assert_array_equal(own, found[0])
    method = METHODS["loss-gradients"]
    assert method.run(method.configure({}), Context(model=str(adapter))).config.preconditioner == "none"


# --- identity --------------------------------------------------------------------------------------------


def test_recipe_holds_what_changes_the_numbers_and_nothing_else(adapter: Path, tmp_path: Path) -> None:
    def recipe(given: Path = adapter, parameters: Any = None, **settings: Any) -> str:
        return json.dumps(side(given, parameters=parameters, **settings).parts[0].recipe, sort_keys=True)

    base = recipe()
    assert recipe(batch_tokens=7) == recipe(device="cpu") == recipe(dtype="float32") == base
    assert recipe(parameters={"keep": "similarity", "shortlist": 0.3, "aggregate": "cosines"}) == base
    moved = tmp_path / "moved"
    shutil.copytree(adapter, moved)
    assert recipe(moved) == base
    other = tmp_path / "other"
    shutil.copytree(adapter, other)
    shutil.copyfile(adapter / "epoch-2/exp_avg.safetensors", other / "epoch-1/exp_avg.safetensors")
    trained = tmp_path / "trained"
    shutil.copytree(adapter, trained)
    shutil.copyfile(
        adapter / "epoch-2/adapter_model.safetensors", trained / "epoch-1/adapter_model.safetensors"
    )
    changed = [base, recipe(other), recipe(trained), recipe(template="chatml"), recipe(max_tokens=9)]
    changed += [recipe(role="query"), recipe(dtype="bfloat16"), recipe(compatible=True)]
    for parameter in (
        {"preconditioner": "adam"}, {"preconditioner": "sign"}, {"projection": "rademacher"},
        {"projection": "none"}, {"dimensions": 65}, {"projection_seed": 1}, {"dropout": True},
        {"dtype": "float32"}, {"beta1": 0.8}, {"epsilon": 1e-7},
    ):  # fmt: skip
        changed.append(recipe(parameters=parameter))
    assert len(set(changed)) == len(changed)
    query = recipe(role="query")
    assert query == recipe(other, role="query") == recipe(role="query", parameters={"beta1": 0.8})
    assert query == recipe(role="query", parameters={"preconditioner": "sign"})
    assert query != recipe(trained, role="query")
    loose = recipe(parameters={"projection": "none", "dimensions": 9})
    assert loose == recipe(parameters={"projection": "none", "projection_seed": 4})


def test_weights_are_not_loaded_before_rows_come(adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loads: list[Any] = []
    real = module.shared_model
    monkeypatch.setattr(module, "shared_model", lambda *given: loads.append(given) or real(*given))
    part = side(adapter).parts[0]
    assert part.recipe and part.dimensions == 64 and "mode" not in part.execution
    assert part.count_tokens(TALKS)[0] > 0 and not loads
    part.encode(TALKS[:1], lambda tokens: None)
    assert len(loads) == 1 and part.execution["mode"] == "packed"
    assert part.execution["adapter_parameters"] == part._engine.parameters > 0
    assert part.flops_per_token > 4 * part._described.body_parameters


def test_weights_of_checkpoints_are_their_shares_of_the_rates(adapter: Path) -> None:
    assert side(adapter).weights == pytest.approx((2 / 3, 1 / 3))
    assert side(adapter, parameters={"learning_rates": [1, 3]}).weights == (0.25, 0.75)


# --- faults before any work ------------------------------------------------------------------------------


def _wrong_base(adapter: Path, saved: str, folder: Path) -> dict[str, Any]:
    other = save_llama(folder / "other", num_hidden_layers=1)
    return {"model": str(other), "parameters": {"checkpoints": str(adapter)}}


def _no_moments(adapter: Path, saved: str, folder: Path) -> dict[str, Any]:
    shutil.copytree(adapter, folder / "bare", ignore=shutil.ignore_patterns("exp_avg*"))
    return {"model": str(folder / "bare")}


def _no_base(adapter: Path, saved: str, folder: Path) -> dict[str, Any]:
    shutil.copytree(adapter, folder / "lost")
    warmed.edit(folder / "lost/epoch-1", "adapter_config.json", base_model_name_or_path=None)
    return {"model": str(folder / "lost")}


def _other_template(adapter: Path, saved: str, folder: Path) -> dict[str, Any]:
    shutil.copytree(adapter, folder / "tamis")
    renderer = side(adapter, template="chatml").parts[0].renderer.recipe
    record = {"asked": {"base": {}, "renderer": renderer}}
    (folder / "tamis/training.json").write_text(json.dumps(record))
    return {"model": str(folder / "tamis"), "template": "tulu"}


def _trained_on_others(adapter: Path, saved: str, folder: Path) -> dict[str, Any]:
    shutil.copytree(adapter, folder / "tamis")
    record = {"asked": {"base": {"weights": "0" * 64}, "renderer": {}}}
    (folder / "tamis/training.json").write_text(json.dumps(record))
    return {"model": str(folder / "tamis")}


def _one_rate(adapter: Path, saved: str, folder: Path) -> dict[str, Any]:
    return {"model": str(adapter), "parameters": {"learning_rates": [1e-3]}}


def _whole_model(adapter: Path, saved: str, folder: Path) -> dict[str, Any]:
    return {"model": saved, "parameters": {"checkpoints": saved}}


def _no_model(adapter: Path, saved: str, folder: Path) -> dict[str, Any]:
    return {"model": None}


@pytest.mark.parametrize(
    ("case", "words_of_it"),
    [
        (_wrong_base, r"this adapter is of .*llama, whose weights are not those of --model .*other"),
        (_no_moments, r"epoch-1.*exp_avg"),
        (_no_base, r"does not name its base model"),
        (_other_template, r"trained with another template.*give the same --template"),
        (_trained_on_others, r"trained on other weights than those of .*llama"),
        (_one_rate, r"less.learning_rates: 1 rates for 2 checkpoints \(epoch-1, epoch-2\)"),
        (_whole_model, r"no checkpoints; expected epoch-1"),
        (_no_model, r"less needs a model: give --model"),
    ],
)
def test_faults_have_their_own_words_before_any_work(
    case: Callable[..., dict[str, Any]],
    words_of_it: str,
    adapter: Path,
    saved: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "shared_model", lambda *given: pytest.fail("the weights were loaded"))
    with pytest.raises(RequestError, match=words_of_it):
        side(adapter, **case(adapter, saved, tmp_path))


def test_without_moments_others_still_work(adapter: Path, saved: str, tmp_path: Path) -> None:
    given = _no_moments(adapter, saved, tmp_path)
    for parameters, role in (
        ({"preconditioner": "sign"}, "pool"),
        ({"preconditioner": "none"}, "pool"),
        ({}, "query"),
    ):
        assert len(side(adapter, parameters=parameters, role=role, **given).parts) == 2


def test_an_adapter_of_its_own_base_elsewhere(adapter: Path, saved: str, tmp_path: Path) -> None:
    """A base that was moved is given with --model; one that has the same weights is the same."""
    given = _no_base(adapter, saved, tmp_path)
    base = side(adapter).parts[0].recipe["base"]
    moved = {"checkpoints": given["model"]}
    assert side(adapter, model=saved, parameters=moved).parts[0].recipe["base"] == base
    shutil.copytree(saved, tmp_path / "copy")
    parameters = {"checkpoints": str(adapter)}
    assert side(adapter, model=str(tmp_path / "copy"), parameters=parameters).parts[0].recipe["base"] == base


@pytest.mark.parametrize(
    ("parameters", "words_of_it"),
    [
        ({"preconditioner": "adagrad"}, "preconditioner='adagrad': expected one of less"),
        ({"projection": "sjlt"}, "projection='sjlt': expected one of count-sketch"),
        ({"aggregate": "mean"}, "aggregate='mean'"),
        ({"keep": "scores"}, "keep='scores'"),
        ({"dtype": "bfloat16"}, "dtype='bfloat16'"),
        ({"dropout": 0.1}, "dropout=0.1"),
        ({"dimensions": 0}, "dimensions=0"),
        ({"dimensions": 1.5}, "dimensions=1.5"),
        ({"shortlist": 0}, "shortlist=0"),
        ({"shortlist": 20}, "shortlist=20"),
        ({"beta1": 1.0}, "beta1 and beta2"),
        ({"epsilon": 0}, "epsilon above 0"),
        ({"rank": 8}, "rank"),
    ],
)
def test_parameters_that_cannot_be(parameters: dict[str, Any], words_of_it: str) -> None:
    with pytest.raises(RequestError, match=words_of_it):
        METHODS["less"].configure(parameters)


def test_represent_refuses_what_depends_on_queries(adapter: Path, saved: str, tmp_path: Path) -> None:
    rows = [{"messages": [{"role": t.role, "content": t.content} for t in talk_]} for talk_ in TALKS[:4]]
    (tmp_path / "pool.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    store = tmp_path / "store"
    pool = tamis.read_pool([tmp_path / "pool.jsonl"], store=store)
    common = {"model": str(adapter), "template": "tulu", "store": store}
    for name, parameters in (
        ("less", {"keep": "similarity"}),
        ("less", {"shortlist": 0.5}),
        ("less-fast", {}),
    ):
        with pytest.raises(RequestError, match="depend on the queries; use `tamis select`"):
            tamis.represent(pool, name, parameters=parameters, **common)
    with pytest.raises(RequestError, match="is a whole model: give the checkpoints"):
        tamis.represent(pool, "less", **{**common, "model": saved})
    made = tamis.represent(pool, "less", parameters={"dimensions": 64}, **common)
    assert made.array().shape == (4, 128) and made.state == "complete" and len(made.digests) == 2
    lengths = np.linalg.norm(made.array(), axis=1)
    np.testing.assert_allclose(lengths, np.where(made.status == "ok", 1, 0), atol=2e-3)
    assert sorted(made.status) == ["no_target_tokens", "ok", "ok", "ok"]


@pytest.mark.parametrize("name", METHODS)
def test_cards_are_complete(name: str) -> None:
    assert list(METHODS[name].card) == list(CARD_FIELDS)
