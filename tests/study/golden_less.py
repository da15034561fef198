"""The golden pool, targets and checkpoints of LESS as files that tamis reads."""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection
from pathlib import Path

import numpy as np

from tests.conftest import shared

MULTI_TURN = (1, 12, 27, 52)  # their labels are not tamis' own: the newline after an inner turn is a target
WITHOUT_TARGET = 57
RATES = (0.0014210526315789475, 0.0005789473684210526)
TASKS = ("gsm8k", "alpaca", "dolly")


def checkpoints(folder: Path, moments: bool = True) -> Path:
    """epoch-1 and epoch-2 with the moments in tamis' own form."""
    for epoch, rate in enumerate(RATES, 1):
        source, target = shared(f"golden/less/checkpoint-{10 * epoch}"), folder / f"epoch-{epoch}"
        target.mkdir(parents=True)
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            shutil.copyfile(source / name, target / name)
        for theirs, ours in (("adam_m", "exp_avg"), ("adam_v", "exp_avg_sq")):
            if moments:
                shutil.copyfile(source / f"{theirs}.safetensors", target / f"{ours}.safetensors")
        record = {"epoch": epoch, "step": 10 * epoch, "learning_rate_mean": rate}
        (target / "epoch.json").write_text(json.dumps(record))
    return folder


def pool(path: Path, without: Collection[int] = MULTI_TURN) -> list[int]:
    """Write the pool; the golden rows in it."""
    lines = shared("golden/pool.jsonl").read_text(encoding="utf-8").splitlines()
    kept = [row for row in range(len(lines)) if row not in without]
    path.write_text("".join(f"{lines[row]}\n" for row in kept), encoding="utf-8")
    return kept


def query(path: Path, rows: Collection[int], sources: Collection[str]) -> Path:
    """Write some query rows, each with a source."""
    lines = shared("golden/query.jsonl").read_text(encoding="utf-8").splitlines()
    with path.open("w", encoding="utf-8") as file:
        for row, source in zip(rows, sources, strict=True):
            file.write(json.dumps({**json.loads(lines[row]), "source": source}) + "\n")
    return path


def scores() -> dict[str, np.ndarray]:
    """Golden arrays."""
    return dict(np.load(shared("golden/less/scores.npz"), allow_pickle=False))
