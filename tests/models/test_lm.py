"""Loading: what is loaded is whole and what was asked for; identity follows the content."""

from __future__ import annotations

import json
import os
import shutil

import pytest

from tamis.core.errors import RequestError
from tamis.models.lm import choose_device, fingerprint, last_hidden_state, load_model, shared_model
from tests.models.tiny import save_llama
from tests.models.zoo import build

torch = pytest.importorskip("torch")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return save_llama(tmp_path_factory.mktemp("models") / "llama")


def ids():
    return torch.arange(12)[None]


def test_a_folder(saved):
    lm = load_model(str(saved))
    assert (lm.dtype, lm.width, lm.adapter) == ("float32", 32, None)
    assert not lm.model.training and not any(p.requires_grad for p in lm.model.parameters())
    assert load_model(str(saved), tokenizer_only=True).model is None


def test_dtypes(saved, tmp_path):
    assert load_model(str(saved), dtype="bfloat16").model.dtype == torch.bfloat16
    assert load_model(str(save_llama(tmp_path / "b", "bfloat16"))).dtype == "bfloat16"
    half = load_model(str(save_llama(tmp_path / "h", "float16")), device="cpu")
    assert half.dtype == "float32" and half.model.dtype == torch.float32
    with pytest.raises(RequestError, match="expected auto, float32"):
        load_model(str(saved), dtype="fp32")


def test_devices():
    assert choose_device("cpu") == "cpu"
    with pytest.raises(RequestError, match="expected auto, cpu, cuda"):
        choose_device("gpu")
    with pytest.raises(RequestError, match="CUDA devices are visible"):
        choose_device("cuda:99")


def test_places_without_a_model(saved, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for path in ("/nowhere/model", "./nowhere", "a/b/c"):
        with pytest.raises(RequestError, match="no such folder"):
            load_model(path)
    with pytest.raises(RequestError, match=r"no config\.json"):
        load_model(str(tmp_path))
    with pytest.raises(RequestError, match="this is a file"):
        load_model(str(saved / "config.json"))


def test_a_model_without_a_tokenizer(saved, tmp_path):
    for name in ("config.json", "model.safetensors"):
        shutil.copy(saved / name, tmp_path)
    with pytest.raises(RequestError, match="no tokenizer in this folder"):
        load_model(str(tmp_path))


def test_a_model_without_weights_or_with_a_tensor_missing(saved, tmp_path):
    from safetensors.torch import load_file, save_file

    shutil.copytree(saved, tmp_path / "m")
    tensors = load_file(saved / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, tmp_path / "m" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(RequestError, match=r"1 tensors are missing.*layers\.1\.mlp\.up_proj"):
        load_model(str(tmp_path / "m"))
    (tmp_path / "m" / "model.safetensors").unlink()
    with pytest.raises(RequestError):
        load_model(str(tmp_path / "m"))
    with pytest.raises(RequestError, match=r"expected model\*\.safetensors"):
        fingerprint(str(tmp_path / "m"))


def test_code_of_a_repository_is_not_run_unless_allowed(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "m")
    marker = tmp_path / "ran"
    (tmp_path / "m" / "code.py").write_text(f"open({str(marker)!r}, 'w')\n")
    config = json.loads((saved / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "code.C", "AutoModelForCausalLM": "code.M"}}
    (tmp_path / "m" / "config.json").write_text(json.dumps(config))
    with pytest.raises(RequestError, match="--trust-remote-code"):
        load_model(str(tmp_path / "m"))
    assert not marker.exists()


def test_fingerprint_follows_weights_and_config_only(saved, tmp_path):
    from safetensors.torch import load_file, save_file

    same = shutil.copytree(saved, tmp_path / "same")
    (same / "README.md").write_text("words")
    assert fingerprint(str(same)) == fingerprint(str(saved))
    tensors = load_file(saved / "model.safetensors")
    tensors["model.norm.weight"][0] += 1
    save_file(tensors, same / "model.safetensors", metadata={"format": "pt"})
    assert fingerprint(str(same)) != fingerprint(str(saved))
    other = shutil.copytree(saved, tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 0.5}))
    assert fingerprint(str(other)) != fingerprint(str(saved))
    assert fingerprint("org/name", "abc") != fingerprint("org/name", "abd")
    with pytest.raises(RequestError, match="commit"):
        fingerprint("org/name")


def test_an_adapter_over_its_base(saved, tmp_path):
    peft = pytest.importorskip("peft")
    base = load_model(str(saved))
    torch.manual_seed(1)
    model = peft.get_peft_model(
        load_model(str(saved)).model,
        peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"),
    )
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_()
    model.save_pretrained(tmp_path / "adapter")
    lm = load_model(str(tmp_path / "adapter"))
    assert lm.path == str(saved) and lm.adapter == str(tmp_path / "adapter")
    assert set(lm.fingerprint) == {"weights", "adapter"}
    assert lm.fingerprint["weights"] == base.fingerprint["weights"]
    with torch.no_grad():
        got, plain = last_hidden_state(lm.backbone, ids()), last_hidden_state(base.backbone, ids())
        wanted = model.merge_and_unload()(ids(), output_hidden_states=True).hidden_states[-1]
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-5)
    assert (got - plain).abs().max() > 1e-2

    from tamis.models.packing import Executor

    assert Executor(lm).mode == "packed"


def test_a_model_is_the_callers_own_and_a_shared_one_is_read_again_when_its_files_change(saved, tmp_path):
    assert load_model(str(saved)).model is not load_model(str(saved)).model
    shutil.copytree(saved, tmp_path / "copy")
    given = (str(tmp_path / "copy"), "float32", "cpu", False)
    first = shared_model(*given)
    assert shared_model(*given) is first
    weights = next((tmp_path / "copy").glob("*.safetensors"))
    os.utime(weights, ns=(1, 1))
    assert shared_model(*given) is not first


def test_operations_by_hand():
    lm = build("llama")  # width 32, 4 heads of 8, 2 key/value heads, inner 48, 2 layers
    layer = 32 * 32 + 2 * 32 * 16 + 32 * 32 + 3 * 32 * 48 + 2 * 32
    assert lm.body_parameters == 2 * layer + 32
    assert lm.forward_flops(9) == 2 * (2 * layer + 32) + 4 * 2 * 32 * (9 + 1) / 2


def test_operations_leave_out_tied_embeddings_and_need_no_weights(saved):
    described = load_model(str(saved), tokenizer_only=True)
    assert described.body_parameters == load_model(str(saved)).body_parameters


def test_tables_of_positions():
    assert build("gpt2").learned_positions == 256
    assert build("opt").learned_positions == 256
    assert build("llama").learned_positions is None
