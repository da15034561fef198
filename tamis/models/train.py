"""Fine-tune a model on chosen rows: by a recipe, once, resumably; kept in the store.

The targets are the renderer's (assistant turns with their end of turn), the loss of a step is the mean over
the targets of all its rows, and the rows come in an order that follows from the seed and the epoch alone. A
killed run goes on at its last whole checkpoint and ends in the same bytes (on a CPU, with as many threads).

<store>/model/<digest>/      model.safetensors or adapter_model.safetensors, configs, tokenizer
    training.json            what was asked and what was done: steps, tokens, losses, rows by status
    ids.txt                  the rows that were trained on, in order of id
    learning_rates.jsonl     the rate of every step
    epoch-k/                 weights and optimizer moments after epoch k (`epoch_checkpoints`; see moments.py)

LoRA's `targets="auto"`: q, k, v and o of the attention for Llama and Mistral, all linear layers of every
other architecture (Xia et al. 2024, arXiv:2402.04333, and Nayak et al. 2026, arXiv:2602.14696).
"""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tamis.core.cost import booked
from tamis.core.digest import bytes_digest, digest
from tamis.core.errors import RequestError
from tamis.core.extras import need
from tamis.core.files import replacing, write_json
from tamis.core.progress import progress
from tamis.core.store import Store, Thing
from tamis.models._training_rows import Prepared, prepare
from tamis.models.lm import LanguageModel, load_model
from tamis.models.recipes import Recipe, resolve_recipe
from tamis.models.render import Renderer

DEVICE_TOKENS = 4096
SAVE_SECONDS = 600.0
_WORK = ".work"
_QKVO = ("q_proj", "k_proj", "v_proj", "o_proj")
LORA_TARGETS = {"llama": _QKVO, "mistral": _QKVO}
"""By model_type; all linear layers where it is not here."""


@dataclass(frozen=True)
class Trained:
    """A trained model of the store. `path` goes wherever a model is named."""

    path: Path
    digest: str
    summary: Mapping[str, Any]

    def __str__(self) -> str:
        return str(self.path)


@dataclass(frozen=True)
class Asked:
    """A training run with everything that determines its weights, before any weight is loaded."""

    lm: LanguageModel  # tokenizer and config only
    recipe: Recipe
    seed: int
    rows: Prepared
    renderer: Renderer

    @property
    def identity(self) -> dict[str, Any]:
        """Recipe of the stored model: rows by their ids and rendered tokens, base weights, recipe, seed."""
        arrays = (np.ascontiguousarray(part) for part in (*self.rows.ids, *self.rows.labels))
        return {
            "method": "train",
            "version": 1,
            "rows": digest(self.rows.names),
            "tokens": bytes_digest(part.tobytes() for part in arrays),
            "base": self.lm.fingerprint,
            "renderer": self.renderer.recipe,
            "recipe": {**self.recipe.identity(), "compute": self.compute},
            "seed": self.seed,
        }

    @property
    def compute(self) -> str:
        """Dtype of the products."""
        if self.recipe.weights == "bfloat16":
            return "bfloat16"
        if self.recipe.compute != "auto":
            return self.recipe.compute
        return "bfloat16" if self.lm.device.startswith("cuda") else "float32"

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of an epoch; the last may be over fewer rows."""
        return -(-len(self.rows.ids) // self.recipe.batch_rows)

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.steps_per_epoch * self.recipe.epochs

    def flops(self, tokens: float) -> float:
        """6 P a token of a full step, 4 P of LoRA, whose base weights have no gradients; P all parameters."""
        return (4.0 if self.recipe.method == "lora" else 6.0) * self.lm.parameters * tokens


def train(
    rows: Any,
    *,
    model: str,
    recipe: str | Mapping[str, Any] | Recipe = "tulu2",
    out: str | Path | None = None,
    seed: int = 0,
    template: str = "auto",
    store: str | Path = ".tamis",
    device: str = "auto",
    device_tokens: int = DEVICE_TOKENS,
    save_seconds: float = SAVE_SECONDS,
    gradient_checkpointing: bool = False,
    remote_code: bool = False,
    quiet: bool = True,
) -> Trained:
    """Fine-tune `model` on `rows` (a Subset, or a whole Pool) by `recipe`; what is stored is not made again.

    `out`: a folder that gets the model too. `device_tokens`: most tokens on the device at a time, padding
    included; with `gradient_checkpointing` and `device` it changes the last bits at most. `save_seconds`:
    how much work a killed run may lose.
    Raises RequestError when the request cannot work or no row has a target.
    """
    pool = getattr(rows, "pool", rows)
    positions = np.asarray(getattr(rows, "positions", np.arange(len(pool))), np.int64)
    resolved = resolve_recipe(recipe)
    lm = trainable(model, resolved, device, remote_code)
    renderer = Renderer(lm.tokenizer, template, resolved.max_tokens)
    names = [str(name) for name in pool.ids[positions]]
    prepared = prepare(renderer, resolved, names, pool.messages_at(positions), seed)
    if not prepared.ids:
        raise RequestError(f"none of the {len(positions)} rows has a token to train on: {prepared.dropped}")
    asked = Asked(lm, resolved, seed, prepared, renderer)
    thing = Store(store).open("model", asked.identity)
    run = _Run(asked, thing, device_tokens, save_seconds, gradient_checkpointing, remote_code, quiet)
    while thing.state != "complete":
        thing.begin()
        with thing.claim(0) as free:
            if free:
                with booked(Path(store), "model", thing.digest, "train") as entry:
                    summary = run.train(entry)
                    thing.finish(summary)
            else:  # another process trains it
                time.sleep(0.2)
    if out is not None:
        _copy(thing, Path(out))
    return Trained(thing.folder, thing.digest, thing.summary)


def trainable(model: str, recipe: Recipe, device: str, remote_code: bool) -> LanguageModel:
    """Tokenizer and config of the base; raises RequestError for what cannot be trained."""
    lm = load_model(model, recipe.weights, device, remote_code, tokenizer_only=True)
    if lm.adapter:
        raise RequestError(
            f"{model} is an adapter: merge it into its base first (peft: merge_and_unload), then train that"
        )
    if lm.device.startswith("cuda") and lm.device != "cuda:0":
        raise RequestError(
            f"--device {device}: training runs on the first device; choose it by CUDA_VISIBLE_DEVICES"
        )
    return lm


def _copy(thing: Thing, out: Path) -> None:
    """The files of a model in a folder of the user's: the same files where that is possible, else copies."""
    for name in thing.meta["files"]:
        target = out / name
        with replacing(target) as temporary:
            try:
                os.link(thing.path(name), temporary)
            except OSError:
                shutil.copyfile(thing.path(name), temporary)


