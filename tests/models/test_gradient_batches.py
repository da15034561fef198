"""Batches of gradients: composition, order, threads, memory, numbers that are not finite, and dropout."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from tests.models.test_gradients import alone, rows, taken, worst
from tests.models.tuned import tuned

torch = pytest.importorskip("torch")
pytest.importorskip("peft")

from tamis.models import gradients as module  # noqa: E402
from tamis.models.gradients import GradientEngine, _Batch  # noqa: E402
from tamis.models.projections import projection  # noqa: E402

LENGTHS = tuple(np.random.default_rng(9).integers(2, 45, 24).tolist())


@pytest.fixture(scope="module")
def lm() -> Any:
    return tuned("llama")


def sketched(engine: GradientEngine, ids: Any, targets: Any, **given: Any) -> Any:
    return engine.features(ids, targets, projection("count-sketch", engine.layout, 256, 0, "cpu"), **given)


@pytest.mark.parametrize("mode", ["packed", "padded"])
def test_composition_of_batches_and_order_change_nothing(lm: Any, mode: str) -> None:
    ids, targets = rows(*LENGTHS)
    wanted, _ = alone(lm, ids, targets)
    engine = GradientEngine(lm, 60, mode=mode)
    for budget in (1, 37, 200, 10**6):
        engine.batch_tokens = budget
        assert worst(taken(engine, ids, targets), wanted) < 1e-5, budget
    engine.batch_tokens = 200
    order = np.random.default_rng(2).permutation(len(ids))
    shuffled = taken(engine, [ids[i] for i in order], [targets[i] for i in order])
    assert worst(shuffled[np.argsort(order)], wanted) < 1e-5


def test_the_same_batches_give_the_same_bits(lm: Any) -> None:
    ids, targets = rows(*LENGTHS)
    first, second = (sketched(GradientEngine(lm, 100), ids, targets) for _ in range(2))
    np.testing.assert_array_equal(first.features, second.features)
    np.testing.assert_array_equal(first.norms, second.norms)
    np.testing.assert_array_equal(first.losses, second.losses)


@pytest.fixture
def three_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def test_batches_side_by_side_give_the_same(lm: Any, three_threads: None) -> None:
    ids, targets = rows(*LENGTHS)
    engine = GradientEngine(lm, 100)
    together = sketched(engine, ids, targets)
    torch.set_num_threads(1)
    one = sketched(engine, ids, targets)
    np.testing.assert_array_equal(together.features, one.features)
    np.testing.assert_array_equal(together.losses, one.losses)
    torch.set_num_threads(3)
    looped = GradientEngine(lm, 100, mode="loop")  # it changes the model for a moment, one row at a time
    assert worst(sketched(looped, ids[:6], targets[:6]).features, one.features[:6]) < 1e-5


def test_progress_counts_every_token_once(lm: Any) -> None:
    ids, targets = rows(*LENGTHS)
    done: list[int] = []
    sketched(GradientEngine(lm, 100), ids, targets, advance=done.append)
    assert sum(done) == sum(LENGTHS) and len(done) > 3


def test_no_rows_are_no_features(lm: Any) -> None:
    found = sketched(GradientEngine(lm), [], [])
    assert found.features.shape == (0, 256) and found.norms.shape == found.losses.shape == (0,)


# --- memory ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["packed", "padded"])
def test_one_matrix_is_taken_at_a_time_and_at_most_so_many_numbers(
    lm: Any, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(module._ROW_NUMBERS, "cpu", 500)
    ids, targets = rows(*LENGTHS)
    engine = GradientEngine(lm, 10**6, mode=mode)
    alive, most, seen = 0, 0, []

    class Held:
        def __del__(self) -> None:
            nonlocal alive
            alive -= 1

    inner = _Batch._products

    def counted(self: Any, slot: Any, *given: Any) -> Any:
        nonlocal alive, most
        found = inner(self, slot, *given)
        found.held = Held()
        alive += 1
        most = max(most, alive)
        seen.append((slot.name, len(found)))
        assert found.numel() <= 500 or len(found) == 1
        return found

    monkeypatch.setattr(_Batch, "_products", counted)
    wanted, _ = alone(lm, ids, targets)
    assert worst(taken(engine, ids, targets), wanted) < 1e-5
    assert alive == 0 and most <= 2  # the one that is made replaces the one before
    names = list(dict.fromkeys(name for name, _ in seen))
    assert len(names) == len(engine.layout)
    assert [name for name in names for _ in range(sum(n == name for n, _ in seen))] == [n for n, _ in seen]
    assert sum(count for _, count in seen) == len(ids) * len(names) and len(seen) > 2 * len(names)


def test_out_of_memory_halves_the_batch_and_shortens_no_row(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tuned("llama", target_modules=["q_proj", "v_proj"])
    ids, targets = rows(20, 30, 80, 10, 40, 7)
    wanted, _ = alone(lm, ids, targets)
    engine = GradientEngine(lm, 10**6)
    inner, tried = engine._states, []

    def small(given: Any, packed: bool) -> Any:
        tried.append(sum(map(len, given)))
        if tried[-1] > 70:
            raise torch.OutOfMemoryError("too much")
        return inner(given, packed)

    monkeypatch.setattr(engine, "_states", small)
    found = engine.features(ids, targets, projection("none", engine.layout, 0, 0, "cpu"))
    assert tried == [187, 50, 90, 80, 10, 40, 7]  # by budgets of 93 and 45
    assert list(engine.failed) == [2] and "80 tokens do not fit" in engine.failed[2]
    assert all(np.isnan(part[2]).all() for part in (found.features, found.norms, found.losses))
    kept = [0, 1, 3, 4, 5]
    assert worst(found.features[kept], wanted[kept]) < 1e-5
    monkeypatch.undo()
    assert worst(taken(engine, ids, targets), wanted) < 1e-5 and not engine.failed


# --- numbers that are not finite -------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["packed", "padded", "loop"])
def test_a_broken_row_is_nan_and_its_neighbours_are_not(mode: str) -> None:
    lm = tuned("llama")
    ids, targets = rows(8, 20, 13, 9)
    ids = [np.where(row == 96, 5, row).astype(np.int32) for row in ids]
    wanted, _ = alone(lm, ids, targets)
    engine = GradientEngine(lm, 60, mode=mode)  # checked while all is well
    lm.model.get_input_embeddings().weight.data[96] = torch.nan
    ids[1][3] = 96
    found = engine.features(ids, targets, projection("none", engine.layout, 0, 0, "cpu"))
    assert np.isnan(found.features[1]).any() and np.isnan(found.norms[1]) and np.isnan(found.losses[1])
    assert worst(found.features[[0, 2, 3]], wanted[[0, 2, 3]]) < 1e-5
    sketch = sketched(engine, ids, targets).features
    assert not np.isfinite(sketch[1]).all() and np.isfinite(sketch[[0, 2, 3]]).all()


def test_weights_that_are_nan_never_give_a_number() -> None:
    lm = tuned("llama")
    lm.model.get_base_model().model.layers[1].mlp.up_proj.weight.data[0, 0] = torch.nan
    ids, targets = rows(8, 20)
    found = sketched(GradientEngine(lm), ids, targets)
    assert not np.isfinite(found.features).all(axis=1).any() and np.isnan(found.losses).all()


# --- dropout ---------------------------------------------------------------------------------------------


def test_dropout_is_off_unless_asked_for_and_follows_from_the_row() -> None:
    lm = tuned("llama", lora_dropout=0.4)
    ids, targets = rows(9, 9, 30, 2, 17)
    ids[1], targets[1] = ids[0].copy(), targets[0].copy()
    ids[1][-1] = (ids[1][-1] + 1) % 97
    plain, _ = alone(lm, ids, targets)
    assert worst(taken(GradientEngine(lm), ids, targets), plain) < 1e-5
    noisy = [
        taken(GradientEngine(lm, budget, True, mode), ids, targets)
        for budget, mode in ((1, "packed"), (40, "packed"), (40, "padded"), (1, "single"), (1, "loop"))
    ]
    assert np.linalg.norm(noisy[0] - plain, axis=1).min() > 0.05 * np.linalg.norm(plain, axis=1).min()
    for other in noisy[1:]:
        assert worst(other, noisy[0]) < 1e-5
    # A second engine of the same model does not put the noise in twice.
    again = taken(GradientEngine(lm, 40, True), ids[::-1], targets[::-1])[::-1]
    assert worst(again, noisy[0]) < 1e-5


def test_noise_has_the_rate_and_the_mean_of_dropout_and_differs_by_row_and_layer() -> None:
    lm = tuned("llama", lora_dropout=0.25)
    engine = GradientEngine(lm, dropout=True)
    ids, _ = rows(400, 400)
    layers = list(engine._dropout.layers.values())
    assert len(layers) == 14
    hooks = engine._dropout.hooks()
    ones = torch.ones(1, 800, 32)
    with engine._dropout.of(ids, packed=True):
        first, second = (layers[i](ones)[0] for i in (0, 1))
    for hook in hooks:
        hook.remove()
    for part in (first, second):
        assert part.unique().tolist() == pytest.approx([0, 4 / 3])
        assert abs(float(part.mean()) - 1) < 0.02
    same = [float((a == b).float().mean()) for a, b in ((first, second), (first[:400], first[400:]))]
    assert same == pytest.approx([0.625, 0.625], abs=0.02)  # by chance: 0.75^2 + 0.25^2
    assert torch.equal(layers[0](ones), ones)


def test_rows_that_the_hooks_cannot_tell_apart_go_through_the_loop_and_the_next_ones_do_not(monkeypatch):
    lm = tuned("llama")
    engine = GradientEngine(lm)
    generator = np.random.default_rng(3)
    ids = [generator.integers(0, 97, length).astype(np.int32) for length in (9, 4, 17)]
    targets = [np.arange(len(row)) > 1 for row in ids]
    whole = projection("none", engine.layout, 0, 0, "cpu")
    wanted = GradientEngine(lm, mode="loop").features(ids, targets, whole)

    def unmet(self, matrices):
        raise NotImplementedError("an expert met no token")

    with monkeypatch.context() as patched:
        patched.setattr(_Batch, "check", unmet)
        found = engine.features(ids, targets, whole)
    np.testing.assert_array_equal(found.features, wanted.features)
    np.testing.assert_array_equal(found.norms, wanted.norms)
    assert not engine.looped and engine.why.endswith("some rows by the loop: an expert met no token")
    again = engine.features(ids, targets, whole)
    np.testing.assert_allclose(again.features, wanted.features, atol=1e-5)
