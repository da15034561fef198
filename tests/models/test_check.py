"""What `doctor` says of a model: hidden states and, for an adapter, gradients, alone and in a batch."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")

from tamis.models.check import batch_invariance  # noqa: E402
from tamis.models.packing import Executor  # noqa: E402
from tests.models.tiny import save_llama  # noqa: E402


def saved_adapter(folder):
    import transformers

    base = save_llama(folder / "base")
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    config.base_model_name_or_path = str(base)
    model = peft.get_peft_model(model, config)
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(folder / "adapter")
    return folder / "adapter"


def test_gradients_of_an_adapter_are_the_same_alone_and_in_a_batch(tmp_path):
    found = batch_invariance(str(saved_adapter(tmp_path)), device="cpu", dtype="float32")
    gradients = found["gradients"]
    assert found["invariant"] and gradients["invariant"] and gradients["mode"] == "packed"
    assert gradients["cosine"] > 1 - 1e-5 and gradients["norm"] < 1e-5


def test_a_whole_model_has_no_gradients_to_check(tmp_path):
    found = batch_invariance(str(save_llama(tmp_path / "base")), device="cpu", dtype="float32")
    assert found["invariant"] and "gradients" not in found


def test_rows_that_see_each_other_are_told(tmp_path, monkeypatch):
    path = str(saved_adapter(tmp_path))
    own = Executor._packed

    def leaking(self, rows, lengths):
        hidden = own(self, rows, lengths)
        if len(rows) < 2 or not torch.is_grad_enabled():
            return hidden
        return hidden + 0.1 * hidden.mean(dim=1, keepdim=True)

    monkeypatch.setattr(Executor, "_packed", leaking)
    # The engine finds it by itself, and does not pack.
    found = batch_invariance(path, device="cpu", dtype="float32")["gradients"]
    assert found["mode"] == "padded" and "packed: gradients differ" in found["why"] and found["invariant"]
    monkeypatch.setattr("tamis.models.gradients.GradientEngine.disagreement", lambda self, mode: None)
    found = batch_invariance(path, device="cpu", dtype="float32")
    assert not found["gradients"]["invariant"] and not found["invariant"]