class _Run:
    """One run of the Trainer, in the partial folder of the thing that it makes."""

    def __init__(
        self,
        asked: Asked,
        thing: Thing,
        device_tokens: int,
        save_seconds: float,
        gradient_checkpointing: bool,
        remote_code: bool,
        quiet: bool,
    ) -> None:
        self.asked, self.thing, self.remote_code, self.quiet = asked, thing, remote_code, quiet
        self.save_seconds, self.gradient_checkpointing = save_seconds, gradient_checkpointing
        longest = max(map(len, asked.rows.ids))
        batch = asked.recipe.batch_rows
        fits = [rows for rows in range(1, batch + 1) if batch % rows == 0 and rows * longest <= device_tokens]
        self.micro_rows = max(fits, default=1)

    def train(self, entry: dict[str, Any]) -> dict[str, Any]:
        """Train, write everything into the partial folder, and say what was done."""
        need("transformers", extra="lm"), need("accelerate", extra="lm")
        from tamis.models._trainer import Course, Rows, Shuffled, StepTrainer, last_checkpoint
        from tamis.models.moments import MomentsCallback

        asked, recipe = self.asked, self.asked.recipe
        with _calm():
            model = self._model()
            order = Shuffled(list(map(len, asked.rows.ids)), recipe.batch_rows, asked.seed)
            work = self.thing.part / _WORK
            last = last_checkpoint(work)
            with progress(asked.steps, "steps", f"train {Path(asked.lm.path).name}", self.quiet) as advance:
                course = Course(order, self.save_seconds, advance, recipe.epoch_checkpoints)
                moments = MomentsCallback(self.thing.part, moments=recipe.epoch_checkpoints, weights=False)
                callbacks = [moments, course, *self._epoch_weights()]
                rows = Rows(asked.rows.ids, asked.rows.labels)
                trainer = StepTrainer(model, self._arguments(work), rows, order, callbacks=callbacks)
                trainer.remove_callback(need("transformers", extra="lm").PrinterCallback)
                trainer.train(resume_from_checkpoint=str(last) if last else None)
            self._save(model)
        steps = trainer.state.global_step
        tokens = sum(map(len, asked.rows.ids)) * recipe.epochs
        done = tokens * (steps - course.start) / max(steps, 1)
        entry.update(rows=len(asked.rows.ids), tokens=round(done), flops=asked.flops(done))
        entry.update(device=asked.lm.device, micro_rows=self.micro_rows, resumed_at_step=course.start)
        losses = [log["loss"] for log in trainer.state.log_history if "loss" in log]
        return self._written(model, steps, losses)

    def _model(self) -> Any:
        """The base with all or its adapter's weights to be trained."""
        asked, recipe = self.asked, self.asked.recipe
        need("transformers", extra="lm").set_seed(asked.seed)
        lm = load_model(asked.lm.path, recipe.weights, asked.lm.device, self.remote_code)
        if lm.learned_positions is not None and recipe.max_tokens > lm.learned_positions:
            raise RequestError(
                f"{lm.path}: its table of positions ends at {lm.learned_positions} tokens; the recipe's "
                f"max_tokens is {recipe.max_tokens}"
            )
        model = lm.model.requires_grad_(True)
        if recipe.method == "lora":
            peft = need("peft", extra="lm")
            config = lora_of(lm, recipe)
            try:
                model = peft.get_peft_model(model, config)
            except ValueError as error:
                raise RequestError(f"LoRA of {lm.path}: {error}") from error
        return model.train()

    def _arguments(self, work: Path) -> Any:
        asked, recipe = self.asked, self.asked.recipe
        schedules = {"constant": "constant_with_warmup"}
        arguments = need("transformers", extra="lm").TrainingArguments(
            output_dir=str(work),
            num_train_epochs=recipe.epochs,
            per_device_train_batch_size=self.micro_rows,
            gradient_accumulation_steps=recipe.batch_rows // self.micro_rows,
            learning_rate=recipe.learning_rate,
            lr_scheduler_type=schedules.get(recipe.schedule, recipe.schedule),
            warmup_steps=math.ceil(recipe.warmup * asked.steps),
            weight_decay=recipe.weight_decay,
            adam_beta1=recipe.beta1,
            adam_beta2=recipe.beta2,
            adam_epsilon=recipe.epsilon,
            max_grad_norm=recipe.clip,
            neftune_noise_alpha=recipe.neftune or None,
            optim="adamw_torch",
            bf16=asked.compute == "bfloat16" and recipe.weights == "float32",
            gradient_checkpointing=self.gradient_checkpointing,
            seed=asked.seed,
            use_cpu=asked.lm.device == "cpu",
            save_strategy="no",  # `Course` says when
            save_total_limit=2,
            logging_strategy="steps",
            logging_steps=1,
            report_to="none",
            disable_tqdm=True,
            remove_unused_columns=False,
            dataloader_num_workers=0,
        )
        # Where several devices are visible the library would split every micro-batch over them.
        arguments._n_gpu = min(arguments.n_gpu, 1)
        return arguments

    def _epoch_weights(self) -> list[Any]:
        from tamis.models._trainer import EpochWeights
        from tamis.models.moments import save_weights

        return [EpochWeights(self.thing.part, save_weights)] if self.asked.recipe.epoch_checkpoints else []

    def _save(self, model: Any) -> None:
        from tamis.models.moments import save_weights

        save_weights(model, self.thing.part)
        self.asked.lm.tokenizer.save_pretrained(self.thing.part)

    def _written(self, model: Any, steps: int, losses: Sequence[float]) -> dict[str, Any]:
        asked = self.asked
        rows = asked.rows
        summary = {
            "rows_given": rows.given,
            "rows": len(rows.names),
            "sequences": len(rows.ids),
            "dropped": rows.dropped,
            "truncated": rows.truncated,
            "epochs": asked.recipe.epochs,
            "steps": steps,
            "examples": len(rows.ids) * asked.recipe.epochs,
            "tokens": sum(map(len, rows.ids)) * asked.recipe.epochs,
            "target_tokens": rows.targets * asked.recipe.epochs,
            "parameters": sum(p.numel() for p in model.parameters()),
            "trained_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
            "loss_first": losses[0] if losses else None,
            "loss_last": losses[-1] if losses else None,
        }
        write_json(
            self.thing.part / "training.json", {"asked": asked.identity, "done": summary, "losses": losses}
        )
        with replacing(self.thing.part / "ids.txt") as temporary:
            temporary.write_text("".join(f"{name}\n" for name in rows.names))
        return summary


def lora_of(lm: LanguageModel, recipe: Recipe) -> Any:
    """The adapter that a recipe puts on a model, as PEFT's configuration."""
    targets = recipe.targets
    if targets == "auto":
        targets = LORA_TARGETS.get(str(lm.config.model_type), "all-linear")
    return need("peft", extra="lm").LoraConfig(
        r=recipe.rank,
        lora_alpha=recipe.alpha,
        lora_dropout=recipe.dropout,
        target_modules=targets if isinstance(targets, str) else list(targets),
        task_type="CAUSAL_LM",
        base_model_name_or_path=_lasting(lm.path),
    )


def _lasting(path: str) -> str:
    """A folder by its whole path, so that an adapter finds its base from everywhere; a hub id as it is."""
    return str(Path(path).resolve()) if Path(path).is_dir() else path


@contextlib.contextmanager
def _calm() -> Iterator[None]:
    """Without the libraries' progress bars and notices; errors are raised all the same."""
    logging = need("transformers", extra="lm").utils.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
