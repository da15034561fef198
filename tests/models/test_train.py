"""Training: labels, losses, steps, moments by name, LoRA of several architectures, kills, the store."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tamis
from tamis.core.cost import totals
from tamis.core.errors import RequestError, RunError
from tamis.core.store import Store
from tamis.lab import NANO
from tamis.models import _trainer
from tamis.models import train as module
from tamis.models._training_rows import labels_of, packed, prepare
from tamis.models.lm import load_model
from tamis.models.losses import LossEngine
from tamis.models.moments import MomentsCallback, epochs_of, read_moments, read_rates, write_moments
from tamis.models.recipes import Recipe
from tamis.models.render import Renderer
from tamis.models.train import train
from tests.models.tiny import tokenizer
from tests.models.zoo import ZOO, build

torch = pytest.importorskip("torch")
pytest.importorskip("peft")

ROWS = [
    [("user", "Add 2 and 3."), ("assistant", "5")],
    [("user", "Write cat backwards."), ("assistant", "tac"), ("user", "And dog?"), ("assistant", "god")],
    [("user", "No answer to this one.")],
    [("system", "Be short."), ("user", "Say hi."), ("assistant", "Hi there, hi there, hi there.")],
    [("user", "Sort 3 1 2."), ("assistant", "1 2 3")],
]


def pool_of(folder: Path, rows: list[list[tuple[str, str]]] = ROWS) -> Any:
    lines = [json.dumps({"messages": [{"role": r, "content": c} for r, c in row]}) for row in rows]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "pool.jsonl").write_text("\n".join(lines) + "\n")
    return tamis.read_pool([folder / "pool.jsonl"], store=folder / "store")


def nano(folder: Path, recipe: dict[str, Any], **given: Any) -> Any:
    options = {"model": str(NANO), "store": folder / "store", "device": "cpu", **given}
    return train(options.pop("pool", None) or pool_of(folder), recipe=recipe, **options)


# --- rows ------------------------------------------------------------------------------------------------


def test_labels_are_the_renderers_mask(tmp_path: Path) -> None:
    pool = pool_of(tmp_path)
    renderer = Renderer(load_model(str(NANO), tokenizer_only=True).tokenizer, max_tokens=24)
    names = pool.ids.tolist()
    found = prepare(renderer, Recipe(max_tokens=24), names, pool.conversations(0, 5), seed=0)
    assert (found.given, found.dropped) == (5, {"no_target_tokens": 1})
    assert found.names == sorted(set(names) - {names[2]})
    by_name = dict(zip(names, renderer.render_many(pool.conversations(0, 5)), strict=True))
    assert found.truncated == sum(by_name[name].truncated for name in found.names) > 0
    for name, ids, labels in zip(found.names, found.ids, found.labels, strict=True):
        row = by_name[name]
        np.testing.assert_array_equal(ids, row.ids)
        np.testing.assert_array_equal(labels != -100, row.mask)
        np.testing.assert_array_equal(labels[row.mask], row.ids[row.mask])
        np.testing.assert_array_equal(labels_of(row, loss_on_prompt=True)[1:], row.ids[1:])
        assert labels_of(row, loss_on_prompt=True)[0] == -100
    assert found.targets == sum(int(by_name[name].mask.sum()) for name in found.names)


def test_packed_rows_follow_each_other() -> None:
    parts = [np.array([1, 2, 3]), np.array([4]), np.array([5, 6, 7, 8])]
    assert [part.tolist() for part in packed(parts, 3)] == [[1, 2, 3], [4, 5, 6], [7, 8]]


def test_padding_has_no_label() -> None:
    row = {"input_ids": np.array([5, 6], np.int32), "labels": np.array([-100, 6], np.int32)}
    longer = {"input_ids": np.array([7, 8, 9], np.int32), "labels": np.array([-100, -100, 9], np.int32)}
    batch = _trainer.padded([row, longer])
    assert batch["labels"].tolist() == [[-100, 6, -100], [-100, -100, 9]]
    assert batch["input_ids"].tolist() == [[5, 6, 0], [7, 8, 9]]


def test_every_row_once_an_epoch_in_an_order_of_its_own() -> None:
    order = _trainer.Shuffled(list(range(1, 11)), 4, seed=3)
    epochs = []
    for epoch in (0, 1, 0):
        order.epoch = epoch
        epochs.append(list(order))
    assert epochs[0] == epochs[2] != epochs[1]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(10))
    assert all(sorted(step, reverse=True) == step for step in (epochs[0][:4], epochs[0][4:8], epochs[0][8:]))
    assert list(_trainer.Shuffled(list(range(1, 11)), 4, seed=4)) != epochs[0]


# --- steps -----------------------------------------------------------------------------------------------


def test_the_loss_of_a_step_is_the_mean_over_the_targets_of_all_its_rows(tmp_path: Path) -> None:
    """Whatever the micro-batches: the first of two steps is taken before any weight has moved."""
    lm = load_model(str(NANO), "float32", "cpu")
    renderer = Renderer(lm.tokenizer, max_tokens=512)
    rows = [row for row in renderer.render_many(pool_of(tmp_path).conversations(0, 5)) if row.mask.any()]
    losses = LossEngine(lm).losses([row.ids for row in rows], [row.mask for row in rows])
    wanted = np.concatenate(losses).mean(dtype=np.float64)
    for tokens in (1, 100, 4096):
        made = nano(tmp_path / str(tokens), {"recipe": "cherry", "batch_rows": 4}, device_tokens=tokens)
        assert made.summary["loss_first"] == pytest.approx(wanted, rel=1e-5)
    one = nano(tmp_path / "one", {"batch_rows": 1, "epochs": 1, "learning_rate": 1e-12}, pool=pool_of(
        tmp_path / "one", ROWS[:1]
    ))  # fmt: skip
    assert one.summary["loss_first"] == pytest.approx(losses[0].mean(dtype=np.float64), rel=1e-5)


def test_steps_tokens_and_bill(tmp_path: Path) -> None:
    made = nano(tmp_path, {"recipe": "cherry", "batch_rows": 3, "epochs": 2})
    done = made.summary
    assert (done["rows_given"], done["rows"], done["dropped"]) == (5, 4, {"no_target_tokens": 1})
    assert (done["steps"], done["examples"], done["trained_parameters"]) == (4, 8, done["parameters"])
    rates = [entry["learning_rate"] for entry in read_rates(made.path)]
    wanted = [0.0, *(1e-5 * (1 + np.cos(np.pi * k / 3)) for k in range(3))]  # one step of warm-up
    np.testing.assert_allclose(rates, wanted, atol=1e-12)
    means = [entry["learning_rate_mean"] for entry in epochs_of(made.path)]
    np.testing.assert_allclose(means, [np.mean(wanted[:2]), np.mean(wanted[2:])])
    assert (made.path / "ids.txt").read_text().split() == sorted(pool_of(tmp_path).ids[[0, 1, 3, 4]])
    bill = totals(tmp_path / "store", {made.digest})[made.digest]
    assert bill["tokens"] == done["tokens"] and bill["flops"] == 6 * done["parameters"] * done["tokens"]
    assert not Store(tmp_path / "store").check()
    loaded = load_model(str(made.path), "float32", "cpu")
    assert (
        loaded.tokenizer.chat_template == load_model(str(NANO), tokenizer_only=True).tokenizer.chat_template
    )


def test_never_trained_twice_and_ranks_play_no_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Ranked:
        def __init__(self, positions: list[int]) -> None:
            self.pool, self.positions = pool, np.array(positions)

    pool = pool_of(tmp_path)
    recipe = {"epochs": 1, "batch_rows": 2}
    first = nano(tmp_path, recipe, pool=Ranked([4, 0, 1]), out=tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (
        first.path / "model.safetensors"
    ).read_bytes()
    monkeypatch.setattr(module._Run, "train", lambda *given: pytest.fail("trained again"))
    assert nano(tmp_path, recipe, pool=Ranked([0, 1, 4])) == first
    for other in ({"seed": 1}, {"recipe": {**recipe, "epochs": 2}}, {"pool": Ranked([0, 1])}):
        with pytest.raises(pytest.fail.Exception):
            nano(tmp_path, **{"recipe": recipe, "pool": Ranked([0, 1, 4]), **other})


@pytest.mark.parametrize(
    ("recipe", "given", "near"),
    [
        ({"compute": "bfloat16"}, {}, 0.02),
        ({"weights": "bfloat16"}, {}, 0.02),
        ({}, {"gradient_checkpointing": True}, 1e-6),
        ({"neftune": 15}, {}, None),
        ({"schedule": "constant"}, {}, 1e-6),
    ],
)
def test_ways_of_computing(
    recipe: dict[str, Any], given: dict[str, Any], near: float | None, tmp_path: Path
) -> None:
    plain = nano(tmp_path, {"epochs": 2, "batch_rows": 4}).summary["loss_first"]
    made = nano(tmp_path / "other", {"epochs": 2, "batch_rows": 4, **recipe}, **given)
    assert np.isfinite(made.summary["loss_last"])
    if near is not None:
        assert made.summary["loss_first"] == pytest.approx(plain, rel=near)
    else:
        assert abs(made.summary["loss_first"] - plain) > 1e-3  # noise on the embeddings
    if given:  # how it is run is no part of the model's name
        assert made.digest == nano(tmp_path, {"epochs": 2, "batch_rows": 4}).digest


def test_packed_with_the_loss_of_every_token(tmp_path: Path) -> None:
    made = nano(
        tmp_path, {"packed": True, "loss_on_prompt": True, "max_tokens": 40, "epochs": 1, "batch_rows": 2}
    )
    done = made.summary
    assert done["rows"] == 5 and done["sequences"] == -(-done["tokens"] // 40)
    assert done["target_tokens"] == done["tokens"] - done["sequences"]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"pool": "empty"}, "none of the 1 rows has a token to train on"),
        ({"model": "/no/such/model"}, "no such folder"),
        ({"recipe": {"method": "lora", "targets": ["nothing"]}}, "LoRA of"),
    ],
)
def test_refused(given: dict[str, Any], words: str, tmp_path: Path) -> None:
    if given.get("pool") == "empty":
        given = {"pool": pool_of(tmp_path, [ROWS[2]])}
    with pytest.raises(RequestError, match=words):
        nano(tmp_path, **{"recipe": {"epochs": 1}, **given})


# --- LoRA and moments ------------------------------------------------------------------------------------


def saved_zoo(name: str, folder: Path) -> str:
    """A random model of the zoo with the small tokenizer, as files."""
    shown = tokenizer("{% for m in messages %}<|{{m.role}}|>{{m.content}}</s>{% endfor %}")
    build(name, vocab_size=len(shown) + 3).model.save_pretrained(folder)
    shown.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("name", ["llama", "mistral", "gpt2", "qwen2", "opt"])
def test_lora_and_its_moments(name: str, tmp_path: Path) -> None:
    assert name in ZOO
    model = saved_zoo(name, tmp_path / "model")
    recipe = {"recipe": "lora", "epochs": 2, "batch_rows": 4, "max_tokens": 64, "dropout": 0.1, "rank": 3}
    made = train(pool_of(tmp_path), model=model, recipe=recipe, store=tmp_path / "store", device="cpu")
    live = load_model(str(made.path), "float32", "cpu")
    shapes = {n: tuple(p.shape) for n, p in live.model.named_parameters() if "lora_" in n}
    assert sum(map(np.prod, shapes.values())) == made.summary["trained_parameters"]
    attention_only = {n.split(".")[-4] for n in shapes} == {"q_proj", "k_proj", "v_proj", "o_proj"}
    assert attention_only == (name in ("llama", "mistral"))
    assert [entry["step"] for entry in epochs_of(made.path)] == [1, 2]
    for epoch, steps in ((1, 1), (2, 2)):
        first, second, step = read_moments(made.path / f"epoch-{epoch}")
        assert step == steps
        for moments in (first, second):
            assert {n: tuple(t.shape) for n, t in moments.items()} == shapes
        assert all((t >= 0).all() for t in second.values())
    assert any(t.abs().max() > 0 for t in first.values())
    bill = totals(tmp_path / "store", {made.digest})[made.digest]
    assert bill["flops"] == pytest.approx(4 * load_model(model).parameters * bill["tokens"])


def test_moments_of_another_training(tmp_path: Path) -> None:
    """The callback in a plain Trainer; after one step the moments are those of the gradient."""
    import transformers

    model = build("llama").model.requires_grad_(True)
    ids = torch.arange(12)[None]
    rows = [{"input_ids": ids[0], "labels": ids[0]}]
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path / "work"), num_train_epochs=1, report_to="none", use_cpu=True,
        disable_tqdm=True, max_grad_norm=0, save_strategy="no",
    )  # fmt: skip
    model.zero_grad()
    model(input_ids=ids, labels=ids).loss.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
    trainer = transformers.Trainer(
        model, arguments, train_dataset=rows, callbacks=[MomentsCallback(tmp_path / "moments")]
    )
    trainer.train()
    first, second, step = read_moments(tmp_path / "moments" / "epoch-1")
    assert step == 1 and set(first) == {name for name, _ in model.named_parameters()}
    for name, gradient in gradients.items():
        torch.testing.assert_close(first[name], 0.1 * gradient, rtol=1e-4, atol=1e-8)
        torch.testing.assert_close(second[name], 0.001 * gradient**2, rtol=1e-3, atol=1e-12)


def test_an_optimizer_without_moments_is_refused(tmp_path: Path) -> None:
    model = torch.nn.Linear(2, 2)
    with pytest.raises(RunError, match="no exp_avg of its shape for weight"):
        write_moments(tmp_path, model, torch.optim.SGD(model.parameters(), lr=1.0), 1)


# --- kills -----------------------------------------------------------------------------------------------

_CHILD = """
import os, signal, sys
from pathlib import Path
import torch
from tamis.models import _trainer
from tests.models.test_train import long_run
torch.set_num_threads(1)
inner = _trainer.Course.on_step_end
def step(self, args, state, control, **given):
    if state.global_step == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)
    inner(self, args, state, control, **given)
