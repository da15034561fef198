"""Losses of single tokens: the whole model's, whatever the batch, for many architectures; goldens."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tamis.core.errors import RequestError
from tamis.models import losses as module
from tamis.models.lm import load_model
from tamis.models.losses import LossEngine
from tests.conftest import Conformance, shared
from tests.models.test_packing import rows
from tests.models.zoo import ZOO, build

torch = pytest.importorskip("torch")


def masks(sequences: list[np.ndarray], seed: int = 0) -> list[np.ndarray]:
    draw = np.random.default_rng(seed)
    return [(draw.random(len(ids)) < 0.5) & (np.arange(len(ids)) > 0) for ids in sequences]


def losses_slow(lm, ids: np.ndarray) -> np.ndarray:
    """Losses of all tokens but the first, from the logits of the whole model."""
    given = torch.tensor(ids[None].astype(np.int64))
    with torch.no_grad():
        log_probabilities = lm.model(input_ids=given).logits[0].float().log_softmax(-1)
    return -log_probabilities[np.arange(len(ids) - 1), ids[1:].astype(np.int64)].numpy()


@pytest.mark.parametrize("name", ZOO)
def test_losses_are_those_of_the_whole_model(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = build(name)
    sequences = rows(10)
    wanted = masks(sequences)
    monkeypatch.setattr(module, "POSITIONS", 7)
    monkeypatch.setattr(module, "COLUMNS", 30)
    for budget in (1, 60, 10_000):
        found = LossEngine(lm, budget).losses(sequences, wanted)
        for ids, mask, values in zip(sequences, wanted, found, strict=True):
            np.testing.assert_allclose(values, losses_slow(lm, ids)[mask[1:]], rtol=1e-4, atol=2e-5)


def test_logits_of_unwanted_tokens_never_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = build("llama")
    engine = LossEngine(lm)
    seen: list[tuple[int, int]] = []
    inner = engine._logits

    def counted(hidden, words):
        logits = inner(hidden, words)
        seen.append(tuple(logits.shape))
        return logits

    monkeypatch.setattr(engine, "_logits", counted)
    monkeypatch.setattr(module, "POSITIONS", 16)
    sequences = rows(20)
    wanted = masks(sequences)
    engine.losses(sequences, wanted)
    assert sum(positions for positions, _ in seen) == sum(int(mask.sum()) for mask in wanted)
    assert max(positions for positions, _ in seen) <= 16


def test_a_row_without_wanted_tokens_has_no_losses() -> None:
    ids = np.arange(5, dtype=np.int32)
    nothing = LossEngine(build("llama")).losses([ids, ids], [ids < 0, ids > 3])
    assert [len(values) for values in nothing] == [0, 1]


def test_the_first_token_cannot_be_wanted_and_marks_must_fit() -> None:
    engine = LossEngine(build("llama"))
    with pytest.raises(ValueError, match="sequence 0: its first token"):
        engine.losses([np.arange(3)], [np.array([True, False, False])])
    with pytest.raises(ValueError, match="sequence 0: 2 marks for 3 tokens"):
        engine.losses([np.arange(3)], [np.array([False, True])])


def test_a_head_that_does_more_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = build("llama")
    inner = LossEngine._logits
    monkeypatch.setattr(LossEngine, "_logits", lambda self, *given: 2 * inner(self, *given))
    with pytest.raises(RequestError, match="does more to its logits"):
        LossEngine(lm)


def test_rows_beyond_a_table_of_positions_are_refused_before_work() -> None:
    build("gpt2").check_positions(256)
    build("llama").check_positions(10**6)
    with pytest.raises(RequestError, match=r"ends at 256 tokens.*give --max-tokens 256"):
        build("gpt2").check_positions(257)


def test_progress_counts_every_token() -> None:
    sequences = rows(9)
    done: list[int] = []
    LossEngine(build("llama"), 100).losses(sequences, masks(sequences), done.append)
    assert sum(done) == sum(map(len, sequences)) and len(done) > 1


def test_token_losses_of_the_reference(conforms: Conformance) -> None:
    golden = shared("golden")
    engine = LossEngine(load_model(str(golden / "model"), "float32", "cpu"))
    wanted = np.load(golden / "losses_tokens.npz")
    lines = (golden / "encodings.jsonl").read_text(encoding="utf-8").splitlines()
    encoded = [row for row in map(json.loads, lines) if row["variant"] == "tulu"]
    ids = {row["id"]: np.array(row["input_ids"], np.int32) for row in encoded}
    pool = [
        json.loads(line)["id"] for line in (golden / "pool.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    sequences = [ids[name] for name in pool]
    found = engine.losses(sequences, [np.arange(len(row)) > 0 for row in sequences])
    np.testing.assert_array_equal([len(row) for row in found], np.diff(wanted["offsets"]))
    conforms.close("token losses", np.concatenate(found), wanted["nll"], atol=2e-5)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("llama", {}),
        ("gemma2", {"final_logit_softcapping": 3.0}),
        ("cohere", {"logit_scale": 0.3}),
        ("granite", {"logits_scaling": 4.0}),
        ("phi", {}),
    ],
    ids=["plain", "softcap", "scale", "scaling", "bias"],
)
def test_slopes_of_states_are_those_of_autograd(
    name: str, changes: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = build(name if name in ZOO else "llama", **changes)
    engine = LossEngine.__new__(LossEngine)
    with monkeypatch.context() as patch:  # Llama itself has no scale: only the arithmetic is looked at
        patch.setattr(LossEngine, "_check", lambda self: None)
        engine.__init__(lm)
    assert (engine._head.bias is not None) == (name == "phi")
    draw = torch.Generator().manual_seed(0)
    hidden = torch.randn(53, lm.width, generator=draw, requires_grad=True)
    target = torch.randint(0, 97, (53,), generator=draw)
    weights = torch.rand(53, generator=draw)
    logits = torch.nn.functional.linear(hidden, engine._head.weight, engine._head.bias)
    logits = logits * changes.get("logit_scale", 1.0) / changes.get("logits_scaling", 1.0)
    cap = changes.get("final_logit_softcapping")
    logits = logits if cap is None else cap * torch.tanh(logits / cap)
    losses = torch.nn.functional.cross_entropy(logits, target, reduction="none")
    (wanted,) = torch.autograd.grad((weights * losses).sum(), hidden)
    assert cap is None or float(logits.detach().abs().max()) > 0.1 * cap
    for positions in (16, 17, 52, 53, 1000):  # the last piece of 53: 5, 2, 1, all, all
        monkeypatch.setitem(module._GRADIENT_BYTES, "cpu", positions * 4 * 97)
        found, slope = engine.gradient(hidden.detach(), target, weights)
        torch.testing.assert_close(found, losses.detach(), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(slope, wanted, rtol=1e-4, atol=1e-7)
        assert not slope.requires_grad
