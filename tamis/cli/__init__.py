"""The command line: one function a verb reads arguments and calls; each verb's work is in its own file."""

from __future__ import annotations

import errno
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from tamis.cli.flags import with_options_of
from tamis.cli.options import (
    AsJson,
    BatchTokens,
    Device,
    Dtype,
    Maps,
    MaxTokens,
    Model,
    PoolPaths,
    Quiet,
    RemoteCode,
    Seed,
    Settings,
    SkipBad,
    StoreFolder,
    Template,
    Unused,
    UnusedFlag,
)
from tamis.core.errors import TamisError

app = typer.Typer(
    name="tamis",
    help="Which rows of instruction data to train on, and was it worth it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.command(epilog="Example: tamis demo --out demo-out")
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the laboratory and what is found.")] = Path(
        "demo-out"
    ),
    rows: Annotated[int, typer.Option(help="Rows of the laboratory's pool.")] = 4000,
    store: Annotated[Path | None, typer.Option(help="Folder of stored things; OUT/store unless set.")] = None,
    seed: Seed = 0,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Select on the built-in laboratory with several strategies and show what each found of the truth."""
    from tamis.cli.demo import run

    run(out, rows, seed, store or out / "store", quiet, as_json)


@app.command(epilog="Example: tamis methods round-robin")
def methods(
    name: Annotated[str | None, typer.Argument(help="A method or strategy; all when left out.")] = None,
    as_json: AsJson = False,
    store: Unused = None,
    seed: Unused = None,
    quiet: UnusedFlag = False,
) -> None:
    """Show the table of methods and strategies, or one card in full."""
    from tamis.cli.methods import run

    run(name, as_json)


@app.command(epilog="Example: tamis inspect data/*.jsonl --row 3f2a --model path/to/model")
def inspect(
    pool: Annotated[list[str], typer.Argument(help="Files, globs, folders or hub ids.")],
    maps: Maps = None,
    row: Annotated[
        str | None, typer.Option("--row", help="Id (or its beginning) or number of a row.")
    ] = None,
    near: Annotated[bool, typer.Option("--near", help="Look for near duplicates too.")] = False,
    against: Annotated[
        list[str] | None, typer.Option(help="File of test or query rows to look for in the pool; repeatable.")
    ] = None,
    model: Model = None,
    template: Template = "auto",
    max_tokens: MaxTokens = 2048,
    skip_bad_rows: SkipBad = False,
    store: StoreFolder = Path(".tamis"),
    quiet: Quiet = False,
    as_json: AsJson = False,
    remote_code: RemoteCode = False,
    seed: Unused = None,
) -> None:
    """Show what a pool holds; with --row, one row as the model is trained on it, its loss mask in colour."""
    from tamis.cli.inspect import Given, run

    run(
        Given(
            pool, maps, row, model, template, max_tokens, skip_bad_rows, store, quiet, as_json, remote_code,
            near, against or [],
        )
    )  # fmt: skip


@app.command(
    epilog="Example: tamis select --pool 'data/*.jsonl' --query gsm8k=examples.jsonl "
    "--strategy ngrams/round-robin --budget 500 --out chosen"
)
def select(
    pool: PoolPaths,
    strategy: Annotated[list[str], typer.Option(help="Name, or signal/selection; comma list; repeatable.")],
    budget: Annotated[
        list[str], typer.Option(help="Rows (500), share (5%) or tokens (200000tok); repeatable.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for the chosen rows and the manifest.")],
    query: Annotated[
        list[str] | None, typer.Option(help="NAME=PATH of a target's examples; repeatable.")
    ] = None,
    maps: Maps = None,
    model: Model = None,
    template: Template = "auto",
    max_tokens: MaxTokens = 2048,
    device: Device = "auto",
    dtype: Dtype = "auto",
    batch_tokens: BatchTokens = None,
    remote_code: RemoteCode = False,
    settings: Settings = None,
    test: Annotated[
        list[str] | None, typer.Option(help="NAME=PATH of rows that must not be trained on; repeatable.")
    ] = None,
    dedup: Annotated[str | None, typer.Option(help="'near': drop rows that nearly repeat another.")] = None,
    decontaminate: Annotated[
        str | None, typer.Option(help="'flag' or 'drop' rows that hold text of a test or query row.")
    ] = None,
    allow_leak: Annotated[
        bool, typer.Option("--allow-leak", help="Go on with text of test rows among the queries.")
    ] = False,
    within: Annotated[str | None, typer.Option(help="'source': share the budget over sources.")] = None,
    exclude: Annotated[
        list[Path] | None, typer.Option(help="Folder of a subset that strict-random avoids; repeatable.")
    ] = None,
    seed: Seed = 0,
    skip_bad_rows: SkipBad = False,
    allow_underflow: Annotated[bool, typer.Option("--allow-underflow", help="Accept fewer rows.")] = False,
    max_unscored: Annotated[float, typer.Option(help="Largest share of failed rows to go on with.")] = 0.01,
    no_report: Annotated[bool, typer.Option("--no-report", help="Write no report.html.")] = False,
    store: StoreFolder = Path(".tamis"),
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Choose the rows to train on, by one strategy or several."""
    from tamis.cli.select import Given, run
    from tamis.study.signals import Settings as Options

    options = Options(
        store, model, template, max_tokens, dtype, device, remote_code, batch_tokens, max_unscored, quiet
    )
    run(
        Given(
            pool,
            strategy,
            budget,
            out,
            query or [],
            maps,
            settings or [],
            within,
            seed,
            skip_bad_rows,
            allow_underflow,
            as_json,
            not no_report,
            test or [],
            dedup,
            decontaminate,
            allow_leak,
            exclude or [],
        ),
        options,
    )


