"""Options that several verbs take, said once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

PoolPaths = Annotated[
    list[str], typer.Option("--pool", help="File, glob, folder or hub id org/name:split[:n]; repeatable.")
]
Maps = Annotated[
    list[str] | None,
    typer.Option("--map", help="field=column,… or a mapping file, for rows of an unknown shape; repeatable."),
]
SkipBad = Annotated[
    bool, typer.Option("--skip-bad-rows", help="Go on without rows that cannot be read; write them aside.")
]
StoreFolder = Annotated[Path, typer.Option("--store", help="Folder of stored things.")]
Seed = Annotated[int, typer.Option("--seed", help="Seed of every random choice.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress, no tables.")]
AsJson = Annotated[bool, typer.Option("--json", help="The result as JSON on stdout.")]
Model = Annotated[str | None, typer.Option("--model", help="Causal language model: folder or hub id.")]
Template = Annotated[
    str, typer.Option("--template", help="auto, none, tulu, alpaca, chatml or a Jinja file.")
]
MaxTokens = Annotated[int, typer.Option("--max-tokens", help="Longer rows are truncated, and counted.")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1, mps.")]
Dtype = Annotated[str, typer.Option("--dtype", help="auto (the model's own), float32, bfloat16 or float16.")]
BatchTokens = Annotated[
    int | None, typer.Option("--batch-tokens", help="Tokens of one batch; changes memory, not results.")
]
RemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run Python code that the model's repository brings.")
]
Settings = Annotated[
    list[str] | None, typer.Option("--set", help="method.parameter=value, for any method used; repeatable.")
]
Unused = Annotated[str | None, typer.Option(help="Taken by every verb; changes nothing here.")]
UnusedFlag = Annotated[bool, typer.Option("--quiet", help="Taken by every verb; changes nothing here.")]
