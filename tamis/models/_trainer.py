"""The `transformers` Trainer with our order of rows, our loss, our progress and our checkpoints."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import Trainer, TrainerCallback, TrainingArguments

WHOLE = "whole"
"""Name of the file that a checkpoint gets when all of it is written."""


class Rows(torch.utils.data.Dataset[Any]):
    """Token ids and labels of the rows to train on."""

    def __init__(self, ids: Sequence[np.ndarray], labels: Sequence[np.ndarray]) -> None:
        self.ids, self.labels = ids, labels

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, row: int) -> dict[str, np.ndarray]:
        return {"input_ids": self.ids[row], "labels": self.labels[row]}


class Shuffled(torch.utils.data.Sampler[int]):
    """Rows in an order of `seed` and `epoch`; those of one step by falling length, which wastes less padding.

    The order follows from its arguments alone, so that a restart needs no state of it.
    """

    def __init__(self, lengths: Sequence[int], batch_rows: int, seed: int) -> None:
        self.lengths, self.batch_rows, self.seed = np.asarray(lengths), batch_rows, seed
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        order = np.random.default_rng([self.seed, self.epoch]).permutation(len(self.lengths))
        for start in range(0, len(order), self.batch_rows):
            step = order[start : start + self.batch_rows]
            yield from step[np.argsort(-self.lengths[step], kind="stable")].tolist()


def padded(rows: Sequence[dict[str, np.ndarray]]) -> dict[str, torch.Tensor]:
    """A micro-batch, padded on the right with token 0 and label -100.

    There is no attention mask: real tokens of a causal model never see what is right of them.
    """
    longest = max(len(row["input_ids"]) for row in rows)
    ids = torch.zeros((len(rows), longest), dtype=torch.long)
    labels = torch.full((len(rows), longest), -100)
    for i, row in enumerate(rows):
        ids[i, : len(row["input_ids"])] = torch.from_numpy(row["input_ids"].astype(np.int64))
        labels[i, : len(row["labels"])] = torch.from_numpy(row["labels"].astype(np.int64))
    return {"input_ids": ids, "labels": labels}


def step_loss(
    outputs: Any, labels: torch.Tensor, num_items_in_batch: torch.Tensor | int | None
) -> torch.Tensor:
    """Sum of -ln P of the targets, over their number in the whole step: micro-batches change nothing.

    Logits (b, L, words) become float32 only where there is a target.
    """
    wanted = labels[:, 1:] != -100
    logits = outputs.logits[:, :-1][wanted].float()
    total = torch.nn.functional.cross_entropy(logits, labels[:, 1:][wanted], reduction="sum")
    return total / (wanted.sum() if num_items_in_batch is None else num_items_in_batch)


class StepTrainer(Trainer):  # type: ignore[misc]
    """Rows in the order of `Shuffled`, the loss of `step_loss`."""

    def __init__(
        self, model: Any, args: TrainingArguments, rows: Rows, order: Shuffled, **given: Any
    ) -> None:
        self.order = order
        super().__init__(
            model=model,
            args=args,
            train_dataset=rows,
            data_collator=padded,
            compute_loss_func=step_loss,
            **given,
        )

    def _get_train_sampler(self, train_dataset: Any = None) -> Shuffled:
        return self.order

    def compute_loss(self, model: Any, inputs: dict[str, Any], *given: Any, **named: Any) -> Any:
        """As of the library, without a cache of keys and values."""
        return super().compute_loss(model, {**inputs, "use_cache": False}, *given, **named)


class Course(TrainerCallback):  # type: ignore[misc]
    """Tells the order which epoch it is, advances the progress, and saves by the clock and after epochs."""

    def __init__(
        self, order: Shuffled, save_seconds: float, advance: Callable[[int], None], epochs: bool
    ) -> None:
        self.order, self.save_seconds, self.advance, self.epochs = order, save_seconds, advance, epochs
        self.saved = time.monotonic()
        self.start = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Remember where a restart begins."""
        self.start = state.global_step
        self.advance(state.global_step)

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Every epoch has an order of its own."""
        self.order.epoch = int(state.epoch)

    def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Save when the last time is long ago."""
        self.advance(1)
        if time.monotonic() - self.saved >= self.save_seconds and state.global_step < state.max_steps:
            control.should_save = True

    def on_epoch_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Save after an epoch that left files, so that none of them is ever of half an epoch."""
        control.should_save = self.epochs and state.global_step < state.max_steps

    def on_save(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Mark the checkpoint as whole: one that a kill left behind half-written is never gone on from."""
        (Path(args.output_dir) / f"checkpoint-{state.global_step}" / WHOLE).touch()
        self.saved = time.monotonic()


class EpochWeights(TrainerCallback):  # type: ignore[misc]
    """Writes the weights after every epoch beside its moments."""

    def __init__(self, folder: Path, save: Callable[[Any, Path], None]) -> None:
        self.folder, self.save = folder, save

    def on_epoch_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Into epoch-k."""
        self.save(given["model"], self.folder / f"epoch-{round(state.epoch)}")


def last_checkpoint(folder: Path) -> Path | None:
    """The whole checkpoint with the most steps, or None."""
    found = [path.parent for path in folder.glob(f"checkpoint-*/{WHOLE}")]
    return max(found, key=lambda path: int(path.name.partition("-")[2]), default=None)
