"""How fast a method will run here: as its earlier work in the ledger went, as a few real rows go now, or as a
stated share of what the device can do."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tamis.core.cost import peak_memory_bytes
from tamis.core.extras import need
from tamis.study._plan_pool import Known

CALIBRATION_S = 2.0
CALIBRATION_ROWS = 2048
FRACTION = 0.5
"""Share of a device's peak that an encoder reaches; 0.49 to 0.70 were measured on a CPU with small models,
and RDS+ of a 7B model on an H100, as published, comes to 0.44 if every row had 2,048 tokens."""
_WARM_ROWS = 8
_LEDGER_S = 2.0
_MATMUL_S = 0.1
_RUN_S = 0.25


@dataclass(frozen=True)
class Rate:
    """Seconds of a token and seconds once, with how they are known. `peak_memory`: of the process then."""

    per_token: float
    once: float
    how: str
    peak_memory: int | None = None


@dataclass
class Trial:
    """What encoding some rows of the pool gave: counts, time, and the last run's arrays. `per_token` is the
    median over runs of like size, so that a short disturbance does not count; `idle` is the share of the
    time in which this process did not run, when other work holds the cores of a CPU."""

    rows: int = 0
    tokens: int = 0
    characters: float = 0.0
    bytes: float = 0.0
    seconds: float = 0.0
    once: float = 0.0
    per_token: float = 0.0
    idle: float = 0.0
    arrays: dict[str, np.ndarray] = field(default_factory=dict)


def ledger_rate(
    store: Path, method: str, made_by: Mapping[str, Any] | None, device: str | None
) -> Rate | None:
    """From the lines of `method` with the same model, dtype and device; the first line of every thing is left
    out, for it holds the loading. None when they come to less than two seconds of work."""
    if made_by is None:
        return None
    tokens = seconds = once = 0.0
    first: dict[str, tuple[float, float]] = {}
    peak = 0
    for entry in _lines(store):
        if entry.get("method") != method or entry.get("kind") == "subset" or entry.get("device") != device:
            continue
        name = entry["digest"]
        if not _same_work(store, entry["kind"], name, made_by) or not entry.get("tokens"):
            continue
        peak = max(peak, int(entry.get("peak_memory_bytes") or 0))
        if name not in first:
            first[name] = entry["tokens"], entry["seconds"]
            continue
        tokens, seconds = tokens + entry["tokens"], seconds + entry["seconds"]
    if seconds < _LEDGER_S:
        return None
    per_token = seconds / tokens
    once = float(np.median([max(spent - count * per_token, 0.0) for count, spent in first.values()]))
    how = (
        f"rate of this store's ledger: {tokens:,.0f} tokens in {seconds:,.0f} s of the same model and device"
    )
    return Rate(per_token, once, how, peak)


def _lines(store: Path) -> Iterator[dict[str, Any]]:
    path = store / "ledger.jsonl"
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                yield json.loads(line)
            except json.JSONDecodeError:  # a torn last line
                continue


def _same_work(store: Path, kind: str, digest: str, made_by: Mapping[str, Any]) -> bool:
    """Whether a stored thing was made by the same method and model; its text and pool may differ."""
    for folder, name in ((digest, "meta.json"), (f"{digest}.part", "recipe.json")):
        path = store / kind / folder / name
        if path.exists():
            known = json.loads(path.read_text(encoding="utf-8"))["recipe"].get("made_by", {})
            return _without_text(known) == _without_text(json.loads(json.dumps(dict(made_by))))
    return False


def _without_text(made_by: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in made_by.items() if key != "renderer"}


def tried(run: Any, pool: Known, seconds: float = CALIBRATION_S) -> Trial:
    """Encode (or score) rows from all over the pool for about `seconds`; the first few are for loading and
    are timed apart."""
    found = Trial()
    order = pool.sample(CALIBRATION_ROWS)
    # Spread in the order taken too, for only the first ones may be reached.
    order = order[np.argsort(np.arange(len(order)) * 0.6180339887498949 % 1.0, kind="stable")]
    warm, left = order[:_WARM_ROWS], order[_WARM_ROWS:]
    start = time.perf_counter()
    first = _run(run, pool, warm)
    found.once = time.perf_counter() - start
    if not len(left):  # a pool of few rows is all loading
        _count(found, pool, warm, first)
        return found
    size, runs, cpu = 2 * _WARM_ROWS, [], time.process_time()
    while len(left) and found.seconds < seconds:
        rows, left = left[:size], left[size:]
        start = time.perf_counter()
        made = _run(run, pool, rows)
        spent = time.perf_counter() - start
        tokens = _count(found, pool, rows, made)
        found.seconds += spent
        runs.append((len(rows), spent / max(tokens, 1)))
        if spent < _RUN_S:
            size = min(2 * size, 1024)
    like = [each for count, each in runs if 2 * count >= max(count for count, _ in runs)]
    found.per_token = float(np.median(like))
    found.idle = max(0.0, 1.0 - (time.process_time() - cpu) / max(found.seconds, 1e-9))
    found.once = max(found.once - found.per_token * _read(first), 0.0)
    return found


def _count(found: Trial, pool: Known, rows: np.ndarray, made: Any) -> int:
    assert pool.pool is not None
    tokens = _read(made)
    found.rows += len(rows)
    found.tokens += tokens
    found.characters += float(np.sum(pool.pool.chars[rows]))
    found.arrays = dict(getattr(made, "arrays", {})) or {"values": made.values}
    found.bytes += sum(array.nbytes for array in found.arrays.values())
    return tokens


def _read(made: Any) -> int:
    """Tokens that were read: those of a score may go through the model more than once."""
    read = getattr(made, "tokens_read", None)
    return int(np.maximum(made.tokens, 0).sum(dtype=np.int64)) if read is None else int(read)


def _run(run: Any, pool: Known, rows: np.ndarray) -> Any:
    assert pool.pool is not None
    rows = np.sort(rows)
    conversations = list(pool.pool.messages_at(rows))
    work = run.encode if hasattr(run, "encode") else run.score
    return work(conversations, lambda tokens: None)


def device_peak(device: str, dtype: str, tflops: float | None) -> tuple[float, str]:
    """Operations a second that products reach on `device`, and how that is known."""
    if tflops is not None:
        return tflops * 1e12, f"{tflops:g} TFLOP/s as given (--device-tflops)"
    torch = need("torch", extra="lm")
    n = 8192 if device.startswith("cuda") else 1024
    a = torch.randn(n, n, device=device).to(getattr(torch, dtype))
    peak = 2 * n**3 / _least(lambda: float((a @ a)[0, 0]))
    return peak, f"{peak / 1e12:.2g} TFLOP/s measured on {device} in {dtype}"


def numpy_peak() -> float:
    """float32 operations a second of numpy's products here."""
    a = np.ones((512, 512), np.float32)
    return 2 * 512**3 / _least(lambda: a @ a)


def _least(work: Callable[[], Any]) -> float:
    """Least seconds of a call among those of a tenth of a second, so that other work does not count."""
    work()
    least, end = float("inf"), time.perf_counter() + _MATMUL_S
    while time.perf_counter() < end:
        start = time.perf_counter()
        work()
        least = min(least, time.perf_counter() - start)
    return least


def resident_bytes() -> int:
    """Memory of this process now; its peak where the system does not tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return peak_memory_bytes()
    import resource

    return pages * resource.getpagesize()