@app.command(
    epilog="Example: tamis plan --pool 'data/*.jsonl' --query gsm8k=examples.jsonl "
    "--strategy rds/round-robin --model path/to/model --budget 500"
)
@with_options_of(
    select,
    optional=("pool", "out", "strategy", "budget"),
    study=Annotated[list[str] | None, typer.Argument(help="A study file (not yet).", show_default=False)],
    rows=Annotated[int | None, typer.Option("--rows", help="Rows of a pool that is not here, for --pool.")],
    tokens_per_row=Annotated[float | None, typer.Option("--tokens-per-row", help="Of such a pool.")],
    query_rows=Annotated[int | None, typer.Option("--query-rows", help="Where no --query is given: 100.")],
    device_tflops=Annotated[
        float | None, typer.Option("--device-tflops", help="Peak of another device, to plan for it.")
    ],
    price_device_hour=Annotated[
        float | None, typer.Option("--price-device-hour", help="US dollars, to show what it costs.")
    ],
)
def plan(given: Mapping[str, Any]) -> None:
    """Say what `select` would find in the store and what the rest would take, without doing it."""
    from tamis.cli.plan import run

    run(given)


@app.command(epilog="Example: tamis represent rds --pool data.jsonl --model path/to/model --shard 2/8")
def represent(
    method: Annotated[str, typer.Argument(help="A representation: see `tamis methods`.")],
    pool: PoolPaths,
    maps: Maps = None,
    model: Model = None,
    template: Template = "auto",
    max_tokens: MaxTokens = 2048,
    device: Device = "auto",
    dtype: Dtype = "auto",
    batch_tokens: BatchTokens = None,
    remote_code: RemoteCode = False,
    settings: Settings = None,
    role: Annotated[str, typer.Option(help="'pool' or 'query': how the rows are rendered.")] = "pool",
    shard: Annotated[str | None, typer.Option(help="i/n: this worker's share; any number may run.")] = None,
    skip_bad_rows: SkipBad = False,
    store: StoreFolder = Path(".tamis"),
    quiet: Quiet = False,
    as_json: AsJson = False,
    seed: Unused = None,
) -> None:
    """Make one representation of a pool, alone or beside other workers."""
    from tamis.cli.represent import run
    from tamis.study.signals import Settings as Options

    options = Options(
        store, model, template, max_tokens, dtype, device, remote_code, batch_tokens, 1.0, quiet
    )
    run(method, pool, maps, skip_bad_rows, settings or [], role, shard, options, as_json)


@app.command(epilog="Example: tamis score ifd --pool data.jsonl --model path/to/model")
def score(
    method: Annotated[str, typer.Argument(help="A score: see `tamis methods`.")],
    pool: PoolPaths,
    query: Annotated[
        list[str] | None, typer.Option(help="NAME=PATH of a target, for importance; repeatable.")
    ] = None,
    maps: Maps = None,
    model: Model = None,
    template: Template = "auto",
    max_tokens: MaxTokens = 2048,
    device: Device = "auto",
    dtype: Dtype = "auto",
    batch_tokens: BatchTokens = None,
    remote_code: RemoteCode = False,
    settings: Settings = None,
    shard: Annotated[str | None, typer.Option(help="i/n: this worker's share; any number may run.")] = None,
    skip_bad_rows: SkipBad = False,
    store: StoreFolder = Path(".tamis"),
    quiet: Quiet = False,
    as_json: AsJson = False,
    seed: Unused = None,
) -> None:
    """Score the rows of a pool, and show how the score is distributed and what is best and worst by it."""
    from tamis.cli.score import run
    from tamis.study.signals import Settings as Options

    options = Options(
        store, model, template, max_tokens, dtype, device, remote_code, batch_tokens, 1.0, quiet
    )
    run(method, pool, maps, skip_bad_rows, settings or [], shard, options, as_json, query or [])


@app.command(epilog="Example: tamis trace 3f2a91 --store .tamis")
def trace(
    row: Annotated[str, typer.Argument(help="Id of a row, or its beginning.")],
    store: StoreFolder = Path(".tamis"),
    as_json: AsJson = False,
    seed: Unused = None,
    quiet: UnusedFlag = False,
) -> None:
    """Show every stored thing that a row took part in, and why each selection kept it or did not."""
    from tamis.cli.trace import run

    run(row, store, as_json)


