"""Stored things: named by the digest of their recipe; missing, partial or complete; safe for several writers.

    <store>/<kind>/<digest>.part/      while it is being written
        recipe.json                    what is being made
        00000.vectors.npy …            arrays of shard 0, each written whole and renamed into place
        00000.json                     written last for the shard: shapes, dtypes, bytes and checksums
    <store>/<kind>/<digest>.claims/    locks of the shards that writers are at
    <store>/<kind>/<digest>/           complete: one rename of the folder
        meta.json                      recipe, summary, and every file with its bytes and checksum
    <store>/ledger.jsonl               what things cost (see cost.py); outside the identity of anything

A shard exists or it does not; resuming is the list of missing shards. Shards are cut by rows alone, so that
neither the number of writers nor a restart changes a byte. Writers share the shards by advisory locks, which
die with their process; should locks not work on a file system, two writers do the same work and write the
same bytes. Nothing in a folder depends on time, machine or order of writing.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tamis.core.digest import digest, file_digest
from tamis.core.errors import RunError
from tamis.core.files import read_json, replacing, sync_folder, write_array, write_json

SCHEMA = 1
_SHARDS = 256
_SHARD_ROWS = (512, 65536)


def shard_rows_of(rows: int) -> int:
    """Rows of one shard of a signal over `rows` rows: the power of two that gives about 256 shards, from 512
    (a crash should lose seconds) to 65,536 (reads should be long). It follows from `rows` alone."""
    wanted = -(-rows // _SHARDS)
    least, most = _SHARD_ROWS
    return min(max(least, 1 << (wanted - 1).bit_length()), most)


def shard_bounds(rows: int, shard_rows: int | None = None) -> list[tuple[int, int]]:
    """Half-open row ranges of the shards of `rows` rows; one empty shard when there are none."""
    shard_rows = shard_rows or shard_rows_of(rows)
    return [(start, min(start + shard_rows, rows)) for start in range(0, rows, shard_rows)] or [(0, 0)]


@dataclass(frozen=True)
class Fault:
    """One thing wrong in a store, as `Store.check` reports it."""

    path: Path
    reason: str


class Thing:
    """One stored thing of a `Store`: written by `claim`, `write_shard`, `new_file`, `finish`."""

    def __init__(self, root: Path, kind: str, recipe: Mapping[str, Any], shards: int) -> None:
        self.kind = kind
        self.recipe = dict(recipe)
        self.shards = shards
        self.digest = digest({"schema": SCHEMA, "kind": kind, "recipe": self.recipe})
        self.folder = root / kind / self.digest
        self.part = root / kind / f"{self.digest}.part"
        self.claims = root / kind / f"{self.digest}.claims"

    @property
    def state(self) -> str:
        """`missing`, `partial` or `complete`."""
        if (self.folder / "meta.json").exists():
            return "complete"
        return "partial" if self.part.exists() else "missing"

    # --- writing ---------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Make the partial folder with its recipe, unless it is there or the thing is complete."""
        self.part.parent.mkdir(parents=True, exist_ok=True)
        with _locked(self.part.parent):
            if self.state == "complete":
                return
            self.claims.mkdir(exist_ok=True)
            if not (self.part / "recipe.json").exists():
                self.part.mkdir(exist_ok=True)
                write_json(self.part / "recipe.json", {"kind": self.kind, "recipe": self.recipe})
                sync_folder(self.part.parent)

    def missing(self) -> list[int]:
        """Numbers of the shards that are not written yet, in order."""
        absent = [i for i in range(self.shards) if not (self.part / f"{i:05d}.json").exists()]
        return [] if self.state == "complete" else absent  # asked last: another writer may just have finished

    @contextlib.contextmanager
    def claim(self, shard: int) -> Iterator[bool]:
        """Try to reserve a shard among writers; yields whether this writer should make it now."""
        try:
            handle = os.open(self.claims / f"{shard:05d}", os.O_RDWR | os.O_CREAT, 0o644)
        except FileNotFoundError:  # another writer finished the whole thing meanwhile
            yield False
            return
        try:
            free = _lock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            written = (self.part / f"{shard:05d}.json").exists() or self.state == "complete"
            yield free and not written
        finally:
            os.close(handle)

    def write_shard(
        self, shard: int, arrays: Mapping[str, np.ndarray], reasons: Mapping[int, str] | None = None
    ) -> None:
        """Write the arrays of a shard, each whole, then the line that makes the shard exist.

        `reasons`: why rows of the shard were refused or failed, by their number in it.
        """
        entries = {}
        with self._completed_elsewhere():
            for name, array in arrays.items():
                path = self.part / f"{shard:05d}.{name}.npy"
                with replacing(path) as temporary:
                    write_array(temporary, array)
                entries[path.name] = _entry(path)
            if reasons:
                path = self.part / f"{shard:05d}.reasons.json"
                write_json(path, {str(row): text for row, text in sorted(reasons.items())})
                entries[path.name] = _entry(path)
            write_json(self.part / f"{shard:05d}.json", entries)

    @contextlib.contextmanager
    def new_file(self, name: str) -> Iterator[Path]:
        """Yield a temporary path for a file of the partial folder; it appears under `name` on success."""
        with self._completed_elsewhere(), replacing(self.part / name) as temporary:
            yield temporary

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Make the thing complete. `summary` (JSON) follows from the content alone: no times, no machine."""
        if self.state == "complete":
            return
        missing = self.missing()
        if missing:
            raise RunError(
                f"{self.part}: {len(missing)} of {self.shards} shards are missing, first {missing[0]}"
            )
        with _locked(self.part.parent):
            if self.state != "complete":
                self._write_meta(summary)
                os.rename(self.part, self.folder)
                sync_folder(self.folder.parent)
            shutil.rmtree(self.claims, ignore_errors=True)

    def _write_meta(self, summary: Mapping[str, Any]) -> None:
        if (self.part / "meta.json").exists():  # killed between the two writes: only the tidying is due
            known = set(read_json(self.part / "meta.json")["files"])
        else:
            files: dict[str, Any] = {}
            for shard in range(self.shards):
                files.update(read_json(self.part / f"{shard:05d}.json"))
            for name in _names(self.part):
                own = name.startswith(".") or "/." in name or name == "recipe.json"
                if not own and name not in files and not name[:5].isdigit():
                    files[name] = _entry(self.part / name)
            known = set(files)
            meta = {"schema": SCHEMA, "kind": self.kind, "digest": self.digest, "recipe": self.recipe}
            write_json(self.part / "meta.json", {**meta, "summary": dict(summary), "files": files})
        for name in _names(self.part):
            if name not in known and name != "meta.json":
                (self.part / name).unlink(missing_ok=True)
        for folder in sorted((path for path in self.part.rglob("*") if path.is_dir()), reverse=True):
            with contextlib.suppress(OSError):  # those that still hold something stay
                folder.rmdir()

    @contextlib.contextmanager
    def _completed_elsewhere(self) -> Iterator[None]:
        """A vanished partial folder is no error when another writer has completed the same thing."""
        try:
            yield
        except OSError:
            if self.state != "complete":
                raise

    # --- reading ---------------------------------------------------------------------------------------

    @property
    def meta(self) -> dict[str, Any]:
        """`meta.json` of a complete thing."""
        if self.state != "complete":
            raise RunError(f"{self.folder}: not complete ({self.state}); run the command that makes it again")
        meta: dict[str, Any] = read_json(self.folder / "meta.json")
        return meta

    @property
    def summary(self) -> dict[str, Any]:
        """What the maker said of the content (counts by status and the like)."""
        found: dict[str, Any] = self.meta["summary"]
        return found

    def path(self, name: str) -> Path:
        """Path of a file of the complete thing."""
        return self.folder / name

    def paths(self, name: str) -> list[Path]:
        """The .npy file of the array `name` of every shard, in order."""
        return [self.path(f"{shard:05d}.{name}.npy") for shard in range(self.shards)]

    def arrays(self, name: str) -> list[np.ndarray]:
        """The array `name` of every shard, in order, memory-mapped read-only."""
        return [self.array(shard, name) for shard in range(self.shards)]

    def array(self, shard: int, name: str) -> np.ndarray:
        """The array `name` of one shard, memory-mapped read-only; of a partial thing too."""
        folder = self.folder if self.state == "complete" else self.part
        path = folder / f"{shard:05d}.{name}.npy"
        mapped: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
        return mapped

    def reasons(self, shard: int) -> dict[int, str]:
        """Why rows of a shard were refused or failed, by their number in it; of a partial thing too."""
        folder = self.folder if self.state == "complete" else self.part
        path = folder / f"{shard:05d}.reasons.json"
        if not path.exists():
            return {}
        return {int(row): text for row, text in json.loads(path.read_text()).items()}

    def joined(self, name: str) -> np.ndarray:
        """The array `name` of all shards as one array in memory."""
        return np.concatenate([np.asarray(part) for part in self.arrays(name)])


class Store:
    """A folder of stored things."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)

    def open(self, kind: str, recipe: Mapping[str, Any], shards: int = 0) -> Thing:
        """The thing of `kind` made by `recipe` in `shards` shards (0: files only), whatever its state."""
        thing = Thing(self.root, kind, recipe, shards)
        if thing.state == "complete":  # a writer can die between the last rename and this tidying
            shutil.rmtree(thing.claims, ignore_errors=True)
        return thing

    def things(self) -> Iterator[tuple[str, str, str]]:
        """(kind, digest, state) of everything in the store, in order of name."""
        for folder in sorted(self.root.glob("*/*")):
            if folder.is_dir() and folder.suffix != ".claims":
                partial = folder.suffix == ".part"
                yield folder.parent.name, folder.stem, "partial" if partial else "complete"

    def check(self) -> list[Fault]:
        """Every file of every complete thing against its checksum; also leftovers of dead writers."""
        faults = []
        for folder in sorted(self.root.glob("*/*")):
            if not folder.is_dir() or folder.suffix in (".part", ".claims"):
                continue
            meta = read_json(folder / "meta.json")
            for name, entry in meta["files"].items():
                path = folder / name
                if not path.exists():
                    faults.append(Fault(path, "missing"))
                elif path.stat().st_size != entry["bytes"]:
                    faults.append(Fault(path, f"{path.stat().st_size} bytes, recorded {entry['bytes']}"))
                elif file_digest(path) != entry["digest"]:
                    faults.append(Fault(path, "the content does not match its checksum"))
            extra = set(_names(folder)) - set(meta["files"]) - {"meta.json"}
            faults += [Fault(folder / name, "not listed in meta.json") for name in sorted(extra)]
        return faults

    def remove(self, thing: Thing) -> None:
        """Delete a thing in whatever state."""
        for folder in (thing.folder, thing.part, thing.claims):
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Within the block, no other writer begins or finishes a thing of this kind."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        _lock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _lock(handle: int, how: int) -> bool:
    """Whether the lock was had; True also where a file system has no locks: then work is done twice."""
    try:
        fcntl.flock(handle, how)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.EINVAL):
            raise
    return True


def _names(folder: Path) -> list[str]:
    """Every file of a folder and of those in it, by its path from there, in order."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def _entry(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "digest": file_digest(path)}
