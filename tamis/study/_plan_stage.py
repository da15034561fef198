"""One stage of a plan, and what several stages come to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Stage:
    """A piece of work: what of it is in the store, and what the rest is expected to take.

    `state`: complete, partial or missing for stored things, due for what every run does again. `rows`,
    `tokens`, `flops` and `seconds` are those still due, `disk_bytes` what will be added. `memory_bytes`: peak
    of the process until the stage is over; `device_bytes`: peak on the device when that is not the CPU.
    `api_calls`, `api_usd`: requests to a server and their price at full length.
    `published_flops`: 2 P T N with all parameters, as published comparisons count. `how`: field → how it was
    estimated. `digest`: name of the stored thing, None where it cannot be known yet.
    """

    name: str
    state: str
    rows: int = 0
    tokens: float = 0.0
    flops: float = 0.0
    seconds: float = 0.0
    disk_bytes: float = 0.0
    memory_bytes: float = 0.0
    device_bytes: float = 0.0
    api_calls: int = 0
    api_usd: float = 0.0
    published_flops: float = 0.0
    digest: str | None = None
    kind: str | None = None
    shards: int = 0
    shards_done: int = 0
    how: Mapping[str, str] = field(default_factory=dict)


_SUMS = ("rows", "tokens", "flops", "published_flops", "seconds", "disk_bytes", "api_calls", "api_usd")
_LARGEST = ("memory_bytes", "device_bytes")


@dataclass(frozen=True)
class Plan:
    """Stages in the order in which `select` runs them. `facts`: pool, model and machine as they were taken;
    `notes`: what the estimates leave out or assume; `price`: US dollars of a device hour, if given."""

    stages: Sequence[Stage]
    facts: Mapping[str, Any]
    notes: Sequence[str]
    price: float | None = None

    @property
    def totals(self) -> dict[str, float]:
        """Sums over the stages, and the largest memory."""
        found: dict[str, float] = {name: sum(getattr(s, name) for s in self.stages) for name in _SUMS}
        del found["rows"]  # the same rows go through several stages
        found["tokens"] = sum(s.tokens for s in self.stages if s.kind in ("representation", "scores"))
        found |= {name: max((getattr(s, name) for s in self.stages), default=0) for name in _LARGEST}
        found["minutes"] = found["seconds"] / 60
        if self.price is not None:
            found["usd"] = sum(self.cost(stage) for stage in self.stages)
        return found

    def usd(self, seconds: float) -> float:
        """Price of some time on the device."""
        return seconds / 3600 * (self.price or 0.0)

    def cost(self, stage: Stage) -> float:
        """Price of a stage: of the device's time, or of the calls where a server does the work."""
        return stage.api_usd if stage.api_calls else self.usd(stage.seconds)

    def as_json(self) -> dict[str, Any]:
        """Everything, as JSON."""
        stages = []
        for stage in self.stages:
            entry = {**vars(stage), "how": dict(stage.how), "minutes": stage.seconds / 60}
            if self.price is not None:
                entry["usd"] = self.cost(stage)
            stages.append(entry)
        return {
            "stages": stages,
            "totals": self.totals,
            "facts": dict(self.facts),
            "notes": list(self.notes),
            "price_device_hour_usd": self.price,
        }
