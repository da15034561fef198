"""Rows to features of their gradients at one checkpoint of an adapter."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tamis.core.errors import RequestError
from tamis.core.files import read_json
from tamis.core.status import code
from tamis.core.vectors import unit
from tamis.models import preconditioners
from tamis.models.checkpoints import Checkpoint, read_checkpoint_moments
from tamis.models.lm import fingerprint, load_model, shared_model
from tamis.models.projections import Against, Slot, projection
from tamis.models.render import Rendered, Renderer
from tamis.representations._context import Context, Encoded

if TYPE_CHECKING:
    import torch

    from tamis.models.gradients import GradientEngine, Gradients
    from tamis.pools.pool import Message
    from tamis.representations.less import Config


UNPROJECTED_MOST, UNPROJECTED_QUERY_MOST = 1 << 22, 1 << 26
"""Numbers of an adapter whose gradients may be kept whole, of pool rows and of query rows."""


class GradientEncoder:
    """Features of one side at `checkpoint`: pool rows preconditioned, query rows plain.

    `base`: the model that the adapter must be of, in place of the one that it names; None: that one.
    `against`: unit features (m, d) of query rows and their digest; then what is kept of a row is its m
    cosines in place of its vector. The weights are loaded when the first rows come.
    """

    def __init__(
        self,
        config: Config,
        context: Context,
        checkpoint: Checkpoint,
        base: str | None = None,
        against: tuple[np.ndarray, str] | None = None,
    ) -> None:
        self.config, self.context, self.checkpoint, self.against = config, context, checkpoint, against
        self.base = base
        self.path = str(checkpoint.folder)
        self._described = load_model(
            self.path, context.dtype, context.device, context.remote_code, tokenizer_only=True, base=base
        )
        self.renderer = Renderer(
            self._described.tokenizer, context.template, context.max_tokens, context.compatible
        )
        self.preconditioner = config.preconditioner if context.role == "pool" else "none"
        check_origin(checkpoint.folder, self._described.path, self.renderer)
        has_moments = "moments" in checkpoint.fingerprint
        if self.preconditioner in preconditioners.NEED_MOMENTS and not has_moments:
            read_checkpoint_moments(checkpoint, {})  # says what was looked for
        self._mean_tokens = 0.0
        self._ran: dict[str, Any] = {}

    @property
    def exact(self) -> bool:
        """Whether cosines are of whole gradients, those of the queries alone being held."""
        return self.against is not None and self.config.projection == "none"

    def measuring(self, features: np.ndarray, name: str) -> GradientEncoder:
        """The same, keeping the cosines with unit features (m, d), called `name`, in place of vectors."""
        return GradientEncoder(self.config, self.context, self.checkpoint, self.base, (features, name))

    @cached_property
    def recipe(self) -> dict[str, Any]:
        """Weights, adapter, moments, text, preconditioner and projection; no device and no batching."""
        config, known = self.config, self.checkpoint.fingerprint
        found: dict[str, Any] = {
            "stored_as": "gradients",
            "base": fingerprint(self._described.path, getattr(self._described.config, "_commit_hash", None)),
            "adapter": known["adapter"],
            "renderer": {**self.renderer.recipe, "role": self.context.role},
            "model_dtype": self._described.dtype,
            "preconditioner": self.preconditioner,
            "projection": config.projection,
            "dropout": config.dropout,
            "dtype": config.dtype,
        }
        if config.projection != "none":
            found |= {"dimensions": config.dimensions, "seed": config.projection_seed}
        if self.preconditioner in preconditioners.NEED_MOMENTS:
            found["moments"] = known["moments"]
            found["constants"] = [config.beta1, config.beta2, config.epsilon]
        if self.against is not None:
            found["against"] = self.against[1]
        return found

    @property
    def dimensions(self) -> int:
        """d of the features; unprojected, as many as the adapter has numbers."""
        if self.config.projection == "none":
            return self._engine.parameters
        return self.config.dimensions

    @property
    def flops_per_token(self) -> float:
        """A forward pass and a backward pass without gradients of weights, at the mean length so far."""
        return 2 * self._described.forward_flops(self._mean_tokens)

    @property
    def execution(self) -> dict[str, Any]:
        """Device and dtype; once rows were encoded, also how gradients were taken and why so."""
        found: dict[str, Any] = {"device": self._described.device, "dtype": self._described.dtype}
        if self._ran:
            found |= self._ran
        elif "_engine" in self.__dict__:
            run = self._engine
            mode = "loop" if run.looped else run.mode
            found |= {"mode": mode, "why": run.why, "batch_tokens": run.batch_tokens}
            found["adapter_parameters"] = run.parameters
        return found

    def render(self, conversations: Sequence[Sequence[Message]]) -> list[Rendered]:
        """The rows as the model sees them."""
        query = self.context.role == "query"
        return (self.renderer.render_queries if query else self.renderer.render_many)(conversations)

    def count_tokens(self, conversations: Sequence[Sequence[Message]]) -> list[int]:
        """Tokens of each row after truncation; 0 for a row that is refused."""
        return [len(row.ids) for row in self.render(conversations)]

    def encode(self, conversations: Sequence[Sequence[Message]], advance: Callable[[int], None]) -> Encoded:
        """Arrays of b rows: `vectors` (b, d) of length 1 or `similarity` (b, m), `norms` (b,) of the plain
        gradients and `losses` (b,), float32. Rows that are not scored have zeros, and NaN for those two."""
        rendered = self.render(conversations)
        targets = [_targets(row) for row in rendered]
        tokens = np.array([len(row.ids) for row in rendered], np.int32)
        status = np.array([code(_status(r, t)) for r, t in zip(rendered, targets, strict=True)], np.uint8)
        reasons = {i: row.reason for i, row in enumerate(rendered) if row.reason}
        self._mark_long(tokens, status, reasons)
        rows = np.flatnonzero(status <= code("truncated"))
        count, width = len(rendered), self.dimensions if self.against is None else len(self.against[0])
        kept = np.zeros((count, width), self.config.dtype)
        norms, losses = (np.full(count, np.nan, np.float32) for _ in range(2))
        if len(rows):
            self._mean_tokens = float(tokens[rows].mean())
            found = self._engine.features(
                [rendered[i].ids for i in rows],
                [targets[i] for i in rows],
                self._projection,
                None if self.preconditioner == "none" else self._precondition,
                advance,
            )
            norms[rows], losses[rows] = found.norms, found.losses
            kept[rows] = self._kept(rows, found, status, reasons)
            norms[status > code("truncated")] = losses[status > code("truncated")] = np.nan
        name = "vectors" if self.against is None else "similarity"
        return Encoded({name: kept, "norms": norms, "losses": losses}, status, tokens, reasons)

    def _kept(
        self, rows: np.ndarray, found: Gradients, status: np.ndarray, reasons: dict[int, str]
    ) -> np.ndarray:
        """What is kept of the features; rows that failed, are not finite or zero get their status. Of a
        gradient of zeros, moments alone would be left, which are no feature of the row."""
        failed, features = self._engine.failed, found.features
        finite = np.isfinite(features).all(axis=1) & np.isfinite(found.norms)
        good = finite & features.any(axis=1) & (found.norms > 0)
        if self.exact:
            good &= features[:, -1] > 0
        for k in np.flatnonzero(~good):
            i = int(rows[k])
            status[i] = code("failed" if int(k) in failed else "non_finite")
            zero = "the gradient is zero" if finite[k] else "a gradient is not a finite number"
            reasons[i] = failed.get(int(k), zero)
        if self.exact:  # products with the queries' gradients, and the square of the row's own length
            cosines = np.zeros_like(features[:, :-1])
            cosines[good] = features[good, :-1] / np.sqrt(features[good, -1:])
            return cosines
        vectors = np.zeros_like(features)
        vectors[good] = unit(features[good])
        return vectors if self.against is None else vectors @ self.against[0].T

    def _mark_long(self, tokens: np.ndarray, status: np.ndarray, reasons: dict[int, str]) -> None:
        limit = self._engine.lm.learned_positions if len(tokens) else None
        if limit is None:
            return
        self._engine.lm.check_positions(self.context.max_tokens)
        for i in np.flatnonzero(tokens > limit):
            status[i] = code("too_long")
            reasons[int(i)] = f"{tokens[i]} tokens; the model's table of positions ends at {limit}"

    # --- the model -------------------------------------------------------------------------------------

    def release(self) -> None:
        """Let go of weights, moments and signs, so that those of the next checkpoint have room; when more
        rows come they are loaded again."""
        self._ran = self.execution if "_engine" in self.__dict__ else self._ran
        for name in ("_engine", "_moments", "_projection"):
            self.__dict__.pop(name, None)

    @cached_property
    def _engine(self) -> GradientEngine:
        from tamis.models.gradients import GradientEngine

        context = self.context
        lm = shared_model(self.path, context.dtype, context.device, context.remote_code, self.base)
        engine = GradientEngine(lm, context.batch_tokens, self.config.dropout)
        most = UNPROJECTED_MOST if self.context.role == "pool" else UNPROJECTED_QUERY_MOST
        if self.config.projection == "none" and not self.exact and engine.parameters > most:
            raise RequestError(
                f"{self.path}: projection=none would keep {engine.parameters:,} numbers of every row, more "
                f"than {most:,}: take count-sketch, or keep=similarity, which keeps whole gradients of the "
                "queries alone"
            )
        return engine

    @cached_property
    def _projection(self) -> Any:
        config, engine = self.config, self._engine
        if self.exact and self.against is not None:
            import torch

            return Against(torch.from_numpy(np.ascontiguousarray(self.against[0])).to(engine.lm.device))
        return projection(
            config.projection, engine.layout, config.dimensions, config.projection_seed, engine.lm.device
        )

    @cached_property
    def _moments(self) -> dict[str, preconditioners.Moments]:
        shapes = {slot.name: slot.shape for slot in self._engine.layout}
        found = read_checkpoint_moments(self.checkpoint, shapes)
        device = self._engine.lm.device
        return {
            name: preconditioners.Moments(
                found.first[name].flatten().to(device), found.second[name].flatten().to(device)
            )
            for name in shapes
        }

    def _precondition(self, slot: Slot, g: torch.Tensor) -> torch.Tensor:
        config = self.config
        constants = preconditioners.Constants(config.beta1, config.beta2, config.epsilon)
        moments = self._moments[slot.name] if self.preconditioner in preconditioners.NEED_MOMENTS else None
        return preconditioners.PRECONDITIONERS[self.preconditioner](g, moments, constants)


def check_origin(folder: Path, base: str, renderer: Renderer) -> None:
    """Raise RequestError where an adapter is of another base, or was trained with another template.

    What tamis trained has a record of both (`training.json`); any other adapter names its base, which is
    compared when it is here."""
    named = Path(str(read_json(folder / "adapter_config.json").get("base_model_name_or_path") or ""))
    other = named != Path(base) and (named / "config.json").exists() and Path(base).is_dir()
    if other and fingerprint(str(named)) != fingerprint(base):
        raise RequestError(
            f"{folder}: this adapter is of {named}, whose weights are not those of --model {base}; give the "
            "base that it was trained on"
        )
    record = next(
        (p for p in (folder / "training.json", folder.parent / "training.json") if p.exists()), None
    )
    if record is None:
        return
    asked = read_json(record)["asked"]
    weights = asked["base"].get("weights")
    if weights and Path(base).is_dir() and weights != fingerprint(base):
        raise RequestError(
            f"{folder}: this adapter was trained on other weights than those of {base}; give the base it was "
            "trained on with --model"
        )
    ours = renderer.recipe
    for key in ("template", "tokenizer"):
        if asked["renderer"].get(key) != ours[key]:
            raise RequestError(
                f"{folder}: this adapter was trained with another {key}; its gradients are of rows as it saw "
                "them: give the same --template and tokenizer, or train another"
            )


def _targets(row: Rendered) -> np.ndarray:
    """Tokens (L,) bool whose loss counts: the supervised ones, but the first, which follows nothing."""
    wanted = row.mask.copy()
    wanted[:1] = False
    return wanted


def _status(row: Rendered, targets: np.ndarray) -> str:
    if row.status == "refused":
        return "refused"
    if not targets.any():
        return "no_target_tokens"
    return "truncated" if row.truncated else "ok"
