"""A small random sentence encoder, saved as sentence-transformers saves one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

CORPUS = (
    "what is the sum of 4 , 7 and 12 ? the sum is 23 .",
    "rivers run and rain falls . write a poem about rain .",
    "< | user | > < | assistant | > < | system | > system user assistant",
)


def save_encoder(folder: Path, longest: int = 64, seed: int = 0, dense: int | None = None) -> Path:
    """BERT of 2 layers and width 32 with mean pooling; `dense`: a projection to that width after it."""
    import sentence_transformers
    import torch
    import transformers
    from sentence_transformers import models
    from tokenizers import BertWordPieceTokenizer

    backend = BertWordPieceTokenizer()
    backend.train_from_iterator(CORPUS, vocab_size=200, show_progress=False)
    tokenizer = transformers.BertTokenizerFast(tokenizer_object=backend._tokenizer)
    torch.manual_seed(seed)
    config = transformers.BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=80,
    )
    plain = folder.parent / f"{folder.name}-plain"
    transformers.BertModel(config).save_pretrained(plain)
    tokenizer.save_pretrained(plain)
    parts: list[Any] = [models.Transformer(str(plain), max_seq_length=longest), models.Pooling(32)]
    if dense is not None:
        parts.append(models.Dense(32, dense))
    sentence_transformers.SentenceTransformer(modules=parts, device="cpu").save(str(folder))
    return folder
