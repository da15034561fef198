"""The exception tree. Every error a user can cause is one of these, with the exit code of the command line.

TamisError                 base; never raised itself
├── RequestError    (2)    the request is wrong; nothing was started
│   └── MissingExtra       a package of an optional extra is not installed
├── PoolError       (3)    input rows or files are bad
└── RunError        (4)    a run failed part-way; the same command continues
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class TamisError(Exception):
    """Base of all errors of tamis; `exit_code` is what the command line returns."""

    exit_code = 1


class RequestError(TamisError):
    """The request is wrong: unknown name, impossible combination, missing file. Raised before any work."""

    exit_code = 2


class MissingExtra(RequestError):
    """A package that an optional extra brings is not installed."""


class PoolError(TamisError):
    """Rows or files of the input are bad; the message names file, line and reason."""

    exit_code = 3


class RunError(TamisError):
    """A run failed part-way; what was finished is kept and the same command continues."""

    exit_code = 4


def unknown_name(kind: str, given: str, known: Iterable[str]) -> RequestError:
    """Error for a name that is not in a table, naming the nearest known ones."""
    names = sorted(known)
    near = difflib.get_close_matches(given, names, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(repr(name) for name in near)}? " if near else ""
    return RequestError(f"unknown {kind} {given!r}; {hint}known: {', '.join(names) or 'none'}")
