"""Select: signals as needed, then selections, then the files of design §5 and the facts about each subset."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tamis.core.cost import booked
from tamis.core.digest import digest
from tamis.core.errors import RequestError
from tamis.core.files import remove_dead, replacing
from tamis.representations.less import shortlist_of
from tamis.study._report_facts import read_runs
from tamis.study._report_views import write_views
from tamis.study.budget import Budget, parse_budget
from tamis.study.diagnostics import add_diagnostics, compare_with_store
from tamis.study.exclude import (
    LENGTH_MATCHED,
    REDRAWN,
    check_exclude,
    check_redrawn,
    compared_subsets,
    exclude_recipe,
    excluded_rows,
    in_order,
    matched_strategy,
)
from tamis.study.hygiene import Hygiene, configured, examine, leaks
from tamis.study.manifest import begin_manifest, finish_manifest
from tamis.study.pre_experience import check_pre, signal_after
from tamis.study.report import write_report
from tamis.study.signals import Settings, Signal, prepared
from tamis.study.stored import keep_subset, stored_subsets
from tamis.study.strategies import Strategy, resolve
from tamis.study.subset import NO_TOKENS, Subset
from tamis.study.summary import Rendering, drawn_by_ties, summarise

if TYPE_CHECKING:
    from tamis.pools.pool import Pool

NEXT = 5  # rows beyond a budget that a report shows


@dataclass(frozen=True)
class Request:
    """One call of `select`, checked as far as it can be without reading rows."""

    strategies: Sequence[Strategy]
    budgets: Sequence[Budget]
    queries: Mapping[str, Pool] = field(default_factory=dict)
    seed: int = 0
    within: str | None = None
    allow_underflow: bool = False
    settings: Settings = field(default_factory=Settings)
    hygiene: Hygiene = field(default_factory=Hygiene)
    exclude: Sequence[Path] = ()  # folders of subsets that strict-random passes over
    report: bool = True  # beside what is written

    def check(self, pool: Pool) -> None:
        """Raise RequestError for what cannot work, before any signal is made."""
        if not self.strategies or not self.budgets:
            raise RequestError("give at least one strategy and one budget")
        if self.within not in (None, "source"):
            raise RequestError(f"--within {self.within!r}: expected 'source'")
        for strategy in self.strategies:
            if strategy.needs_query and not self.queries:
                raise RequestError(
                    f"{strategy.name} compares rows with a target: give --query NAME=PATH, "
                    "a few examples of what the trained model should do (never the test set)"
                )
            if strategy.needs_model and self.settings.model is None:
                raise RequestError(f"{strategy.name} needs --model PATH_OR_ID")
        if any(budget.unit == "tokens" for budget in self.budgets) and self.settings.model is None:
            raise RequestError(
                "a token budget counts rendered tokens: give --model PATH_OR_ID for its tokenizer"
            )
        if any(strategy.name == LENGTH_MATCHED for strategy in self.strategies):
            matched_strategy(self.strategies)
        check_exclude(self.strategies, self.exclude)
        check_redrawn(self.strategies, self.budgets, self.within)
        for strategy in self.strategies:
            prepared(strategy, self.settings, self.queries)
            check_pre(strategy, self.settings)
            self._check_shortlist(strategy, len(pool))
        for name, query in self.queries.items():
            if not len(query):
                raise RequestError(f"query {name!r} has no rows")
        self.hygiene.check(self.queries)
        for budget in self.budgets:
            if budget.unit != "tokens" and budget.rows_of(len(pool)) < 1:
                raise RequestError(f"budget {budget.folder}: less than one of {len(pool)} rows")

    def _check_shortlist(self, strategy: Strategy, rows: int) -> None:
        """A budget of rows must fit into the shortlist of a strategy that has one."""
        share = shortlist_of(strategy.signal, strategy.signal_parameters)
        if share is None or self.allow_underflow:
            return
        most = round(share * rows)
        for budget in self.budgets:
            if budget.unit != "tokens" and budget.rows_of(rows) > most:
                raise RequestError(
                    f"{strategy.name} chooses among {share:.0%} of the rows, {most:,}, and the budget "
                    f"{budget.folder} is {budget.rows_of(rows):,}: raise --set {strategy.signal}.shortlist"
                )

    def recipe(self, pool: Pool) -> dict[str, Any]:
        """Everything that determines the subsets."""
        settings = self.settings
        found: dict[str, Any] = {
            "pool": pool.digest,
            "queries": {name: query.digest for name, query in self.queries.items()},
            "strategies": [strategy.recipe() for strategy in self.strategies],
            "budgets": [budget.folder for budget in self.budgets],
            "seed": self.seed,
            "within": self.within,
            "allow_underflow": self.allow_underflow,
        }
        if hygiene := self.hygiene.recipe():
            found["hygiene"] = hygiene
        if self.exclude:
            found["exclude"] = exclude_recipe(self.exclude)
        contents = {s.name: sides for s in self.strategies if (sides := prepared(s, settings, self.queries))}
        if contents:
            found["contents"] = contents
        if settings.model is not None:
            from tamis.models.lm import load_model
            from tamis.models.render import Renderer

            lm = load_model(
                settings.model, settings.dtype, settings.device, settings.remote_code, tokenizer_only=True
            )
            renderer = Renderer(lm.tokenizer, settings.template, settings.max_tokens)
            found["model"] = {"fingerprint": lm.fingerprint, "dtype": lm.dtype, "renderer": renderer.recipe}
        return found


def select(
    pool: Pool,
    *,
    strategy: str | Sequence[str],
    budget: int | str | Sequence[int | str],
    query: Mapping[str, Any] | None = None,
    map: Any = None,
    out: str | Path | None = None,
    parameters: Mapping[str, Mapping[str, Any]] | None = None,
    seed: int = 0,
    within: str | None = None,
    allow_underflow: bool = False,
    report: bool = True,
    test: Mapping[str, Any] | None = None,
    dedup: str | None = None,
    decontaminate: str | None = None,
    allow_leak: bool = False,
    exclude: Sequence[str | Path] = (),
    **settings: Any,
) -> Any:
    """Choose rows of `pool`; a `Subset`, or a list of them when several strategies or budgets are given.

    `query`, `test`: {task: path or Pool}. `dedup` ("near"), `decontaminate` ("flag", "drop"), `allow_leak`:
    see `study/hygiene.py`. `exclude`: folders of subsets that strict-random passes over, besides the largest
    subset of every other strategy that is not a draw. `parameters`: {method: {parameter: value}}.
    `settings`: fields of `Settings` (store, model, template, max_tokens, dtype, device, …). With `out` its
    files are written, and a report of them unless `report` is False.
    """
    from tamis.pools.pool import Pool

    options = Settings(**{**settings, "store": Path(settings.get("store", ".tamis"))})
    queries, tests = (
        {
            name: given if isinstance(given, Pool) else read_query(given, map, options.store)
            for name, given in (named or {}).items()
        }
        for named in (query, test)
    )
    checks, parameters = configured(parameters or {})
    names = [strategy] if isinstance(strategy, str) else list(strategy)
    budgets = [budget] if isinstance(budget, (int, str)) else list(budget)
    request = Request(
        resolve(names, parameters),
        [parse_budget(text) for text in budgets],
        queries,
        seed,
        within,
        allow_underflow,
        options,
        Hygiene(dedup, decontaminate, tests, allow_leak, **checks),
        [Path(folder) for folder in exclude],
        report,
    )
    subsets = run(pool, request, Path(out) if out is not None else None)
    single = isinstance(strategy, str) and isinstance(budget, (int, str))
    return subsets[0] if single else subsets


def read_query(path: str | Path, map: Any, store: Path, quiet: bool = True) -> Pool:
    """A query set: like a pool, but rows that say the same stay apart, for each is a query of its own."""
    from tamis.pools.read import read_pool

    return read_pool([path], map=map, store=store, merge_duplicates=False, quiet=quiet)


def run(pool: Pool, request: Request, out: Path | None) -> list[Subset]:
    """Make every subset of a request, write it below `out` when given, and return them in order."""
    request.check(pool)
    settings = request.settings
    leaked = leaks(request.queries, request.hygiene, settings, out)
    recipe = request.recipe(pool)
    name = digest(recipe)
    if out is not None:
        begin_manifest(out, name, recipe)
        _copy_rejected(pool, out)
    checked = examine(pool, request.queries, request.hygiene, settings, out, leaked)
    rendering = rendering_of(pool, request.settings) if request.settings.model is not None else None
    subsets: list[Subset] = []
    signals: dict[str, Signal] = {}
    for strategy in in_order(request.strategies):
        signal = signal_after(strategy, pool, request)
        signal = signal if checked is None else checked.masked(signal)
        signals[strategy.name] = signal
        with booked(request.settings.store, "subset", name, strategy.name) as entry:
            chosen = _choose(pool, request, strategy, signal, rendering, subsets, out)
            entry["rows"] = max(len(subset) for subset in chosen)
        subsets += chosen
    order = {strategy.name: i for i, strategy in enumerate(request.strategies)}
    subsets.sort(key=lambda subset: order[subset.strategy.name])
    with booked(request.settings.store, "subset", name, "diagnostics") as entry:
        within = None if request.within is None else np.asarray(pool.source_codes)
        add_diagnostics(subsets, signals, request.seed, within)
        entry["rows"] = sum(map(len, subsets))
    if checked is not None:
        checked.tell(subsets)
    kept = {
        keep_subset(subset, settings.store, recipe, signals[subset.strategy.name].digests)
        for subset in subsets
    }
    compare_with_store(
        subsets, [one for one in stored_subsets(settings.store, pool.digest) if one.digest not in kept]
    )
    if out is not None:
        for subset in subsets:
            subset.write(out)
        write_views(out, subsets, signals, request.queries, request.seed)
        rendered = () if rendering is None else (rendering.digest,)
        finish_manifest(out, name, recipe, pool, request, signals, subsets, rendered, checked)
        remove_dead(out)
        if request.report:
            write_report(read_runs([out]), out)
    return subsets


def _copy_rejected(pool: Pool, out: Path) -> None:
    """Put the rows that could not be read beside the subsets."""
    path = Path(pool.path) / "rejected.jsonl"
    if path.exists():
        with replacing(out / path.name) as temporary:
            shutil.copyfile(path, temporary)


def rendering_of(pool: Pool, settings: Settings) -> Rendering:
    """How the pool's rows come out of the model's tokenizer and template."""
    from tamis.models.lengths import rendered_lengths

    names = ("template", "max_tokens", "store", "remote_code", "quiet")
    options = {name: getattr(settings, name) for name in names}
    thing = rendered_lengths(pool, str(settings.model), **options)
    return Rendering(thing.joined("tokens"), thing.joined("status"), thing.digest)


def _choose(
    pool: Pool,
    request: Request,
    strategy: Strategy,
    signal: Signal,
    rendering: Rendering | None,
    made: Sequence[Subset],
    out: Path | None,
) -> list[Subset]:
    """All budgets of one strategy; of one order, so that those of one unit are nested prefixes."""
    from tamis.selections import choose_ranked

    found: dict[Budget, tuple[Any, Any]] = {}
    tokens = None if rendering is None else rendering.tokens
    for by_tokens in (False, True):
        budgets = [budget for budget in request.budgets if (budget.unit == "tokens") == by_tokens]
        limits = [int(b.amount) if by_tokens else b.rows_of(len(pool)) for b in budgets]
        if not budgets:
            continue
        given = {
            **_inputs(pool, request, strategy, signal, tokens, made, budgets[int(np.argmax(limits))]),
            **_parameters(request, strategy, made),
            "cost": tokens if by_tokens else None,
            "seed": request.seed,
            "usable": signal.usable,
        }
        limit = max(limits) + (NEXT if _goes_on(request, strategy, by_tokens) else 0)
        choice = choose_ranked(
            strategy.selection,
            signal.source,
            limit,
            allow_underflow=request.allow_underflow or limit > max(limits),
            **given,
        )
        if len(choice) < max(limits) < limit and not request.allow_underflow:
            # Too few: asked for again without the rows beyond, it says so.
            choice = choose_ranked(strategy.selection, signal.source, max(limits), **given)
        spent = (
            np.cumsum(tokens[choice.positions], dtype=np.int64) if by_tokens and tokens is not None else None
        )
        for budget, limit in zip(budgets, limits, strict=True):
            rows = limit if spent is None else int(np.searchsorted(spent, limit, side="right"))
            following = choice.take(slice(rows, rows + NEXT))
            after = (following.positions, following.gain) if strategy.methods()[-1].nested else None
            found[budget] = (choice.take(slice(0, rows)), after)
    return [
        _subset(pool, request, strategy, budget, signal, *found[budget], rendering, out)
        for budget in request.budgets
    ]


def _goes_on(request: Request, strategy: Strategy, by_tokens: bool) -> bool:
    """Whether rows beyond the largest budget can be asked for without changing those within it."""
    method = strategy.methods()[-1]
    return method.nested and not by_tokens and request.within is None and "reference" not in method.needs


def _parameters(request: Request, strategy: Strategy, made: Sequence[Subset]) -> dict[str, Any]:
    """Parameters of the selection; the length-matched control stays within sources by matching them."""
    found: dict[str, Any] = {}
    if request.within and strategy.name == LENGTH_MATCHED:
        found["match_sources"] = True
    if strategy.name == REDRAWN:
        found["subsets"] = compared_subsets(request.strategies, made)
    return {**found, **strategy.selection_parameters}


def _inputs(
    pool: Pool,
    request: Request,
    strategy: Strategy,
    signal: Signal,
    tokens: np.ndarray | None,
    made: Sequence[Subset],
    budget: Budget,
) -> dict[str, Any]:
    """What the selection needs besides the signal, by the words of its card."""
    needs = strategy.methods()[-1].needs
    inputs: dict[str, Any] = {"ids": pool.ids}
    if signal.vectors is not None:
        inputs["vectors"] = signal.vectors
    if len(signal.tasks) > 1:
        inputs["task_of"] = signal.task_of
    capped = strategy.selection_parameters.get("most_per_source") is not None
    if "sources" in needs or capped or (request.within and strategy.name == LENGTH_MATCHED):
        inputs["sources"] = pool.sources
    if request.within is not None and strategy.name != LENGTH_MATCHED:
        inputs["within"] = np.asarray(pool.source_codes)
    if "exclude" in needs:
        inputs["exclude"] = excluded_rows(pool, request.strategies, made, request.exclude)
    if "lengths" in needs:
        inputs["lengths"] = tokens if tokens is not None else np.asarray(pool.chars)
        reference = matched_strategy(request.strategies)
        inputs["reference"] = next(
            subset.positions for subset in made if subset.strategy is reference and subset.budget == budget
        )
    return inputs


def _subset(
    pool: Pool,
    request: Request,
    strategy: Strategy,
    budget: Budget,
    signal: Signal,
    choice: Any,
    following: tuple[np.ndarray, np.ndarray] | None,
    rendering: Rendering | None,
    out: Path | None,
) -> Subset:
    rows = len(choice.positions)
    by_query = choice.query >= 0
    task = np.full(rows, "", dtype=object)
    query = np.full(rows, -1, np.int32)
    if signal.task_of is not None and signal.query_row is not None:
        names = np.array(signal.tasks, dtype=object)
        task[by_query] = names[signal.task_of[choice.query[by_query]]]
        query[by_query] = signal.query_row[choice.query[by_query]]
        only_task = ~by_query & (choice.task >= 0)
        task[only_task] = names[choice.task[only_task]]
    sizes = {name: len(asked) for name, asked in request.queries.items()} if signal.tasks else {}
    ties = None
    if strategy.selection == "top-k" and isinstance(signal.source, np.ndarray):
        ties = drawn_by_ties(signal.source, signal.usable, choice.positions)
    facts = summarise(pool, choice.positions, choice.gain, task, query, rendering, sizes, ties)
    facts["status"] = signal.status
    facts["warnings"] += signal.warnings
    if signal.pre is not None:
        facts["pre"] = dict(signal.pre)
    facts["notes"] = json.loads(json.dumps(choice.notes))
    chosen = np.full(rows, NO_TOKENS, np.int32)
    if rendering is not None:
        chosen = rendering.tokens[choice.positions]
    subset = Subset(
        strategy, budget, request.seed, pool, choice.positions, choice.gain, task, query, chosen, facts,
        following=following,
    )  # fmt: skip
    if out is None:
        return subset
    return Subset(**{**vars(subset), "folder": out / subset.relative})
