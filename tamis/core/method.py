"""Methods: a function, a frozen config and a card; families are tables of methods."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

from tamis.core.errors import RequestError, unknown_name

CARD_FIELDS = ("Paper", "Definition", "Needs", "Gives", "Cost", "Departs", "Relations")
_FIELD = re.compile(rf"^\*\*({'|'.join(CARD_FIELDS)})\.\*\*\s*", re.MULTILINE)


@dataclass(frozen=True)
class Method:
    """One method of a family.

    `run` is the function, `config` its frozen dataclass of parameters (defaults from the paper), `doc` the
    docstring of its file, which is its card. `version` rises by one when outputs change. `seeded`: the result
    depends on a seed. `nested`: a smaller budget gives a prefix of a larger one. `needs`: what the caller
    must supply (words such as "model", "query", "sources"). `compare` (representations only) builds the
    similarity of query and pool rows from their stored arrays; None is the cosine of dense vectors. `derive`
    (scores only) gives (values (n,), status (n,)) from (config, stored columns, status); None: they are
    stored. `before` (scores only) gives, for a config, the score whose stored numbers this one goes on from:
    its name and parameters, or None. `paths`: parameters that name files or servers, and that say how these
    are read; in recipes the contents stand in their place.
    """

    name: str
    run: Callable[..., Any]
    config: type
    doc: str
    version: int = 1
    seeded: bool = False
    nested: bool = True
    needs: tuple[str, ...] = ()
    compare: Callable[..., Any] | None = None
    derive: Callable[..., Any] | None = None
    paths: tuple[str, ...] = ()
    before: Callable[[Any], tuple[str, Mapping[str, Any]] | None] | None = None

    @property
    def summary(self) -> str:
        """The card's first sentence."""
        return " ".join(self.doc.split("\n\n")[0].split())

    @property
    def card(self) -> dict[str, str]:
        """The card's fields by name (`CARD_FIELDS`); a field that the docstring lacks is absent."""
        parts = _FIELD.split(self.doc)
        return {name: " ".join(text.split()) for name, text in zip(parts[1::2], parts[2::2], strict=True)}

    def configure(self, parameters: Mapping[str, Any]) -> Any:
        """The config with `parameters` over the defaults; unknown names are refused with the known ones."""
        known = {field.name for field in fields(self.config)}
        for name in parameters:
            if name not in known:
                raise unknown_name(f"parameter of {self.name}", name, known)
        try:
            return self.config(**parameters)
        except (TypeError, ValueError) as error:
            raise RequestError(f"{self.name}: {error}") from error


class Family(Mapping[str, Method]):
    """Table of the methods of one kind, by name, in the order listed; two of a name are refused."""

    def __init__(self, kind: str, methods: Iterable[Method]) -> None:
        self.kind = kind
        self._methods: dict[str, Method] = {}
        for method in methods:
            if method.name in self._methods:
                raise ValueError(f"two {kind} methods are named {method.name!r}")
            self._methods[method.name] = method

    def __getitem__(self, name: str) -> Method:
        if name not in self._methods:
            raise unknown_name(self.kind, name, self._methods)
        return self._methods[name]

    def __contains__(self, name: object) -> bool:
        return name in self._methods

    def __iter__(self) -> Iterator[str]:
        return iter(self._methods)

    def __len__(self) -> int:
        return len(self._methods)
