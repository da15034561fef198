"""tamis: which rows of instruction data to train on, and was it worth it.

The public names are below; importing the package imports none of their modules until they are used.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "Pool": "tamis.pools.pool",
    "Representation": "tamis.representations.represent",
    "Scores": "tamis.scores.score",
    "Subset": "tamis.study.subset",
    "Method": "tamis.core.method",
    "TamisError": "tamis.core.errors",
    "read_pool": "tamis.pools.read",
    "represent": "tamis.representations.represent",
    "score": "tamis.scores.score",
    "choose": "tamis.selections",
    "select": "tamis.study.select",
    "train": "tamis.models.train",
    "warm_up": "tamis.study.pre_experience",
    "export": "tamis.pools.export",
    "report": "tamis.study.report",
    "REPRESENTATIONS": "tamis.representations",
    "SCORES": "tamis.scores",
    "SELECTIONS": "tamis.selections",
}

__all__ = [*_PUBLIC, "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'tamis' has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
