"""Batching: rows together are the rows alone, for many architectures; what is not exact is not used."""

from __future__ import annotations

import itertools
from typing import ClassVar

import numpy as np
import pytest

from tamis.core.errors import RequestError
from tamis.models.lm import last_hidden_state
from tamis.models.packing import Executor, attention_by_row, batches
from tests.models.zoo import ZOO, build

torch = pytest.importorskip("torch")
UNPACKED = {"gemma2"}  # soft-capped attention


def rows(count: int, seed: int = 0, longest: int = 60) -> list[np.ndarray]:
    draw = np.random.default_rng(seed)
    return [draw.integers(0, 97, draw.integers(1, longest)).astype(np.int32) for _ in range(count)]


def ramp(length: int) -> np.ndarray:
    return (np.arange(1, length + 1) / length).astype(np.float32)


def alone(lm, sequences) -> np.ndarray:
    """The obvious loop: one row at a time through the whole model, last of all hidden states."""
    out = []
    for ids in sequences:
        with torch.no_grad():
            run = lm.model(input_ids=torch.tensor(ids[None].astype(np.int64)), output_hidden_states=True)
        out.append((torch.tensor(ramp(len(ids))) @ run.hidden_states[-1][0].float()).numpy())
    return np.stack(out)


@pytest.mark.parametrize("name", ZOO)
def test_body_alone_gives_the_last_of_all_hidden_states(name):
    lm = build(name)
    ids = torch.arange(40)[None] % 97
    with torch.no_grad():
        wanted = lm.model(input_ids=ids, output_hidden_states=True)
        got = last_hidden_state(lm.backbone, ids)
    torch.testing.assert_close(got, wanted.hidden_states[-1], rtol=0, atol=1e-6)
    assert got.shape[-1] == lm.width


@pytest.mark.parametrize("name", ZOO)
def test_rows_together_are_rows_alone(name):
    lm = build(name)
    sequences = rows(12)
    wanted = alone(lm, sequences)
    assert Executor(lm).mode == ("padded" if name in UNPACKED else "packed")
    for mode in {"packed", "padded", "single"} - ({"packed"} if name in UNPACKED else set()):
        got = Executor(lm, 150, mode).weighted_sums(sequences, ramp)
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=2e-5, err_msg=mode)