_trainer.Course.on_step_end = step
long_run(sys.argv[1], Path(sys.argv[2]))
"""


def long_run(model: str, folder: Path) -> Path:
    """Three epochs of two steps, saved after every step: LoRA with dropout, or all weights with noise."""
    own = {"recipe": "longest"} if model == str(NANO) else {"recipe": "lora", "dropout": 0.2, "rank": 2}
    recipe = {**own, "epochs": 3, "batch_rows": 2, "max_tokens": 64}
    options = {"store": folder / "store", "device": "cpu", "save_seconds": 0}
    return train(pool_of(folder), model=model, recipe=recipe, **options).path


@pytest.mark.parametrize("full", [False, True])
def test_a_killed_run_goes_on_and_ends_in_the_same_bytes(full: bool, tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        model = str(NANO) if full else saved_zoo("llama", tmp_path / "model")
        whole = long_run(model, tmp_path / "whole")
        root = Path(__file__).resolve().parents[2]
        command = [sys.executable, "-c", _CHILD, model, str(tmp_path / "killed"), "4"]  # in the second epoch
        done = subprocess.run(command, capture_output=True, text=True, cwd=root, check=False)
        assert done.returncode == -signal.SIGKILL, done.stderr
        parts = list((tmp_path / "killed" / "store" / "model").glob("*.part"))
        last = _trainer.last_checkpoint(parts[0] / ".work")
        assert len(parts) == 1 and last is not None and last.name == "checkpoint-3"
        resumed = long_run(model, tmp_path / "killed")
    finally:
        torch.set_num_threads(threads)
    files = {p.relative_to(whole).as_posix(): p for p in whole.rglob("*") if p.is_file()}
    weights = {"model.safetensors"} if full else {"adapter_model.safetensors", "epoch-1/exp_avg.safetensors"}
    assert weights | {"training.json", "learning_rates.jsonl"} <= set(files)
    for name, path in files.items():
        assert (resumed / name).read_bytes() == path.read_bytes(), name
    lines = (tmp_path / "killed" / "store" / "ledger.jsonl").read_text().splitlines()
    entry = next(e for e in map(json.loads, lines) if e["kind"] == "model")
    assert entry["resumed_at_step"] == 3 and not list(parts[0].parent.glob("*.part"))


def test_a_checkpoint_without_its_mark_is_not_gone_on_from(tmp_path: Path) -> None:
    for step, whole in ((2, True), (10, True), (11, False)):
        (tmp_path / f"checkpoint-{step}").mkdir()
        if whole:
            (tmp_path / f"checkpoint-{step}" / _trainer.WHOLE).touch()
    assert _trainer.last_checkpoint(tmp_path) == tmp_path / "checkpoint-10"
