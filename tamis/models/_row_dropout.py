"""LoRA's dropout with noise that follows from the row alone, whatever batch, shard or device it is in."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from typing import Any

import numpy as np
import torch

from tamis.models.projections import key_of

_ROWS: ContextVar[tuple[list[int], list[int], bool] | None] = ContextVar("keys of the rows", default=None)


class RowDropout:
    """Puts noise into the dropout layers of the adapter of `model`: each row's is seeded by its token ids and
    by the layer's name. Outside of `of`, or without its `hooks`, nothing is dropped."""

    def __init__(self, model: Any, seed: int = 0) -> None:
        self.seed = seed
        self.layers = {
            name: module
            for name, module in model.named_modules()
            if ".lora_dropout." in name and isinstance(module, torch.nn.Dropout) and module.p > 0
        }

    def hooks(self) -> list[Any]:
        """Put it into the model; each of the hooks has a `remove`."""
        return [module.register_forward_hook(self._noisy(name)) for name, module in self.layers.items()]

    @contextlib.contextmanager
    def of(self, ids: Sequence[np.ndarray], packed: bool) -> Iterator[None]:
        """Within the block, in this thread, dropout has the noise of the rows `ids` of a batch."""
        keys = [int(key_of(self.seed, "row", row.astype("<i4").tobytes().hex())) for row in ids]
        token = _ROWS.set((keys, [len(row) for row in ids], packed))
        try:
            yield
        finally:
            _ROWS.reset(token)

    def _noisy(self, name: str) -> Any:
        own = int(key_of(self.seed, "layer", name))

        def hook(module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
            rows = _ROWS.get()
            if rows is None:
                return output
            keys, lengths, packed = rows
            masks = [
                _kept(key ^ own, length, output.shape[-1], module.p)
                for key, length in zip(keys, lengths, strict=True)
            ]
            if packed or len(masks) == 1:
                mask = torch.cat(masks)[None]
            else:
                mask = torch.nn.utils.rnn.pad_sequence(masks, batch_first=True)
            return output * mask.to(output.device, output.dtype)

        return hook


def _kept(key: int, length: int, width: int, p: float) -> torch.Tensor:
    """Factors (length, width) float32: 0 with probability p, else 1 / (1 - p)."""
    generator = torch.Generator().manual_seed(key & (2**63 - 1))
    kept = torch.rand((length, width), generator=generator) >= p
    return kept.float() / (1 - p)
