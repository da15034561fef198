"""Writing files so that a crash leaves the old one, the new one, or a temporary name that nothing reads."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from tamis.core.errors import RunError

TEMPORARY = ".tmp"


def read_json(path: Path) -> Any:
    """The JSON of a file that tamis wrote; a damaged one is a `RunError` that names it."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RunError(
            f"{path}: damaged, not readable as JSON ({error}); remove {path.parent} and run the command that "
            "made it again"
        ) from error


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` durable (a rename is not, until its folder is synced)."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:  # some network file systems refuse to sync a folder
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it is synced and renamed over `path`, else removed.

    A full disk becomes a `RunError` that says what to do; `path` is untouched until the rename.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    own = f"{socket.gethostname()}.{os.getpid()}.{threading.get_ident()}"
    temporary = path.with_name(f".{path.name}.{own}{TEMPORARY}")
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise RunError(
                f"{path}: no space left on the disk; free some space and run the same command again: "
                "what was finished is kept"
            ) from error
        raise
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` to `path` atomically."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


class _Plain:
    """A file that numpy does not take for one: what numpy writes itself fails without saying why."""

    def __init__(self, file: BinaryIO) -> None:
        self.write = file.write


def write_array(path: Path, array: np.ndarray) -> None:
    """Write `array` to `path` as .npy, not atomically; a full disk is an OSError with its number."""
    with open(path, "wb") as file:
        np.lib.format.write_array(_Plain(file), np.ascontiguousarray(array), allow_pickle=False)


def remove_dead(folder: Path) -> None:
    """Remove temporaries below `folder` whose writer, a process of this machine, is no more."""
    for path in folder.rglob(f".*{TEMPORARY}"):
        host, process = path.name.removesuffix(TEMPORARY).rsplit(".", 2)[0], path.name.split(".")[-3]
        if not host.endswith(f".{socket.gethostname()}") or not process.isdigit():
            continue
        try:
            os.kill(int(process), 0)
        except ProcessLookupError:
            path.unlink(missing_ok=True)
        except PermissionError:
            continue


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON with sorted keys atomically; equal values give equal bytes."""
    text = json.dumps(value, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False)
    write_bytes(path, (text + "\n").encode())


def append_line(path: Path, value: Any) -> None:
    """Append one JSON line; a single short write in append mode, so that writers do not mix their lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    line = json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        os.write(handle, line.encode())
    finally:
        os.close(handle)