@pytest.mark.parametrize("mode", ["packed", "padded", "single"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_composition_of_batches_changes_nothing(mode, dtype):
    lm = build("llama", dtype)
    sequences = rows(30, seed=1)
    found = [Executor(lm, budget, mode).weighted_sums(sequences, ramp) for budget in (1, 37, 200, 10**6)]
    order = np.random.default_rng(2).permutation(len(sequences))
    shuffled = Executor(lm, 200, mode).weighted_sums([sequences[i] for i in order], ramp)
    found.append(shuffled[np.argsort(order)])
    unit = [part / np.linalg.norm(part, axis=1, keepdims=True) for part in found]
    for part in unit[1:]:
        if dtype == "float32":
            np.testing.assert_allclose(part, unit[0], atol=1e-5)
        assert ((part * unit[0]).sum(axis=1) > 1 - 1e-3).all()


def test_padding_on_the_left_with_a_mask_gives_the_same():
    lm = build("mistral-window")
    ids = rows(1, seed=3, longest=40)[0]
    padded = torch.tensor(np.concatenate([np.zeros(9), ids])[None].astype(np.int64))
    mask = torch.tensor([[0] * 9 + [1] * len(ids)])
    positions = (mask.cumsum(1) - 1).clamp_min(0)
    with torch.no_grad():
        hidden = lm.backbone(padded, attention_mask=mask, position_ids=positions).last_hidden_state[0, 9:]
    (((_, got),),) = list(Executor(lm).hidden([ids]))
    torch.testing.assert_close(got, hidden, rtol=0, atol=2e-5)


class Careless(Executor):
    """Packs with the library's own attention, and one of the arguments that silently break it."""

    arguments: ClassVar[dict] = {}

    def _packed(self, rows, lengths):
        ids = torch.tensor(np.concatenate(rows).astype(np.int64))[None]
        positions = torch.tensor(np.concatenate([np.arange(length) for length in lengths]))[None]
        arguments = {name: value(ids) for name, value in self.arguments.items()}
        return self.backbone(ids, position_ids=positions, **arguments).last_hidden_state


@pytest.mark.parametrize(
    "arguments",
    [
        {},  # the cache, which is the default
        {"use_cache": lambda ids: False, "attention_mask": torch.ones_like},
    ],
    ids=["default cache", "mask of ones"],
)
def test_silent_packing_errors_are_found_by_the_check(arguments):
    careless = type("Careless", (Careless,), {"arguments": arguments})
    lm = build("llama")
    executor = careless(lm)
    assert executor.mode == "padded" and "packed: hidden states differ" in executor.why
    with pytest.raises(RequestError, match="hidden states differ"):
        careless(lm, mode="packed")


def test_packed_forward_is_called_without_mask_and_cache():
    lm = build("llama")
    executor, calls = Executor(lm, mode="packed"), []
    lm.backbone.register_forward_pre_hook(lambda m, args, given: calls.append(given), with_kwargs=True)
    list(executor.hidden(rows(3)))
    (given,) = calls
    assert given["use_cache"] is False and given["attention_mask"] is None
    assert (given["position_ids"] == 0).sum() == 3


def test_a_leak_between_rows_is_found_in_low_precision_too():
    class Leaking(Executor):
        def _packed(self, rows, lengths):
            first, *others = super()._packed(rows, lengths)[0].split(lengths)
            return torch.cat([first, *(hidden.roll(1, 0) for hidden in others)])[None]

    assert Leaking(build("llama", "bfloat16")).mode == "padded"


def test_when_nothing_agrees_rows_go_one_at_a_time():
    class Noisy(Executor):
        def _forward(self, rows, mode):
            return [hidden + (len(rows) > 1) for hidden in super()._forward(rows, mode)]

    executor = Noisy(build("llama"))
    assert executor.mode == "single" and "packed" in executor.why and "padded" in executor.why
    assert [len(batch) for batch in executor.hidden(rows(3))] == [1, 1, 1]


def test_a_mode_that_a_model_cannot_do_is_refused_when_asked_for():
    with pytest.raises(RequestError, match="no softcap"):
        Executor(build("gemma2"), mode="packed")
    with pytest.raises(RequestError, match="expected auto, packed"):
        Executor(build("llama"), mode="pack")
    with pytest.raises(RequestError, match="batch_tokens=0"):
        Executor(build("llama"), 0)


def test_attention_is_put_back_after_an_error():
    lm = build("llama")
    before = lm.model.config._attn_implementation
    with pytest.raises(ZeroDivisionError), attention_by_row(lm.backbone, (3,)):
        assert lm.model.config._attn_implementation != before
        raise ZeroDivisionError
    assert lm.model.config._attn_implementation == before


def test_batches_hold_every_row_once_and_keep_to_the_budget():
    draw = np.random.default_rng(5)
    for _, mode in itertools.product(range(50), ("packed", "padded", "single")):
        lengths = draw.integers(1, 40, draw.integers(0, 30)).tolist()
        budget = int(draw.integers(1, 120))
        cut = list(batches(range(len(lengths)), lengths, budget, mode))
        assert sorted(row for batch in cut for row in batch) == list(range(len(lengths)))
        for batch in cut:
            longest = max(lengths[row] for row in batch)
            used = sum(lengths[row] for row in batch) if mode == "packed" else longest * len(batch)
            assert batch and (len(batch) == 1 or (used <= budget and mode != "single"))
        if mode == "packed":
            assert [row for batch in cut for row in batch] == list(range(len(lengths)))


def test_batches_by_hand():
    lengths = [3, 5, 2, 9, 4]
    assert list(batches(range(5), lengths, 8, "packed")) == [[0, 1], [2], [3], [4]]
    assert list(batches(range(5), lengths, 10, "padded")) == [[3], [1, 4], [0, 2]]


def test_out_of_memory_halves_the_budget_and_shortens_no_row():
    class Small(Executor):
        def _forward(self, rows, mode):
            if sum(map(len, rows)) > 70:
                raise torch.OutOfMemoryError("too much")
            return super()._forward(rows, mode)

    lm = build("llama")
    executor = Small(lm, 10**6, "single")  # so that the check, which has no batches, passes
    executor.mode = "packed"
    sequences = [*rows(20), np.arange(80, dtype=np.int32), *rows(3, seed=4)]
    got = executor.weighted_sums(sequences, ramp)
    assert executor.batch_tokens <= 70
    assert list(executor.failed) == [20] and "80 tokens do not fit" in executor.failed[20]
    assert np.isnan(got[20]).all()
    kept = [i for i in range(len(sequences)) if i != 20]
    np.testing.assert_allclose(got[kept], alone(lm, [sequences[i] for i in kept]), rtol=1e-4, atol=2e-5)


def test_progress_counts_every_token_once():
    done: list[int] = []
    sequences = rows(10)
    Executor(build("llama"), 100).weighted_sums(sequences, ramp, done.append)
    assert sum(done) == sum(map(len, sequences)) and len(done) > 1


def test_a_row_without_tokens_is_an_error_of_the_caller():
    with pytest.raises(ValueError, match="sequence 1 has no tokens"):
        list(Executor(build("llama")).hidden([np.arange(3), np.arange(0)]))


@pytest.fixture
def three_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def test_batches_side_by_side_come_in_order_and_are_the_same(three_threads):
    lm = build("llama")
    own = {config._attn_implementation for config in {id(m.config): m.config for m in lm.backbone.modules()
                                                      if hasattr(m, "config")}.values()}  # fmt: skip
    sequences = rows(60)
    executor = Executor(lm, 100)
    seen = [row for rows_, _ in executor.reduced(sequences, lambda rows_, states: None) for row in rows_]
    assert seen == list(range(60))
    together = executor.weighted_sums(sequences, ramp)
    torch.set_num_threads(1)
    np.testing.assert_allclose(together, executor.weighted_sums(sequences, ramp), rtol=0, atol=1e-6)
    after = {m.config._attn_implementation for m in lm.backbone.modules() if hasattr(m, "config")}
    assert after == own


def test_a_fault_side_by_side_is_raised_and_leaves_the_model_as_it_was(three_threads):
    lm = build("llama")
    executor = Executor(lm, 50)

    def fault(rows_, states):
        if 20 in rows_:
            raise ZeroDivisionError
        return rows_

    with pytest.raises(ZeroDivisionError):
        list(executor.reduced(rows(40), fault))
    assert torch.get_num_threads() == 3
    assert all(m.config._attn_implementation != "tamis_packed" for m in lm.backbone.modules()
               if hasattr(m, "config"))  # fmt: skip
    assert len(list(executor.reduced(rows(40), lambda rows_, states: None))) > 3
