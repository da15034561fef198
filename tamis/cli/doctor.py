"""`tamis doctor`: this machine, the optional packages, a store, and batching of a given model."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
from pathlib import Path
from typing import Any

from tamis.core.extras import EXTRAS, installed
from tamis.core.store import Store


def run(model: str | None, device: str, dtype: str, store: Path, as_json: bool, remote_code: bool) -> None:
    """Print what was found; exit 4 when the store is damaged or batching changes the model's vectors."""
    found: dict[str, Any] = {
        "machine": machine(store),
        "versions": package_versions(),
        "extras": {name: missing(name) for name in EXTRAS},
        "store": store_health(store),
    }
    if model is not None:
        from tamis.models.check import batch_invariance

        found["model"] = batch_invariance(model, device=device, dtype=dtype, remote_code=remote_code)
    if as_json:
        print(json.dumps(found, ensure_ascii=False))
    else:
        _show(found)
    if found["store"]["faults"] or not found.get("model", {}).get("invariant", True):
        raise SystemExit(4)


def machine(store: Path) -> dict[str, Any]:
    """Processor cores, memory, free disk at the store, and the accelerators that torch sees."""
    folder = store
    while not folder.exists():
        folder = folder.parent if folder != folder.parent else Path(".")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    found: dict[str, Any] = {
        "system": platform.platform(),
        "python": platform.python_version(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(memory / 2**30, 1),
        "disk_free_gib": round(shutil.disk_usage(folder).free / 2**30, 1),
        "devices": ["cpu"],
    }
    torch = installed("torch")
    if torch is not None:
        for i in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(i)
            found["devices"].append(f"cuda:{i} {properties.name} {properties.total_memory / 2**30:.0f} GiB")
        if torch.backends.mps.is_available():
            found["devices"].append("mps")
    return found


def package_versions() -> dict[str, str]:
    """Versions of everything tamis requires or can use."""
    names = ["tamis", "numpy", "scipy", "pyarrow", "torch", "transformers", "peft", "datasets"]
    found = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def missing(extra: str) -> list[str]:
    """Packages of an extra that are not installed; with what to do in the printed form."""
    return [module for module in EXTRAS[extra] if importlib.util.find_spec(module) is None]


def store_health(root: Path) -> dict[str, Any]:
    """Things by state, and every fault: checksums, unlisted files, leftovers of an interrupted rename."""
    store = Store(root)
    things = list(store.things())
    complete = {(kind, digest) for kind, digest, state in things if state == "complete"}
    partial = [(kind, digest) for kind, digest, state in things if state == "partial"]
    return {
        "folder": str(root),
        "complete": len(complete),
        "partial": [f"{kind}/{digest}" for kind, digest in partial if (kind, digest) not in complete],
        "orphaned": [f"{kind}/{digest}.part" for kind, digest in partial if (kind, digest) in complete],
        "faults": [f"{fault.path}: {fault.reason}" for fault in store.check()],
    }


def _show(found: dict[str, Any]) -> None:
    for key, value in found["machine"].items():
        print(f"{key}: {', '.join(value) if isinstance(value, list) else value}")
    print("versions: " + ", ".join(f"{name} {version}" for name, version in found["versions"].items()))
    for extra, modules in found["extras"].items():
        state = (
            f"missing {', '.join(modules)}; add with: pip install 'tamis[{extra}]'" if modules else "ready"
        )
        print(f"extra {extra}: {state}")
    store = found["store"]
    print(f"store {store['folder']}: {store['complete']} complete, {len(store['partial'])} partial")
    for name in store["partial"]:
        print(f"  partial {name}: the command that began it continues it")
    for name in store["orphaned"]:
        print(f"  left over {name}: the thing is complete; this folder can be deleted")
    for fault in store["faults"]:
        print(f"  damaged {fault}: delete the folder and run the command again")
    for key, value in found.get("model", {}).items():
        for part, text in value.items() if isinstance(value, dict) else [("", value)]:
            print(f"model {key} {part}: {text}" if part else f"model {key}: {text}")
