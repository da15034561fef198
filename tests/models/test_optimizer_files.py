"""Moments from every kind of file, by name; the rules of positions; what is refused."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tamis.core.errors import RequestError
from tests.conftest import shared
from tests.models.adapters import (
    SHAPES,
    A,
    B,
    Q,
    adapter,
    by_number,
    states_of,
    write_less,
    write_less_plain,
    write_named,
    write_named_groups,
    write_one_group,
    write_trainer,
    write_wrapped,
)
from tests.models.zoo import build

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")
from safetensors.torch import load_file, save_file  # noqa: E402

from tamis.models.checkpoints import Checkpoint, Moments, read_checkpoint_moments  # noqa: E402

BIAS = f"{Q}.base_layer.bias"
NORM = "base_model.model.model.layers.0.input_layernorm.modules_to_save.default.weight"
DORA = f"{Q}.lora_magnitude_vector.default.weight"
LN = "base_model.model.transformer.h.0.ln_1.modules_to_save.default.weight"
HEAD = "base_model.model.lm_head.modules_to_save.default.weight"


WRITERS = [
    write_named,
    write_trainer,
    write_one_group,
    write_named_groups,
    write_less,
    write_less_plain,
    write_wrapped,
]


def read(folder: Path, shapes: dict[str, tuple[int, ...]]) -> Moments:
    return read_checkpoint_moments(Checkpoint(folder, 1.0), shapes)


def same(found: Moments, states: dict[str, dict[str, Any]], step: int | None = 7) -> None:
    assert list(found.first) == list(found.second)
    assert found.step == step and set(found.first) == set(states)
    for name, state in states.items():
        for part, moment in ((found.first, "exp_avg"), (found.second, "exp_avg_sq")):
            assert part[name].dtype == torch.float32
            assert torch.equal(part[name], state[moment].float()), name


@pytest.mark.parametrize("write", WRITERS, ids=lambda write: write.__name__)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_kind_of_file_is_read_by_name(write: Callable[..., None], dtype: str, tmp_path: Path) -> None:
    states = states_of(SHAPES)
    for state in states.values():
        state.update({k: v.to(getattr(torch, dtype)) for k, v in state.items() if k != "step"})
    write(adapter(tmp_path / "c"), states)
    found = read(tmp_path / "c", SHAPES)
    same(found, states)
    assert list(found.first) == list(SHAPES)


@pytest.mark.parametrize("write", WRITERS, ids=lambda write: write.__name__)
@pytest.mark.parametrize("step", [10, 20])
def test_golden_moments_in_every_kind_of_file(
    write: Callable[..., None], step: int, tmp_path: Path, conforms: Any
) -> None:
    golden = shared("golden/less")
    told = json.loads((golden / "less.json").read_text())
    shapes = {entry["name"]: tuple(entry["shape"]) for entry in told["parameter_order"]}
    source = golden / f"checkpoint-{step}"
    parts = [load_file(source / f"adam_{letter}.safetensors") for letter in "mv"]
    states = {
        name: {"exp_avg": parts[0][name], "exp_avg_sq": parts[1][name], "step": torch.tensor(float(step))}
        for name in shapes
    }
    folder = adapter(tmp_path / "c")
    write_named(folder, states, str(step)) if write is write_named else write(folder, states)
    found = read(folder, shapes)
    same(found, states, step)
    assert list(found.first) == list(shapes)
    flat = torch.cat([part.flatten() for part in found.first.values()])
    assert flat.numel() == told["n_parameters"]


@pytest.mark.parametrize(
    ("shapes", "groups"),
    [
        ({**SHAPES, BIAS: (4,)}, [list(SHAPES), [BIAS]]),
        ({BIAS: (4,), **SHAPES, NORM: (4,), HEAD: (9, 4)}, [[*SHAPES, HEAD], [BIAS, NORM]]),
        ({BIAS: (4,), **SHAPES, NORM: (4,)}, [[*SHAPES, NORM], [BIAS]]),  # older libraries: norms by class
        ({LN: (4,), **SHAPES}, [list(SHAPES), [LN]]),  # a norm by its class
        ({LN: (4,), **SHAPES}, [[LN, *SHAPES], []]),  # a vector that is no norm
        ({LN: (4,), **SHAPES, NORM: (5,)}, [list(SHAPES), [LN, NORM]]),
        ({LN: (4,), **SHAPES, NORM: (5,)}, [[LN, *SHAPES], [NORM]]),
        ({DORA: (4,), **SHAPES}, None),
        ({DORA: (4,), LN: (4,), **SHAPES}, [[DORA, *SHAPES], [LN]]),
        ({HEAD: (4, 4), **SHAPES, BIAS: (4,)}, [[HEAD, *SHAPES, BIAS]]),
        ({**SHAPES, BIAS: (4,)}, [[A], [], [B], [BIAS]]),  # LoRA+
    ],
)
def test_positions_follow_from_the_rule_of_the_groups(
    shapes: dict[str, tuple[int, ...]], groups: list[list[str]] | None, tmp_path: Path
) -> None:
    states = states_of(shapes)
    torch.save(by_number(states, groups or [list(shapes), []]), adapter(tmp_path / "c") / "optimizer.pt")
    found = read(tmp_path / "c", shapes)
    same(found, states)
    assert list(found.first) == list(shapes)


def test_frozen_parameters_in_the_groups_have_no_state(tmp_path: Path) -> None:
    states = states_of(SHAPES)
    saved = by_number(states, [["frozen", *SHAPES], ["frozen bias"]])
    torch.save(saved, adapter(tmp_path / "c") / "optimizer.bin")
    same(read(tmp_path / "c", SHAPES), states)
    wholly = {"state": {**states, "frozen": {}}}
    torch.save(wholly, adapter(tmp_path / "d") / "optimizer.bin")
    same(read(tmp_path / "d", SHAPES), states)


def test_steps_that_are_unknown_or_differ(tmp_path: Path) -> None:
    states = states_of(SHAPES)
    write_named(adapter(tmp_path / "a"), states, step=None)
    same(read(tmp_path / "a", SHAPES), states, None)
    next(iter(states.values()))["step"] = 3
    write_less(adapter(tmp_path / "b"), states)
    same(read(tmp_path / "b", SHAPES), states, None)


def test_the_rule_is_that_of_the_installed_trainer(tmp_path: Path) -> None:
    """Groups made by the library itself, of norms, biases, vectors and matrices."""
    import transformers

    from tamis.models._optimizer_files import _ways

    for name in ("gpt2", "qwen2", "olmo2", "opt", "gemma2"):
        model = build(name).model.requires_grad_(True)
        arguments = transformers.TrainingArguments(output_dir=str(tmp_path), report_to="none", use_cpu=True)
        optimizer = transformers.Trainer(model, arguments).create_optimizer()
        names = {id(p): n for n, p in model.named_parameters()}
        wanted = [[names[id(p)] for p in group["params"]] for group in optimizer.param_groups]
        assert wanted in _ways({n: tuple(p.shape) for n, p in model.named_parameters()}, 2), name


def test_lora_plus_of_the_installed_peft(tmp_path: Path) -> None:
    from peft.optimizers import create_loraplus_optimizer

    config = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj", "embed_tokens"], bias="all")
    model = peft.get_peft_model(build("qwen2").model, config)
    optimizer = create_loraplus_optimizer(model, torch.optim.AdamW, lr=1e-3, loraplus_lr_ratio=16.0)
    ids = torch.arange(12)[None]
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    torch.save(optimizer.state_dict(), adapter(tmp_path / "c") / "optimizer.pt")
    found = read(tmp_path / "c", {name: tuple(p.shape) for name, p in trainable.items()})
    assert any("lora_embedding_" in name for name in found.first)
    same(found, {name: optimizer.state[p] for name, p in trainable.items()}, 1)


# --- what is refused -----------------------------------------------------------------------------------


def changed(change: Callable[[dict[str, dict[str, Any]]], Any]) -> Callable[[Path], None]:
    """States by name after `change`, written as LESS writes them."""

    def write(folder: Path) -> None:
        states = states_of(SHAPES)
        change(states)
        write_less(folder, states)

    return write


def saved(content: Any, name: str = "optimizer.pt") -> Callable[[Path], None]:
    return lambda folder: torch.save(content, folder / name)


def every(states: dict[str, Any], **state: Any) -> None:
    for name in states:
        states[name] = state


def first(states: dict[str, Any], **changes: Any) -> None:
    states[next(iter(states))].update(changes)


REFUSED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no file": (
        lambda folder: None,
        r"looked for exp_avg.safetensors .*optimizer.bin.*MomentsCallback.*none",
    ),
    "one of two": (
        lambda folder: save_file({"a": torch.ones(1)}, folder / "exp_avg.safetensors"),
        "exp_avg.safetensors is there, exp_avg_sq.safetensors is not",
    ),
    "two kinds": (
        lambda folder: [write_trainer(folder, states_of(SHAPES)), write_less(folder, states_of(SHAPES))],
        "moments in optimizer.pt, optimizer.bin; which of them",
    ),
    "dcp": (lambda folder: (folder / "optimizer_0").mkdir(), r"in shards \(optimizer_0\).*FULL_STATE_DICT"),
    "distcp": (lambda folder: (folder / "__0_0.distcp").touch(), "in shards"),
    "deepspeed": (lambda folder: (folder / "global_step10").mkdir(), r"in shards \(global_step10\)"),
    "zero": (lambda folder: (folder / "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt").touch(), "in shards"),
    "damaged": (
        lambda folder: (folder / "optimizer.pt").write_bytes(b"PK nonsense"),
        "not readable as tensors",
    ),
    "empty": (lambda folder: (folder / "optimizer.pt").touch(), "not readable as tensors"),
    "objects": (saved({"state": {0: Path("a")}}), "not readable as tensors .*objects of its own"),
    "damaged tensors": (
        lambda folder: [
            write_named(folder, states_of(SHAPES)),
            (folder / "exp_avg_sq.safetensors").write_bytes(b"x" * 40),
        ],
        r"exp_avg_sq.safetensors: not readable",
    ),
    "steps of two checkpoints": (
        lambda folder: [
            write_named(folder, states_of(SHAPES), "8"),
            save_file(
                {n: torch.ones(s) for n, s in SHAPES.items()},
                folder / "exp_avg.safetensors",
                metadata={"step": "7"},
            ),
        ],
        "after 8 steps, exp_avg.safetensors after 7",
    ),
    "no state dict": (saved([1, 2]), "expected the state dict"),
    "states of no kind": (saved({"state": {0: torch.ones(2)}}), "expected the state dict"),
    "no groups": (saved({"state": {0: {"exp_avg": torch.ones(1)}}}), "with param_groups beside"),
    "groups of no kind": (
        saved({"state": {0: {"exp_avg": torch.ones(1)}}, "param_groups": [{"lr": 1}]}),
        "under 'params'",
    ),
    "states in no group": (
        saved(
            {
                "state": by_number(states_of(SHAPES), [list(SHAPES)])["state"],
                "param_groups": [{"params": [0]}],
            }
        ),
        "2 states, but the groups list 1",
    ),
    "no step yet": (saved({"state": {}, "param_groups": [{"params": [0]}]}), "holds no states, as of SGD"),
    "SGD": (changed(lambda s: every(s, momentum_buffer=torch.ones(2))), "SGD's momentum_buffer for"),
    "Adafactor": (changed(lambda s: every(s, exp_avg_sq_row=torch.ones(2))), "Adafactor's factored"),
    "8 bit": (
        changed(lambda s: every(s, state1=torch.ones(8, dtype=torch.uint8), state2=torch.ones(8))),
        "8-bit optimizer",
    ),
    "uint8": (changed(lambda s: first(s, exp_avg=torch.ones(2, 4, dtype=torch.uint8))), "8-bit optimizer"),
    "Lion": (changed(lambda s: first(s, exp_avg_sq=None)), f"for {A}, not AdamW's exp_avg_sq"),
    "missing": (changed(lambda s: s.pop(B)), f"for 1 of the 2 trained parameters, first {B}; nearest"),
    "unknown": (
        changed(lambda s: s.update({"other.lora_A.weight": s[A]})),
        "1 parameters that the adapter does not train, first other.lora_A.weight",
    ),
    "twice": (changed(lambda s: s.update({A.replace(".default", ""): s[A]})), "are one name"),
    "shape": (
        changed(lambda s: first(s, exp_avg=torch.ones(4, 2))),
        rf"exp_avg of {A} has the shape \(4, 2\), the parameter \(2, 4\)",
    ),
    "flat": (changed(lambda s: first(s, exp_avg=torch.ones(3))), r"\(3,\) \(flattened, as by FSDP\?\)"),
    "flat name": (
        changed(lambda s: s.update({"layer._flat_param": s.pop(A)})),
        "flattened parameter of FSDP",
    ),
    "infinite": (
        changed(lambda s: first(s, exp_avg=torch.full((2, 4), math.nan))),
        "is not finite everywhere",
    ),
    "negative": (changed(lambda s: first(s, exp_avg_sq=-torch.ones(2, 4))), "is negative somewhere"),
    "step": (changed(lambda s: first(s, step="soon")), "step='soon': expected the number"),
    "param_names too few": (
        saved(
            {
                **by_number(states_of(SHAPES), [list(SHAPES)]),
                "param_groups": [{"params": [0, 1], "param_names": []}],
            }
        ),
        "2 parameters and 0 param_names",
    ),
    "param_names twice": (
        saved(
            {
                **by_number(states_of(SHAPES), [list(SHAPES)]),
                "param_groups": [{"params": [0, 1], "param_names": [A, A]}],
            }
        ),
        "param_names has .* twice",
    ),
    "A and B in two groups": (
        saved(by_number(states_of(SHAPES), [[A], [B]])),
        r"1\+1 states in 2 groups do not fit: the 2 trained parameters would be 2\+0",
    ),
    "three groups": (
        saved(by_number(states_of(SHAPES), [[A], [B], []])),
        "in 3 groups do not fit.*in one, two or four groups",
    ),
    "another order": (
        saved(by_number(states_of(SHAPES), [[B, A], []])),
        "has the shape .* were in another order",
    ),
    "more than is trained": (
        saved(by_number(states_of({**SHAPES, "x": (1,)}), [[*SHAPES, "x"], []])),
        r"3\+0",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refused_moments(what: str, tmp_path: Path) -> None:
    write, words = REFUSED[what]
    write(adapter(tmp_path / "c"))
    with pytest.raises(RequestError, match=words) as caught:
        read(tmp_path / "c", SHAPES)
    assert str(tmp_path / "c") in str(caught.value)


def test_norms_that_cannot_be_told_apart_are_refused_but_not_where_shapes_tell(tmp_path: Path) -> None:
    for size, refused in ((4, True), (5, False)):
        shapes = {LN: (4,), NORM: (size,), **SHAPES}
        states = states_of(shapes)
        folder = adapter(tmp_path / str(size))
        torch.save(by_number(states, [[LN, *SHAPES], [NORM]]), folder / "optimizer.pt")
        if refused:
            with pytest.raises(RequestError, match="cannot be told apart"):
                read(folder, shapes)
        else:
            same(read(folder, shapes), states)
