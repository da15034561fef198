"""A small byte-level tokenizer, chat templates in the manner of known families, and small random models."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

CORPUS = (
    "What is the sum of 4, 7 and 12? The sum is 23.",
    "Write a short poem about rivers and rain.\nRivers run, rain falls.",
    "system user assistant tool You are a helpful assistant. \n\n### Instruction:\n\n### Response:\n",
    "[INST] [/INST] <<SYS>> <|user|> <|assistant|> naïve café 日本語 – “quoted” 👩‍👩‍👧",
)
ADDED = [
    "<s>",
    "</s>",
    "<pad>",
    "<|im_start|>",
    "<|im_end|>",
    "<|begin|>",
    "<|start_header|>",
    "<|end_header|>",
]
ADDED += ["<|eot|>", "<start_of_turn>", "<end_of_turn>", "<|end|>", "[INST]", "[/INST]", "<|u|>", "<|a|>"]


@dataclass(frozen=True)
class Turn:
    role: str
    content: str


def talk(*turns: str) -> list[Turn]:
    """Turns from "role: content" lines; the content is what follows the first colon, as it is."""
    return [Turn(*turn.split(":", 1)) for turn in turns]


@cache
def _backend() -> Any:
    import tokenizers

    bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=ADDED,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(CORPUS * 3, trainer)
    return bpe.to_str()


def tokenizer(chat_template: str | None = None, bos: bool = False, eos: str | None = "</s>") -> Any:
    """The tokenizer, with a chat template of its own; with `bos` it puts <s> in front of a text by itself."""
    import tokenizers
    import transformers

    backend = tokenizers.Tokenizer.from_str(_backend())
    if bos:
        backend.post_processor = tokenizers.processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", ADDED.index("<s>"))]
        )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token=eos,
        pad_token="<pad>",
        chat_template=chat_template,
        clean_up_tokenization_spaces=False,
    )


_ALTERNATE = (
    "{% for m in ms %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate user/assistant') }}{% endif %}{% endfor %}"
)

LLAMA2 = (
    "{% if messages[0].role == 'system' %}{% set ms = messages[1:] %}"
    "{% set sys = '<<SYS>>\n' + messages[0].content + '\n<</SYS>>\n\n' %}"
    "{% else %}{% set ms = messages %}{% set sys = '' %}{% endif %}" + _ALTERNATE + "{% for m in ms %}"
    "{% if m.role == 'user' %}{{ bos_token + '[INST] ' + (sys if loop.index0 == 0 else '') }}"
    "{{ m.content | trim + ' [/INST]' }}"
    "{% else %}{{ ' ' + m.content | trim + ' ' + eos_token }}{% endif %}{% endfor %}"
)
LLAMA3 = (
    "{{ '<|begin|>' }}{% for m in messages %}"
    "{{ '<|start_header|>' + m.role + '<|end_header|>\n\n' + m.content | trim + '<|eot|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header|>assistant<|end_header|>\n\n' }}{% endif %}"
)
QWEN = (
    "{% if messages[0].role != 'system' %}{{ '<|im_start|>system\nYou are kind.<|im_end|>\n' }}{% endif %}"
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
THINKING = (
    "{% set ns = namespace(last=0) %}"
    "{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
    "{% for m in messages %}{% if m.role == 'assistant' %}{% set thought = '' %}{% set said = m.content %}"
    "{% if '</think>' in said %}"
    "{% set thought = said.split('</think>')[0].split('<think>')[-1].strip('\n') %}"
    "{% set said = said.split('</think>')[-1].lstrip('\n') %}{% endif %}"
    "{{ '<|im_start|>assistant\n' }}{% if loop.index0 > ns.last %}"
    "{{ '<think>\n' + thought + '\n</think>\n\n' }}{% endif %}{{ said + '<|im_end|>\n' }}"
    "{% else %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
MISTRAL = (
    "{% if messages[0].role == 'system' %}{% set sys = messages[0].content %}{% set ms = messages[1:] %}"
    "{% else %}{% set ms = messages %}{% endif %}" + _ALTERNATE + "{{ bos_token }}{% for m in ms %}"
    "{% if m.role == 'user' %}"
    "{{ '[INST] ' + (sys + '\n\n' if loop.last and sys is defined else '') + m.content + '[/INST]' }}"
    "{% else %}{{ ' ' + m.content + eos_token }}{% endif %}{% endfor %}"
)
GEMMA = (
    "{{ bos_token }}"
    "{% if messages[0].role == 'system' %}{{ raise_exception('no system role here') }}{% endif %}"
    "{% for m in messages %}{% set role = 'model' if m.role == 'assistant' else m.role %}"
    "{{ '<start_of_turn>' + role + '\n' + m.content | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
PHI = (
    "{% for m in messages %}{% if m.role == 'user' %}{{ '<|u|>\n' + m.content + '<|end|>\n' }}"
    "{% elif m.role == 'assistant' %}{{ '<|a|>\n' }}{% generation %}{{ m.content + '<|end|>' }}"
    "{% endgeneration %}{{ '\n' }}"
    "{% elif m.content %}{{ '<|' + m.role + '|>\n' + m.content + '<|end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|a|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
ZEPHYR = (
    "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + eos_token + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)

FAMILIES = {
    "llama2": (LLAMA2, "</s>"),
    "llama3": (LLAMA3, "<|eot|>"),
    "qwen": (QWEN, "<|im_end|>"),
    "thinking": (THINKING, "<|im_end|>"),
    "mistral": (MISTRAL, "</s>"),
    "gemma": (GEMMA, "<end_of_turn>"),
    "phi": (PHI, "<|end|>"),
    "zephyr": (ZEPHYR, "</s>"),
}
"""Chat template and the token that ends an assistant turn, by family."""


def save_llama(folder: Path, dtype: str = "float32", **changes: Any) -> Path:
    """A random Llama with the tokenizer and the Qwen-like template, saved to `folder`."""
    import torch
    import transformers

    torch.manual_seed(0)
    own = tokenizer(QWEN)
    shape: dict[str, Any] = {
        "vocab_size": len(own),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
    }
    config = transformers.LlamaConfig(**{**shape, **changes})
    transformers.LlamaForCausalLM(config).to(getattr(torch, dtype)).save_pretrained(folder)
    own.save_pretrained(folder)
    return folder
