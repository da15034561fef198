"""Scores in tables of others: CSV, JSON lines or Parquet, with a column of ids and a column of numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from tamis.core.errors import RequestError

KINDS = (".csv", ".tsv", ".jsonl", ".parquet")


def read_scores(path: Path, id_column: str, column: str) -> tuple[np.ndarray | None, list[Any]]:
    """Ids (k,) of the rows, None without an id column, and the values of `column`: numbers, None or texts.

    Raises RequestError for a file or column that is not there, naming the columns that are.
    """
    if not path.is_file():
        raise RequestError(f"{path}: no such file of scores")
    if path.suffix not in KINDS:
        raise RequestError(f"{path}: expected one of {', '.join(KINDS)}")
    wanted = [name for name in (id_column, column) if name]
    try:
        columns = _jsonl(path, wanted) if path.suffix == ".jsonl" else _table(path, wanted)
    except (ValueError, OSError) as error:
        raise RequestError(f"{path}: {error}") from error
    ids = columns.get(id_column) if id_column else None
    return None if ids is None else np.array(["" if i is None else str(i) for i in ids]), columns[column]


def numbers_of(values: list[Any]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Values as float64 (k,), NaN for none; masks (k,) of those that are missing, and that are no numbers."""
    numbers = np.full(len(values), np.nan)
    missing, wrong = np.zeros(len(values), bool), np.zeros(len(values), bool)
    for i, value in enumerate(values):
        if value is None or value == "":
            missing[i] = True
            continue
        try:
            numbers[i] = float(value)
        except (TypeError, ValueError):
            wrong[i] = True
    return numbers, missing, wrong


def _jsonl(path: Path, wanted: list[str]) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {name: [] for name in wanted}
    seen: set[str] = set()
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            row = json.loads(line)
            if not isinstance(row, dict):
                raise ValueError(f"line {number} is not an object")
            if number <= 100:
                seen |= row.keys()
            for name in wanted:
                found[name].append(row.get(name))
    _check(wanted, sorted(name for name in seen))
    return found


def _table(path: Path, wanted: list[str]) -> dict[str, list[Any]]:
    import pyarrow as pa
    from pyarrow import csv, parquet

    if path.suffix == ".parquet":
        _check(wanted, parquet.read_schema(path).names)
        table = parquet.read_table(path, columns=wanted)
    else:
        parse = csv.ParseOptions(delimiter="\t" if path.suffix == ".tsv" else ",", newlines_in_values=True)
        # As texts, so that ids of digits stay what they are and an odd cell spoils no column.
        types = csv.ConvertOptions(column_types=dict.fromkeys(wanted, pa.string()), strings_can_be_null=True)
        table = csv.read_csv(path, parse_options=parse, convert_options=types)
        _check(wanted, table.column_names)
    return {name: table[name].to_pylist() for name in wanted}


def _check(wanted: list[str], columns: list[str]) -> None:
    for name in wanted:
        if name not in columns:
            raise ValueError(f"no column {name!r}; it has: {', '.join(columns)}")
