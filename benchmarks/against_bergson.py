"""Agreement with bergson, and the time of both in one run: per-row gradients, and its `rms` features.

    python -m venv ENV
    ENV/bin/pip install bergson orjson pyarrow jinja2 pyyaml rich typer scipy
    ENV/bin/pip uninstall -y torchvision torchaudio     # of another build of torch; nothing here needs them
    ENV/bin/pip install torch==2.13.0 transformers==5.23.0        # those of the environment that tamis is in
    python benchmarks/against_bergson.py --python ENV --shared ../shared --out benchmarks/results/bergson.json

bergson is in an environment of its own, where both engines then run, one process, one thread, in turns, on
the same token ids and labels, the same model in float32 and the adapter of a short warm-up. Its gradients
come from its in-memory collector, unprojected, loss_reduction="mean", on padded batches of at most 2,048
tokens, rows of like length together; ours likewise unprojected, every number kept. Its normaliser is made of
the checkpoint's second moments. Errors are relative to the row's norm: |a - b| / |b|. Times are processor
time, medians.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent


def errors(ours: np.ndarray, theirs: np.ndarray) -> dict[str, float]:
    each = np.linalg.norm(ours - theirs, axis=1) / np.linalg.norm(theirs, axis=1)
    return {"max": float(each.max()), "median": float(np.median(each))}


def by_bergson(
    model: Any, ids: list[np.ndarray], targets: list[np.ndarray], layout: Any, moments: Any, folder: str
) -> np.ndarray:
    """Gradients (n, p) in the order of `layout`; with `moments`, as its normaliser leaves them."""
    from bergson.collector.collector import CollectorComputer
    from bergson.collector.in_memory_collector import InMemoryCollector
    from bergson.config.config import IndexConfig
    from bergson.gradients import AdamNormalizer, GradientProcessor
    from datasets import Dataset

    from tamis.models.packing import batches

    labels = [np.where(wanted, row, -100).tolist() for row, wanted in zip(ids, targets, strict=True)]
    data = Dataset.from_dict({"input_ids": [row.tolist() for row in ids], "labels": labels})
    names = {slot.name.removeprefix("base_model.").removesuffix(".weight"): slot for slot in layout}
    kinds = {
        name: AdamNormalizer(weight_avg_sq=moments[slot.name].second.reshape(slot.shape).clone())
        for name, slot in names.items()
        if moments is not None
    }
    config = IndexConfig(run_path=f"{folder}/run", loss_reduction="mean", token_batch_size=2048)
    config.partial_run_path.mkdir(parents=True, exist_ok=True)
    collector = InMemoryCollector(
        model=model.base_model,
        data=data,
        cfg=config,
        processor=GradientProcessor(normalizers=kinds),
        target_modules=set(names),
    )
    plan = list(batches(range(len(ids)), [len(row) for row in ids], 2048, "padded"))
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        CollectorComputer(
            model=model, data=data, collector=collector, batches=plan, cfg=config
        ).run_with_collector_hooks()
    return np.concatenate([collector.gradients[name].float().numpy() for name in names], axis=1)


def both(adapter: str, rows: str, count: int, repeats: int) -> dict[str, Any]:
    """In bergson's environment."""
    import logging
    from importlib.metadata import version

    import torch
    from _warmed import folded, moments_of, rendered

    from tamis.models.checkpoints import find_checkpoints
    from tamis.models.gradients import GradientEngine, loop_gradient
    from tamis.models.lm import load_model
    from tamis.models.projections import Concatenation

    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    lm = load_model(adapter, "float32", "cpu")
    engine = GradientEngine(lm)
    checkpoint = find_checkpoints(adapter)[0]
    moments = moments_of(checkpoint, engine)
    ids, targets = (part[:count] for part in rendered(lm.tokenizer, Path(rows), 1024))
    exact, rms = Concatenation(engine.layout), folded(checkpoint, engine, "rms")
    trained = [p for name, p in lm.model.named_parameters() if name in lm.trained]

    def ours(precondition: Any = None) -> np.ndarray:
        return engine.features(ids, targets, exact, precondition).features

    def theirs(kind: Any = None) -> np.ndarray:
        for parameter in trained:
            parameter.requires_grad_(True)
        try:
            with tempfile.TemporaryDirectory() as folder, torch.enable_grad():
                return by_bergson(lm.model, ids, targets, engine.layout, kind, folder)
        finally:
            for parameter in trained:
                parameter.requires_grad_(False)

    def loop() -> np.ndarray:
        parts = [loop_gradient(lm, engine._parameters, a, b)[1] for a, b in zip(ids, targets, strict=True)]
        return np.stack([torch.cat([g.flatten() for g in row]).numpy() for row in parts])

    plain = loop()
    found = {
        "versions": {
            name: version(name) for name in ("bergson", "torch", "transformers", "peft", "datasets", "numpy")
        },
        "model": Path(lm.path).name,
        "parameters": engine.parameters,
        "rows": len(ids),
        "tokens": sum(map(len, ids)),
        "raw": errors(ours(), theirs()),
        "raw_ours_to_loop": errors(ours(), plain),
        "raw_bergson_to_loop": errors(theirs(), plain),
        "rms": errors(ours(rms), theirs(moments)),
    }
    works: dict[str, Callable[[], Any]] = {"loop": loop, "bergson": theirs, "tamis": ours}
    works |= {"bergson_rms": lambda: theirs(moments), "tamis_rms": lambda: ours(rms)}
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(repeats):
        for name, work in works.items():
            start = time.process_time()
            work()
            times[name].append(1000 * (time.process_time() - start) / len(ids))
    found["cpu_ms_per_row"] = {name: round(statistics.median(run), 2) for name, run in times.items()}
    for kind in ("", "_rms"):
        pairs = zip(times[f"bergson{kind}"], times[f"tamis{kind}"], strict=True)
        found[f"ratio{kind}"] = [round(a / b, 2) for a, b in pairs]
    found["times_as_fast_as_bergson"] = round(statistics.median(found["ratio"]), 2)
    found["load"] = round(os.getloadavg()[0], 1)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--python", type=Path, required=True, metavar="ENV", help="bergson's environment")
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    parser.add_argument("--work", type=Path, default=Path("/tmp/tamis-bergson"))
    parser.add_argument("--ranks", type=int, nargs="+", default=[8, 64])
    parser.add_argument("--rows", type=int, default=48)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path)
    for name in ("--adapter", "--material"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.adapter:
        print(json.dumps(both(given.adapter, given.material, given.rows, given.repeats)))
        return
    from _warmed import material, warmed

    inside = given.python / "bin" / "python" if given.python.is_dir() else given.python
    model, rows = material(given.shared, given.work, max(4 * given.rows, 256))
    cases = []
    for rank in given.ranks:
        adapter = warmed(model, rows, given.work, rank, epochs=1, learning_rate=1e-3)[-1]
        command = [
            str(inside), __file__, "--python", str(inside), "--adapter", str(adapter.folder),
            "--material", str(rows), "--rows", str(given.rows), "--repeats", str(given.repeats),
        ]  # fmt: skip
        environment = {**os.environ, "PYTHONPATH": str(HERE.parent), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
        cases.append({"rank": rank, **json.loads(done.stdout.splitlines()[-1])})
        print(json.dumps(cases[-1]), file=sys.stderr, flush=True)
    found = {"time": "processor time of one thread, in turns, medians", "cases": cases}
    print(json.dumps(found, indent=1))
    if given.out:
        given.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
