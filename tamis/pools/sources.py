"""The files that are named on a command line: paths, globs, folders of Arrow files and hub ids."""

from __future__ import annotations

import glob
import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tamis.core.errors import RequestError
from tamis.core.extras import need
from tamis.core.files import replacing

_HUB = re.compile(r"^(?P<name>[\w.-]+(/[\w.-]+)?):(?P<split>[\w.-]+?)(:(?P<rows>\d+))?$")
_HUB_NAME = re.compile(r"^[\w-][\w.-]*/[\w-][\w.-]*$")
_ENDINGS = {
    ".gz",
    ".zst",
    ".jsonl",
    ".ndjson",
    ".json",
    ".csv",
    ".tsv",
    ".yaml",
    ".yml",
    ".parquet",
    ".arrow",
}
_STUBS = (".REMOVED.git-id",)


@dataclass(frozen=True)
class Origin:
    """One input file: where it is, the name it goes by in messages, and the source of rows that name none."""

    path: Path
    name: str
    stem: str


def stem_of(name: str) -> str:
    """File name without the endings that name a format or a compression."""
    path = Path(name)
    while path.suffix.lower() in _ENDINGS and path.stem:
        path = path.with_suffix("")
    return path.name


def origins(paths: str | Path | Iterable[str | Path], store: Path) -> list[Origin]:
    """Files in the order of the arguments, those of a glob sorted by name; all faults are named at once."""
    given = [paths] if isinstance(paths, str | Path) else list(paths)
    if not given:
        raise RequestError("no pool file was given; name one or more files, globs or folders")
    found: list[Origin] = []
    faults: list[str] = []
    for argument in given:
        try:
            found += _resolve(str(argument), store)
        except RequestError as error:
            if type(error) is not RequestError:
                raise
            faults.append(str(error))
    seen: set[Path] = set()
    for origin in found:
        real = origin.path.resolve()
        if real in seen:
            faults.append(f"{origin.name}: named twice; its rows would count twice")
        seen.add(real)
    if faults:
        raise RequestError("\n".join(faults))
    return found


def _resolve(argument: str, store: Path) -> list[Origin]:
    path = Path(argument)
    if path.is_dir():
        return _folder(path)
    if path.exists():
        return [Origin(path, argument, stem_of(path.name))]
    if glob.has_magic(argument):
        matches = [Path(match) for match in sorted(glob.glob(argument, recursive=True))]
        files = [match for match in matches if match.is_file() and not match.name.endswith(_STUBS)]
        if not files:
            raise RequestError(f"{argument}: no file matches this pattern (from {os.getcwd()})")
        return [Origin(match, str(match), stem_of(match.name)) for match in files]
    if hub := _HUB.match(argument):
        rows = int(hub["rows"]) if hub["rows"] else None
        return [_from_hub(hub["name"], hub["split"], rows, store)]
    if _HUB_NAME.match(argument) and not path.parent.exists():
        raise RequestError(
            f"{argument}: no such file; of a data set of the hub name the split: {argument}:train"
        )
    raise RequestError(f"{argument}: no such file")


def _folder(path: Path) -> list[Origin]:
    """Arrow files of a folder written by `datasets` (in its own order), or of a folder with nothing else."""
    if (path / "dataset_dict.json").exists():
        splits = json.loads((path / "dataset_dict.json").read_text()).get("splits", [])
        lines = " or ".join(str(path / split) for split in splits)
        raise RequestError(f"{path}: a folder with several splits; name one: {lines}")
    arrows = sorted(path.glob("*.arrow"))
    if (path / "state.json").exists():
        state = json.loads((path / "state.json").read_text())
        arrows = [path / entry["filename"] for entry in state.get("_data_files", [])]
    if not arrows:
        kinds = sorted({"".join(file.suffixes[-2:]) for file in path.iterdir() if file.is_file()} - {""})
        shown = " or ".join(f"'{path / '*'}{kind}'" for kind in kinds[:3]) or "its files"
        raise RequestError(f"{path}: a folder; name the files in it, such as {shown}")
    missing = [arrow for arrow in arrows if not arrow.exists()]
    if missing:
        raise RequestError(f"{missing[0]}: no such file, but {path / 'state.json'} names it")
    return [Origin(arrow, str(arrow), path.resolve().name) for arrow in arrows]


def _from_hub(name: str, split: str, rows: int | None, store: Path) -> Origin:
    """A data set of the hub as one file in the store, written anew each time: its content is its identity."""
    datasets = need("datasets", "hub")
    wanted = split if rows is None else f"{split}[:{rows}]"
    label = f"{name}:{split}" + ("" if rows is None else f":{rows}")
    try:
        table = datasets.load_dataset(name, split=wanted)
    except (
        OSError,
        ValueError,
        ImportError,
    ) as error:  # offline, unknown name, unknown split
        raise RequestError(
            f"{label}: not a file, and the hub gave no such data set ({type(error).__name__}: {error}); "
            "check the name and the network, or download the file and name it"
        ) from error
    path = store / "hub" / (re.sub(r"[^\w.-]", "--", label) + ".parquet")
    with replacing(path) as temporary:
        table.to_parquet(str(temporary))
    return Origin(path, label, name)
