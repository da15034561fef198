"""Checkpoints: folders in order, learning rates, identity, and those of a training of one's own."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tamis.core.errors import RequestError
from tamis.models.moments import MomentsCallback
from tests.conftest import shared
from tests.models.adapters import SHAPES, adapter, states_of, write_named
from tests.models.zoo import build

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")
from safetensors.torch import save_file  # noqa: E402

from tamis.models.checkpoints import Checkpoint, find_checkpoints, read_checkpoint_moments  # noqa: E402

# --- folders and rates -------------------------------------------------------------------------------------


def log(*rates: float) -> list[dict[str, Any]]:
    return [{"step": step, "learning_rate": rate, "loss": 1.0} for step, rate in enumerate(rates, 1)]


def test_epochs_in_order_of_their_number(tmp_path: Path) -> None:
    for epoch in (10, 9, 2):
        adapter(
            tmp_path / f"epoch-{epoch}",
            epoch={"epoch": epoch, "step": epoch * 5, "learning_rate_mean": epoch / 100},
        )
    adapter(tmp_path / "top").rename(tmp_path / "epoch-x")
    (tmp_path / "epoch-11").touch()
    (tmp_path / "adapter_config.json").write_text("{}")  # the finished adapter, as tamis.train leaves it
    found = find_checkpoints(str(tmp_path))
    assert [(c.folder.name, c.learning_rate) for c in found] == [
        ("epoch-2", 0.02),
        ("epoch-9", 0.09),
        ("epoch-10", 0.1),
    ]
    given = find_checkpoints(tmp_path, [3, 0, 1.5])
    assert [c.learning_rate for c in given] == [3.0, 0.0, 1.5]


def test_rates_are_those_logged_since_the_checkpoint_before(tmp_path: Path) -> None:
    history = log(4, 2, 6, 1, 1, 7)
    for step in (2, 3, 6):
        state = {"global_step": step, "log_history": history[:step]}
        adapter(tmp_path / f"checkpoint-{step}", trainer_state=state)
    folders = [tmp_path / f"checkpoint-{step}" for step in (2, 3, 6)]
    assert [c.learning_rate for c in find_checkpoints(tmp_path)] == [3, 6, 3]
    assert [c.learning_rate for c in find_checkpoints(folders[::-1])] == [3, 6, 3]
    # the checkpoint before is beside it, also where it is not asked for
    assert [c.learning_rate for c in find_checkpoints(folders[2])] == [3]
    assert [c.learning_rate for c in find_checkpoints([folders[2], folders[0]])] == [3, 3]
    moved = [folder.rename(tmp_path / name) for folder, name in zip(folders, "abc", strict=True)]
    assert [c.learning_rate for c in find_checkpoints([moved[2], moved[0], moved[1]])] == [3, 6, 3]


def test_rates_logged_every_other_step(tmp_path: Path) -> None:
    history = [{"step": 2, "learning_rate": 4e-4}, {"step": 4, "learning_rate": 2e-4}, {"step": 5, "loss": 1}]
    for step in (3, 5):
        kept = [entry for entry in history if entry["step"] <= step]
        adapter(tmp_path / f"checkpoint-{step}", trainer_state={"global_step": step, "log_history": kept})
    assert [c.learning_rate for c in find_checkpoints(tmp_path)] == [4e-4, 2e-4]


def test_a_list_is_sorted_with_its_rates_and_keeps_its_order_where_a_step_is_unknown(tmp_path: Path) -> None:
    late = adapter(tmp_path / "late", trainer_state={"global_step": 20})
    early = adapter(tmp_path / "early", trainer_state={"global_step": 10})
    found = find_checkpoints([late, str(early)], [0.2, 0.1])
    assert [(c.folder, c.learning_rate) for c in found] == [(early, 0.1), (late, 0.2)]
    unknown = adapter(tmp_path / "unknown")
    found = find_checkpoints([late, unknown, early], [3, 2, 1])
    assert [(c.folder, c.learning_rate) for c in found] == [(late, 3), (unknown, 2), (early, 1)]
    assert find_checkpoints(unknown, [1e-5]) == [Checkpoint(unknown, 1e-5)]


def whole_model(folder: Path) -> Path:
    (folder / "epoch-1").mkdir(parents=True)
    (folder / "epoch-1" / "config.json").write_text("{}")
    return folder


def without(folder: Path, name: str, **files: Any) -> Path:
    (adapter(folder, **files) / name).unlink()
    return folder


REFUSED_FOLDERS: dict[str, tuple[Callable[[Path], Any], Any, str]] = {
    "nowhere": (lambda p: p / "no", None, "no such folder"),
    "file": (lambda p: adapter(p / "c") / "adapter_config.json", None, "is a file; give the folder"),
    "empty list": (lambda p: [], None, "the list is empty"),
    "twice": (lambda p: [adapter(p / "c"), p / "c" / "." / ".." / "c"], [1, 1], "given twice"),
    "nothing in it": (lambda p: p, None, "no checkpoints; expected epoch-1"),
    "both series": (
        lambda p: [adapter(p / "r" / "epoch-1"), adapter(p / "r" / "checkpoint-1")][0].parent,
        None,
        "both epoch-… and checkpoint-…",
    ),
    "whole model": (lambda p: whole_model(p / "m"), None, "a whole model"),
    "no config": (lambda p: [without(p / "c", "adapter_config.json")], [1], "no adapter_config.json"),
    "no weights": (
        lambda p: without(p / "c", "adapter_model.safetensors"),
        [1],
        "without the adapter's weights",
    ),
    "damaged": (
        lambda p: [(adapter(p / "c") / "adapter_config.json").write_text("{"), p / "c"][1],
        [1],
        "adapter_config.json: not readable as JSON",
    ),
    "no object": (lambda p: adapter(p / "c", epoch=[1]), None, "expected a JSON object, found list"),
    "no record": (lambda p: adapter(p / "c"), None, r"looked for epoch.json and .*less.learning_rates"),
    "no mean": (
        lambda p: adapter(p / "c", epoch={"step": 1, "learning_rate_mean": None}),
        None,
        "no learning_rate_mean; give less.learning_rates",
    ),
    "none logged": (
        lambda p: adapter(p / "checkpoint-4", trainer_state={"global_step": 4, "log_history": [{"step": 4}]}),
        None,
        "logged in the steps 1 to 4; give less.learning_rates",
    ),
    "damaged rate": (
        lambda p: adapter(p / "c", epoch={"step": 1, "learning_rate_mean": -1}),
        None,
        "learning_rate_mean=-1: expected a number, 0 or more",
    ),
    "all zero in the record": (
        lambda p: adapter(p / "c", epoch={"step": 1, "learning_rate_mean": 0}),
        None,
        "of all 1 checkpoints are 0.*less.learning_rates",
    ),
    "all zero": (lambda p: adapter(p / "c"), [0.0], "are 0"),
    "too many": (lambda p: adapter(p / "c"), [1, 2], r"2 rates for 1 checkpoints \(c\)"),
    "negative": (lambda p: adapter(p / "c"), [-1e-5], "less.learning_rates=-1e-05"),
    "infinite": (lambda p: adapter(p / "c"), [math.inf], "expected a number"),
    "boolean": (lambda p: adapter(p / "c"), [True], "expected a number"),
    "text": (lambda p: adapter(p / "c"), "1", "expected a list of numbers"),
}


@pytest.mark.parametrize("what", REFUSED_FOLDERS)
def test_refused_folders_and_rates(what: str, tmp_path: Path) -> None:
    make, rates, words = REFUSED_FOLDERS[what]
    with pytest.raises(RequestError, match=words):
        find_checkpoints(make(tmp_path), rates)


def test_a_fingerprint_is_of_contents(tmp_path: Path) -> None:
    one, two = adapter(tmp_path / "one"), adapter(tmp_path / "elsewhere" / "two")
    config = {"peft_type": "LORA", "target_modules": ["k", "q"], "base_model_name_or_path": "/some/where"}
    (two / "adapter_config.json").write_text(json.dumps(config))
    prints = [Checkpoint(folder, rate).fingerprint for folder, rate in ((one, 1.0), (two, 2.0))]
    assert prints[0] == prints[1] and set(prints[0]) == {"adapter"}
    write_named(one, states_of(SHAPES)), write_named(two, states_of(SHAPES))
    assert Checkpoint(one, 1.0).fingerprint == Checkpoint(two, 1.0).fingerprint
    write_named(two, states_of(SHAPES, seed=1))
    assert Checkpoint(one, 1.0).fingerprint["moments"] != Checkpoint(two, 1.0).fingerprint["moments"]
    save_file({"w": torch.ones(1)}, two / "adapter_model.safetensors")
    assert Checkpoint(two, 1.0).fingerprint["adapter"] != prints[0]["adapter"]


def test_golden_rates_and_order(tmp_path: Path, conforms: Any) -> None:
    golden = shared("golden/less")
    told = json.loads((golden / "less.json").read_text())
    for step in (20, 10):
        history = [entry for entry in told["learning_rate_log"] if entry["step"] <= step]
        state = {"global_step": step, "log_history": [*history, {"step": step, "eval_loss": 1.0}]}
        adapter(tmp_path / "run" / f"checkpoint-{step}", trainer_state=state)
    found = find_checkpoints(tmp_path / "run")
    assert [checkpoint.folder.name for checkpoint in found] == ["checkpoint-10", "checkpoint-20"]
    wanted = [entry["avg_lr"] for entry in told["checkpoints"]]
    conforms.close(
        "LESS: mean learning rates of epochs", [c.learning_rate for c in found], wanted, rtol=1e-12
    )


# --- a training of one's own -------------------------------------------------------------------------------


def trained(folder: Path, bias: str, **given: Any) -> Any:
    """The Trainer on an adapter, with our callback and its own checkpoints, both after every epoch."""
    import transformers

    lm = build("qwen2")
    lm.model.save_pretrained(folder / "base")
    base = transformers.AutoModelForCausalLM.from_pretrained(folder / "base")
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], bias=bias, task_type="CAUSAL_LM")
    model = peft.get_peft_model(base, config)
    rows = [{"input_ids": (ids := torch.arange(k, k + 9)), "labels": ids} for k in range(6)]
    options = {
        "output_dir": str(folder / "run"), "num_train_epochs": 2, "per_device_train_batch_size": 2,
        "report_to": "none", "use_cpu": True, "disable_tqdm": True, "save_strategy": "epoch",
        "logging_steps": 1, "learning_rate": 1e-2, **given,
    }  # fmt: skip
    trainer = transformers.Trainer(
        model,
        transformers.TrainingArguments(**options),
        train_dataset=rows,
        callbacks=[MomentsCallback(folder / "moments")],
    )
    trainer.train()
    return model


@pytest.mark.parametrize("bias", ["none", "all", "lora_only"])
def test_the_callback_and_the_trainers_checkpoints_agree(bias: str, tmp_path: Path) -> None:
    import transformers

    model = trained(tmp_path, bias)
    own, theirs = find_checkpoints(tmp_path / "moments"), find_checkpoints(str(tmp_path / "run"))
    assert [c.folder.name for c in own] == ["epoch-1", "epoch-2"]
    assert [c.folder.name for c in theirs] == ["checkpoint-3", "checkpoint-6"]
    assert own[0].learning_rate > own[1].learning_rate > 0
    for ours, other in zip(own, theirs, strict=True):
        assert ours.learning_rate == pytest.approx(other.learning_rate, rel=1e-9)
        assert ours.fingerprint["adapter"] == other.fingerprint["adapter"]
        assert ours.fingerprint["moments"] != other.fingerprint["moments"]
        base = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base")
        live = peft.PeftModel.from_pretrained(base, ours.folder, is_trainable=True)
        shapes = {n: tuple(p.shape) for n, p in live.named_parameters() if p.requires_grad}
        biases = [name for name in shapes if name.endswith("bias")]
        assert bool(biases) == (bias != "none")
        a, b = read_checkpoint_moments(ours, shapes), read_checkpoint_moments(other, shapes)
        assert a.step == b.step == int(other.folder.name.partition("-")[2])
        assert list(a.first) == list(b.first) == list(shapes)
        for name in shapes:
            assert torch.equal(a.first[name], b.first[name]) and torch.equal(a.second[name], b.second[name])
        assert any(part.abs().max() > 0 for part in a.first.values())
    kept = dict(model.named_parameters())
    for name, parameter in live.named_parameters():
        assert torch.equal(parameter, kept[name]), name
    assert not (tmp_path / "moments" / "epoch-1" / "README.md").exists()


def test_the_callback_without_the_adapter(tmp_path: Path) -> None:
    from types import SimpleNamespace

    model = peft.get_peft_model(build("llama").model, peft.LoraConfig(target_modules=["q_proj"]))
    callback = MomentsCallback(tmp_path / "m", moments=False, weights=False)
    state = SimpleNamespace(epoch=1.0, global_step=0)
    callback.on_train_begin(None, state, None)
    callback.on_epoch_end(None, state, None, model=model, optimizer=None)
    assert [path.name for path in (tmp_path / "m" / "epoch-1").iterdir()] == ["epoch.json"]
    with pytest.raises(RequestError, match=r"epoch-1: no adapter_config.json.*MomentsCallback"):
        find_checkpoints(tmp_path / "m")
