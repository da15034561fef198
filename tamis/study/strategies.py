"""Names of strategies → signal, selection and their parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

import yaml

from tamis.core.errors import RequestError, unknown_name
from tamis.core.method import Method
from tamis.models.recipes import Recipe, resolve_recipe
from tamis.representations import REPRESENTATIONS
from tamis.representations.less import METHODS as LESS
from tamis.representations.less import WARM_UP
from tamis.scores import SCORES
from tamis.selections import SELECTIONS

WARMED = tuple(method.name for method in LESS)
"""Signals that take gradients of an adapter, which a strategy trains first."""


@dataclass(frozen=True)
class Pre:
    """What comes before a signal: `rows` rows that another strategy chooses (fewer when it gives fewer, and
    no more than `share` of the pool), on which the run's model is fine-tuned by `recipe`; the signal is then
    made with that model."""

    strategy: Strategy
    rows: int
    recipe: Recipe
    share: float | None = None

    def rows_of(self, pool_rows: int) -> int:
        """Rows to choose out of a pool."""
        return self.rows if self.share is None else max(1, min(self.rows, round(self.share * pool_rows)))

    def described(self) -> dict[str, Any]:
        """Everything that determines the model, given pool, base and seed."""
        found = {"strategy": self.strategy.recipe(), "rows": self.rows, "recipe": self.recipe.identity()}
        return found if self.share is None else {**found, "share": self.share}


@dataclass(frozen=True)
class Strategy:
    """A signal and a selection with all their parameters. `signal` is None for random draws. `vectors`: the
    representation by which the selection of a score compares rows with each other. `pre`: the stage before
    the signal, if any."""

    name: str
    selection: str
    representation: str | None = None
    score: str | None = None
    signal_parameters: Mapping[str, Any] = field(default_factory=dict)
    selection_parameters: Mapping[str, Any] = field(default_factory=dict)
    vectors: str | None = None
    vector_parameters: Mapping[str, Any] = field(default_factory=dict)
    pre: Pre | None = None

    @property
    def signal(self) -> str | None:
        """Name of the representation or score, None for random draws."""
        return self.representation or self.score

    @property
    def folder(self) -> str:
        """Name of the folder that `select` writes."""
        return self.name.replace("/", "-")

    @property
    def needs_model(self) -> bool:
        """Whether the run's model is needed, for the signal or for the vectors."""
        signal = bool(self.signal) and "model" in self.methods()[0].needs
        own = bool(self.signal_parameters.get("model"))  # the signal's own model stands in for the run's
        vectors = self.vectors is not None and "model" in REPRESENTATIONS[self.vectors].needs
        return (signal and not own) or vectors

    @property
    def needs_query(self) -> bool:
        """Whether rows are compared with a query set."""
        return self.representation is not None or (
            self.score is not None and "query" in SCORES[self.score].needs
        )

    def methods(self) -> list[Method]:
        """The methods that it consists of: signal first, then vectors, selection last."""
        found = [SELECTIONS[self.selection]]
        if self.vectors:
            found.insert(0, REPRESENTATIONS[self.vectors])
        if self.representation:
            found.insert(0, REPRESENTATIONS[self.representation])
        elif self.score:
            found.insert(0, SCORES[self.score])
        return found

    def recipe(self) -> dict[str, Any]:
        """Name, methods with versions and all parameters, defaults filled in; not the paths of files."""
        signal, selection = self.methods()[0], self.methods()[-1]
        filled = vars(selection.configure(self.selection_parameters))
        found = {"name": self.name, "selection": _described(selection, filled)}
        if self.signal:
            found["signal"] = _described(signal, vars(signal.configure(self.signal_parameters)))
        if self.vectors:
            vectors = REPRESENTATIONS[self.vectors]
            found["vectors"] = _described(vectors, vars(vectors.configure(self.vector_parameters)))
        if self.pre:
            found["pre"] = self.pre.described()
        return found


def _described(method: Method, parameters: Mapping[str, Any]) -> dict[str, Any]:
    kept = {name: value for name, value in parameters.items() if name not in method.paths}
    return {"method": method.name, "version": method.version, "parameters": kept}


def named_strategies() -> dict[str, dict[str, Any]]:
    """The table `strategies.yaml`."""
    text = files("tamis.study").joinpath("strategies.yaml").read_text(encoding="utf-8")
    table: dict[str, dict[str, Any]] = yaml.safe_load(text)
    return table


def parse_settings(texts: Sequence[str]) -> dict[str, dict[str, Any]]:
    """`method.parameter=value` texts → {method: {parameter: value}}; values are YAML scalars."""
    known = [*REPRESENTATIONS, *SCORES, *SELECTIONS, "near-duplicates", "contamination", *_with_pre()]
    found: dict[str, dict[str, Any]] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        method, dot, parameter = key.strip().rpartition(".")
        if not equals or not dot or not parameter:
            raise RequestError(
                f"--set {text!r}: expected method.parameter=value, "
                "for example round-robin.duplicates=lose-turn"
            )
        if method not in known:
            raise unknown_name("method in --set", method, known)
        found.setdefault(method, {})[parameter] = yaml.safe_load(value)
    return found


