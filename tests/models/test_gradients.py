"""Gradients of single rows: the plain loop's, for many architectures and adapters; nothing is left behind."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from tamis.core.errors import RequestError
from tests.models.tuned import tuned
from tests.models.zoo import ZOO, build

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")

from tamis.models.gradients import GradientEngine, loop_gradient  # noqa: E402
from tamis.models.projections import projection  # noqa: E402

MODES = {"gemma2": "padded", "opt": "loop", "mixtral": "loop"}  # the others: packed


def rows(*lengths: int, seed: int = 0) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Token ids and targets."""
    draw = np.random.default_rng(seed)
    ids = [draw.integers(0, 97, length).astype(np.int32) for length in lengths]
    targets = [(draw.random(length) < 0.6) & (np.arange(length) > 0) for length in lengths]
    for mask in targets:
        mask[-1] = True
    return ids, targets


def taken(engine: GradientEngine, ids: list[np.ndarray], targets: list[np.ndarray]) -> np.ndarray:
    """Plain gradients (n, p)."""
    return engine.features(ids, targets, projection("none", engine.layout, 0, 0, "cpu")).features


def alone(lm: Any, ids: list[np.ndarray], targets: list[np.ndarray]) -> tuple[np.ndarray, list[float]]:
    """The plain loop: gradients (n, p) and losses."""
    parameters = {name: p for name, p in lm.model.named_parameters() if name in lm.trained}
    found = [loop_gradient(lm, parameters, row, mask) for row, mask in zip(ids, targets, strict=True)]
    gradients = [torch.cat([part.float().flatten() for part in parts]).numpy() for _, parts in found]
    return np.stack(gradients), [loss for loss, _ in found]


def worst(found: np.ndarray, wanted: np.ndarray) -> float:
    """Largest error of a row, relative to its length."""
    assert found.shape == wanted.shape and np.linalg.norm(wanted, axis=1).min() > 1e-4
    return float((np.linalg.norm(found - wanted, axis=1) / np.linalg.norm(wanted, axis=1)).max())


def mode_of(engine: GradientEngine) -> str:
    return "loop" if engine.looped else engine.mode


@pytest.mark.parametrize("name", ZOO)
def test_gradients_are_those_of_the_plain_loop(name: str) -> None:
    lm = tuned(name)
    ids, targets = rows(5, 30, 2, 17, 40)
    wanted, losses = alone(lm, ids, targets)
    engine = GradientEngine(lm, 60)
    assert mode_of(engine) == MODES.get(name, "packed"), engine.why
    assert engine.parameters == wanted.shape[1] == sum(p.numel() for n, p in lm.model.named_parameters()
                                                       if "lora_" in n)  # fmt: skip
    found = engine.features(ids, targets, projection("none", engine.layout, 0, 0, "cpu"))
    assert worst(found.features, wanted) < 2e-5
    np.testing.assert_allclose(found.norms, np.linalg.norm(wanted, axis=1), rtol=1e-4)
    np.testing.assert_allclose(found.losses, losses, rtol=1e-5)


def test_the_loop_is_torch_s_own_gradient_of_the_mean_loss() -> None:
    lm = tuned("llama")
    (ids,), (target,) = rows(12)
    labels = np.where(target, ids, -100)
    names = dict(lm.model.named_parameters())
    for name in lm.trained:
        names[name].requires_grad_(True)
    given = {"input_ids": torch.tensor(ids[None]).long(), "labels": torch.tensor(labels[None]).long()}
    lm.model(**given).loss.backward()
    wanted = np.concatenate([names[name].grad.flatten().numpy() for name in lm.trained])
    lm.model.requires_grad_(False)
    assert worst(alone(lm, [ids], [target])[0], wanted[None]) < 1e-5
    assert worst(taken(GradientEngine(lm), [ids], [target]), wanted[None]) < 1e-5


@pytest.mark.parametrize("mode", ["packed", "padded", "single", "loop"])
def test_every_mode_gives_the_same(mode: str) -> None:
    lm = tuned("llama-tied")
    ids, targets = rows(5, 30, 2, 17, 40, 11)
    engine = GradientEngine(lm, 60, mode=mode)
    assert mode_of(engine) == mode
    assert worst(taken(engine, ids, targets), alone(lm, ids, targets)[0]) < 1e-5


@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_a_base_in_low_precision_under_an_adapter_in_full(name: str) -> None:
    lm = tuned(name, "bfloat16")
    kinds = {p.dtype for n, p in lm.model.named_parameters() if n in lm.trained}
    assert kinds == {torch.float32} and lm.model.get_input_embeddings().weight.dtype == torch.bfloat16
    ids, targets = rows(5, 30, 17)
    engine = GradientEngine(lm)
    assert mode_of(engine) == MODES.get(name, "packed"), engine.why
    assert worst(taken(engine, ids, targets), alone(lm, ids, targets)[0]) < 0.04


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("llama", {"use_rslora": True, "target_modules": ["q_proj", "down_proj"]}),
        ("gpt2", {"target_modules": ["c_attn"], "fan_in_fan_out": True}),  # Conv1D
        ("llama", {"layer_replication": [[0, 2], [0, 2]]}),
        ("mixtral", {"target_modules": ["k_proj", "o_proj"]}),
        (
            "llama",
            {
                "rank_pattern": {"v_proj": 5},
                "target_modules": ["q_proj", "v_proj"],
                "layers_to_transform": [1],
            },
        ),
    ],
    ids=["rslora", "conv1d", "layers twice", "attention of experts", "ranks"],
)
def test_forms_of_lora_that_hooks_cover(name: str, options: dict[str, Any]) -> None:
    lm = tuned(name, **options)
    ids, targets = rows(5, 17)
    engine = GradientEngine(lm)
    assert mode_of(engine) == "packed", engine.why
    assert worst(taken(engine, ids, targets), alone(lm, ids, targets)[0]) < 1e-5