@app.command(
    "import",
    epilog="Example: tamis import --pool data.jsonl --vectors vectors.npy --ids ids.txt --name mine",
)
def import_(
    pool: PoolPaths,
    name: Annotated[str, typer.Option(help="What to call it: --set import.name=NAME uses it.")],
    vectors: Annotated[Path | None, typer.Option(help="A .npy matrix (rows, d).")] = None,
    bergson: Annotated[Path | None, typer.Option(help="Folder of a bergson gradient index.")] = None,
    scores: Annotated[Path | None, typer.Option(help="A .csv, .tsv, .jsonl or .parquet file.")] = None,
    ids: Annotated[
        Path | None, typer.Option(help="Row ids of the vectors: text, .json, .npy, .parquet.")
    ] = None,
    by_position: Annotated[
        bool, typer.Option("--by-position", help="Rows are in the order of the pool (and of the queries).")
    ] = False,
    id_column: Annotated[str, typer.Option("--id", help="Column of row ids in the scores.")] = "id",
    column: Annotated[str | None, typer.Option(help="Column of the scores.")] = None,
    lower_is_better: Annotated[bool, typer.Option("--lower-is-better", help="Store the negative.")] = False,
    query: Annotated[
        list[str] | None, typer.Option(help="NAME=PATH of a target's examples; repeatable.")
    ] = None,
    query_vectors: Annotated[
        Path | None, typer.Option(help="Vectors of the queries: .npy, or a bergson index.")
    ] = None,
    query_ids: Annotated[Path | None, typer.Option(help="Row ids of the query vectors.")] = None,
    inner_product: Annotated[
        bool, typer.Option("--inner-product", help="Keep the lengths of the vectors: no cosines.")
    ] = False,
    allow_unknown: Annotated[
        bool, typer.Option("--allow-unknown", help="Leave out ids that the pool lacks.")
    ] = False,
    allow_repeated: Annotated[
        bool, typer.Option("--allow-repeated", help="Take the first of repeated ids.")
    ] = False,
    maps: Maps = None,
    skip_bad_rows: SkipBad = False,
    store: StoreFolder = Path(".tamis"),
    quiet: Quiet = False,
    as_json: AsJson = False,
    seed: Unused = None,
) -> None:
    """Bring in vectors, gradients or scores that were made elsewhere, matched to the rows of a pool."""
    from tamis.cli.import_ import Given, run

    run(
        Given(
            pool,
            name,
            vectors,
            bergson,
            scores,
            ids,
            by_position,
            id_column,
            column,
            lower_is_better,
            query or [],
            query_vectors,
            query_ids,
            inner_product,
            allow_unknown,
            allow_repeated,
            maps,
            skip_bad_rows,
            store,
            quiet,
            as_json,
        )
    )


@app.command(epilog="Example: tamis export chosen/rds-round-robin/500/seed0 --to alpaca --out subset.json")
def export(
    subset: Annotated[Path, typer.Argument(help="Folder of a subset, as `select` wrote it.")],
    to: Annotated[str, typer.Option(help="original, messages, alpaca, sharegpt, parquet, hf or ids.")],
    out: Annotated[Path, typer.Option(help="File (for hf: folder) to write.")],
    quiet: Quiet = False,
    as_json: AsJson = False,
    store: Unused = None,
    seed: Unused = None,
) -> None:
    """Write a subset in the format of a trainer."""
    from tamis.cli.export import run

    run(subset, to, out, quiet, as_json)


@app.command(epilog="Example: tamis report chosen")
def report(
    selections: Annotated[
        list[Path], typer.Argument(help="Folders that `select` wrote, or of single subsets in them.")
    ],
    out: Annotated[
        Path | None, typer.Option(help="Folder to write to; the selection's own unless there are several.")
    ] = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
    store: Unused = None,
    seed: Unused = None,
) -> None:
    """Write a page about a selection, or about several side by side, that opens without a network."""
    from tamis.cli.report import run

    run(selections, out, quiet, as_json)


@app.command(epilog="Example: tamis doctor --model path/to/model")
def doctor(
    model: Model = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    store: StoreFolder = Path(".tamis"),
    as_json: AsJson = False,
    remote_code: RemoteCode = False,
    seed: Unused = None,
    quiet: UnusedFlag = False,
) -> None:
    """Check this machine, the optional packages, a store, and whether batching changes a model's vectors."""
    from tamis.cli.doctor import run

    run(model, device, dtype, store, as_json, remote_code)


def main() -> None:
    """Run the command line; errors of tamis become one message on stderr and their exit code."""
    try:
        app()
    except TamisError as error:
        print(f"tamis: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        print("tamis: no space left on the disk; free some and run the same command again", file=sys.stderr)
        raise SystemExit(4) from None
    except KeyboardInterrupt:
        print("tamis: interrupted; the same command continues", file=sys.stderr)
        raise SystemExit(4) from None