def resolve(names: Sequence[str], settings: Mapping[str, Mapping[str, Any]] | None = None) -> list[Strategy]:
    """Strategies by name, with `settings` over their parameters; raises RequestError for every fault."""
    settings = settings or {}
    table = named_strategies()
    found = [_resolve_one(name, table, settings) for name in names]
    if len({strategy.name for strategy in found}) < len(found):
        raise RequestError(f"a strategy is given twice: {', '.join(names)}")
    used = {method.name for strategy in found for method in _all_methods(strategy)}
    used |= {name for name in names if name in _with_pre()}
    for method in settings:
        if method not in used:
            raise RequestError(f"--set {method}.…: no chosen strategy uses {method!r} ({', '.join(names)})")
    for strategy in found:
        strategy.recipe()  # validates every parameter
        if strategy.pre and strategy.score and strategy.signal_parameters.get("model"):
            raise RequestError(
                f"{strategy.name} trains the model that its score is made with: leave out --set "
                f"{strategy.signal}.model, or skip the training: --set {strategy.name}.pre=false"
            )
    return found


def _with_pre() -> list[str]:
    """Strategies with a stage before the signal, which take settings of their own."""
    return [name for name, entry in named_strategies().items() if "pre" in entry]


def _all_methods(strategy: Strategy) -> list[Method]:
    """The methods of a strategy and of the stage before it."""
    return [*strategy.methods(), *(_all_methods(strategy.pre.strategy) if strategy.pre else [])]


_PRE_KEYS = ("strategy", "share", "rows", "recipe", "pre")


def _pre(
    name: str,
    usual: Mapping[str, Any] | None,
    given: Mapping[str, Any],
    table: Mapping[str, dict[str, Any]],
    settings: Mapping[str, Mapping[str, Any]],
) -> Pre | None:
    """The stage before a signal: `usual`, with what was `given` by --set `name`.… over it; None without."""
    wanted = given.get("pre", True)
    if usual is None or wanted is False:
        return None
    if wanted is not True:
        raise RequestError(f"--set {name}.pre={wanted!r}: expected true or false")
    for key in given:
        if key not in _PRE_KEYS:
            raise unknown_name(f"parameter of {name}", key, _PRE_KEYS)
    values = {**usual, **given}
    rows, share = values["rows"], values.get("share")
    if not isinstance(rows, int) or isinstance(rows, bool) or rows < 1:
        raise RequestError(f"--set {name}.rows={rows!r}: expected a whole number, 1 or more")
    if share is not None and not (isinstance(share, (int, float)) and 0 < share <= 1):
        raise RequestError(f"--set {name}.share={share!r}: expected a number above 0, at most 1")
    if share is not None and "rows" in given and "share" not in given:
        share = None  # so many rows were asked for
    first = _resolve_one(str(values["strategy"]), table, settings)
    if first.pre is not None or first.needs_query:
        raise RequestError(f"--set {name}.strategy={first.name}: expected one without a target or training")
    return Pre(first, rows, resolve_recipe(values["recipe"]), share)


def _signal_settings(
    signal: str, settings: Mapping[str, Mapping[str, Any]]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """--set values of a signal: its own parameters, and those of the stage before it where it has one."""
    given = settings.get(signal, {})
    if signal not in WARMED:
        return dict(given), {}
    own = {key: value for key, value in given.items() if key not in _PRE_KEYS}
    return own, {key: value for key, value in given.items() if key in _PRE_KEYS}


def _can_use(selection: Method, kind: str) -> bool:
    """Whether a selection works on a signal of this kind: a score has no vectors of rows."""
    if kind == "score" and "vectors" in selection.needs:
        return False
    return "similarity" in selection.needs or "vectors" in selection.needs


def _resolve_one(
    name: str, table: Mapping[str, dict[str, Any]], settings: Mapping[str, Mapping[str, Any]]
) -> Strategy:
    if name in table:
        entry = table[name]
        signal = entry.get("representation") or entry.get("score")
        parameters = entry.get("parameters", {})
        chosen = {**parameters.get(entry["selection"], {}), **settings.get(entry["selection"], {})}
        vectors = chosen.pop("vectors", entry["vectors"]) if "vectors" in entry else None
        if vectors is not None and vectors not in REPRESENTATIONS:
            raise unknown_name("representation", str(vectors), REPRESENTATIONS)
        return Strategy(
            name,
            entry["selection"],
            entry.get("representation"),
            entry.get("score"),
            {**parameters.get(signal, {}), **settings.get(signal or "", {})},
            chosen,
            vectors,
            {**parameters.get(vectors, {}), **settings.get(vectors or "", {})},
            _pre(name, entry.get("pre"), settings.get(name, {}), table, settings),
        )
    signal, slash, selection = name.partition("/")
    if not slash:
        pairs = [f"{representation}/round-robin" for representation in REPRESENTATIONS]
        raise unknown_name("strategy", name, [*table, *pairs])
    if selection not in SELECTIONS:
        raise unknown_name("selection", selection, SELECTIONS)
    if signal not in REPRESENTATIONS and signal not in SCORES:
        raise unknown_name("signal", signal, [*REPRESENTATIONS, *SCORES])
    kind = "representation" if signal in REPRESENTATIONS else "score"
    usable = [method.name for method in SELECTIONS.values() if _can_use(method, kind)]
    if selection not in usable:
        raise RequestError(
            f"{name}: {selection!r} cannot use the {kind} {signal!r}; these can: {', '.join(usable)}"
        )
    own, before = _signal_settings(signal, settings)
    trains = signal in WARMED and not own.get("checkpoints")
    return Strategy(
        name,
        selection,
        signal if kind == "representation" else None,
        signal if kind == "score" else None,
        own,
        dict(settings.get(selection, {})),
        pre=_pre(signal, WARM_UP if trains else None, before, table, settings),
    )