@pytest.mark.parametrize(
    ("name", "options", "why"),
    [
        ("llama", {"use_dora": True}, "hooks do not cover .*lora_magnitude_vector"),
        ("qwen2", {"bias": "lora_only"}, r"hooks do not cover .*bias \(6 of 34 parameters\)"),
        ("llama", {"lora_bias": True}, "hooks do not cover .*lora_B"),
        ("llama", {"modules_to_save": ["lm_head"]}, "hooks do not cover .*modules_to_save"),
        ("llama", {"target_modules": ["embed_tokens"]}, "hooks do not cover .*lora_embedding_A"),
        ("llama", {"target_modules": ["lm_head"]}, "hooks do not cover .*lm_head"),
        ("llama", {"trainable_token_indices": [3, 4]}, "hooks do not cover .*trainable_tokens"),
        ("mixtral", {}, "the backward pass met 16 of 28 matrices"),  # experts keep theirs in one tensor
        ("llama", {"config": peft.IA3Config(task_type="CAUSAL_LM")}, "hooks do not cover .*ia3_l"),
    ],
    ids=["dora", "bias", "bias of lora", "saved", "embedding", "head", "tokens", "experts", "ia3"],
)
def test_adapters_that_hooks_do_not_cover_go_through_the_loop(
    name: str, options: dict[str, Any], why: str
) -> None:
    lm = tuned(name, **options)
    ids, targets = rows(5, 9)
    engine = GradientEngine(lm, 2048)
    assert engine.looped
    assert re.search(why, engine.why), engine.why
    np.testing.assert_array_equal(taken(engine, ids, targets), alone(lm, ids, targets)[0])


@pytest.mark.parametrize("kind", ["PromptTuningConfig", "PrefixTuningConfig"])
def test_adapters_that_are_tokens_score_the_row_s_own_tokens(kind: str) -> None:
    lm = tuned("llama", config=getattr(peft, kind)(task_type="CAUSAL_LM", num_virtual_tokens=3))
    ids, targets = rows(9)
    labels = torch.tensor(np.where(targets[0], ids[0], -100)[None]).long()
    with torch.no_grad():
        wanted = lm.model(input_ids=torch.tensor(ids[0][None]).long(), labels=labels).loss
    found = GradientEngine(lm).features(ids, targets, projection("count-sketch", [], 8, 0, "cpu"))
    assert found.losses[0] == pytest.approx(float(wanted), rel=1e-5) and found.norms[0] > 1e-4


def test_a_layer_that_is_called_twice_is_left_to_the_loop() -> None:
    lm = tuned("llama", target_modules=["q_proj"])
    layer = lm.model.get_base_model().model.layers[0].self_attn.q_proj
    inner = layer.forward
    layer.forward = lambda x: 0.5 * (inner(x) + inner(-x))
    ids, targets = rows(5, 9)
    engine = GradientEngine(lm)
    assert engine.looped and "called twice" in engine.why
    assert worst(taken(engine, ids, targets), alone(lm, ids, targets)[0]) < 1e-6


def test_a_wrong_product_is_found_by_the_check(monkeypatch: pytest.MonkeyPatch) -> None:
    from tamis.models.gradients import _Batch

    inner = _Batch._products
    monkeypatch.setattr(
        _Batch, "_products", lambda self, *given: inner(self, *given) * (1.01 if self.packed else 1)
    )
    engine = GradientEngine(tuned("llama"))
    assert engine.mode == "padded" and "packed: gradients differ from the plain loop by 1.0e-02" in engine.why
    monkeypatch.setattr(_Batch, "_products", lambda self, *given: inner(self, *given).roll(1, 1))
    assert GradientEngine(tuned("llama")).looped


def test_nothing_is_left_behind_in_the_model() -> None:
    def state(model: Any) -> list[Any]:
        hooks = [(len(m._forward_hooks), len(m._backward_hooks), m.training) for m in model.modules()]
        return [*hooks, *(p.requires_grad for p in model.parameters()), *(p.grad for p in model.parameters())]

    lm = tuned("llama", lora_dropout=0.3)
    before, weights = state(lm.model), [p.clone() for p in lm.model.parameters()]
    ids, targets = rows(5, 30, 17)
    for mode in ("packed", "padded", "loop"):
        for dropout in (False, True):
            engine = GradientEngine(lm, 30, dropout, mode)
            taken(engine, ids, targets)
    assert state(lm.model) == before
    assert all(torch.equal(a, b) for a, b in zip(weights, lm.model.parameters(), strict=True))
    engine = GradientEngine(lm)
    with pytest.raises(ZeroDivisionError):
        engine.features(ids, targets, projection("none", engine.layout, 0, 0, "cpu"), lambda slot, g: 1 / 0)
    assert state(lm.model) == before
    assert {config._attn_implementation for m in lm.model.modules() if (config := getattr(m, "config", None))
            and hasattr(config, "_attn_implementation")} == {"sdpa"}  # fmt: skip


def test_a_whole_model_and_rows_without_targets_are_refused() -> None:
    with pytest.raises(RequestError, match="with respect to an adapter, and this is a whole model"):
        GradientEngine(build("llama"))
    engine = GradientEngine(tuned("llama", target_modules=["q_proj"]))
    ids, targets = rows(5, 6)
    for wrong in (np.zeros(6, bool), np.ones(6, bool), np.ones(5, bool)):
        with pytest.raises(ValueError, match="sequence 1: expected a target"):
            taken(engine, ids, [targets[0], wrong])
