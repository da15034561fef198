"""Verbs that take the options of another one: said once, so that they cannot drift apart."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Annotated, Any


def with_options_of(
    other: Callable[..., None], optional: tuple[str, ...] = (), **more: Any
) -> Callable[[Callable[[Mapping[str, Any]], None]], Callable[..., None]]:
    """Give a verb, a function of {option: value}, the options of the verb `other`.

    Those in `optional` need not be given and are None then. `more`: further options, each an annotated type;
    None unless given.
    """

    def wrapped(verb: Callable[[Mapping[str, Any]], None]) -> Callable[..., None]:
        def run(**given: Any) -> None:
            verb(given)

        kept = []
        for parameter in inspect.signature(other, eval_str=True).parameters.values():
            if parameter.name in optional:
                kind = parameter.annotation
                loose: Any = kind.__origin__ | None
                marked: Any = Annotated.__class_getitem__((loose, *kind.__metadata__))  # type: ignore[attr-defined]
                parameter = parameter.replace(annotation=marked, default=None)
            kept.append(parameter)
        kept += [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=kind)
            for name, kind in more.items()
        ]
        ordered = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in kept]
        run.__name__, run.__doc__ = verb.__name__, verb.__doc__
        run.__signature__ = inspect.Signature(ordered)  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in ordered}
        return run

    return wrapped
