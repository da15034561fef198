"""Replies that were paid for, kept as they come: a request that was answered is never made again.

    <store>/replies/<judge>.<host>.<process>.<hex>.jsonl    one line a reply, appended by one process

A reply is found by the digest of its request, so that neither the pool nor the shard matters. A line is
written whole or, when its writer dies, torn; a torn one is no reply. Lines stay on disk; memory holds where
they are.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import time
from pathlib import Path
from typing import Any

FOLDER = "replies"
_SYNC_S = 1.0
_START = b'{"key": "'
_KEY = 32


class Replies:
    """Replies of one `judge` (a digest of everything that its requests share) in a store."""

    def __init__(self, store: str | Path, judge: str) -> None:
        self.folder, self.judge = Path(store) / FOLDER, judge
        self._read: dict[Path, int] = {}  # how far each file was read
        self._at: dict[str, tuple[Path, int]] = {}
        self._handle: int | None = None
        self._path: Path | None = None
        self._synced = 0.0

    def refresh(self) -> None:
        """Take notice of what this and other processes have written since."""
        for path in sorted(self.folder.glob(f"{self.judge}.*.jsonl")):
            begin = self._read.get(path, 0)
            if path.stat().st_size <= begin:
                continue
            with open(path, "rb") as file:
                file.seek(begin)
                for line in file:
                    if not line.endswith(b"\n"):  # torn, or still being written
                        break
                    if line.startswith(_START) and line.endswith(b"}\n"):
                        key = line[len(_START) : len(_START) + _KEY].decode("ascii", "replace")
                        self._at.setdefault(key, (path, begin))
                    begin += len(line)
            self._read[path] = begin

    def __len__(self) -> int:
        return len(self._at)

    def get(self, key: str) -> dict[str, Any] | None:
        """The reply to a request, None where there is none."""
        if key not in self._at:
            return None
        path, begin = self._at[key]
        try:
            with open(path, "rb") as file:
                file.seek(begin)
                found = json.loads(file.readline())
        except (OSError, ValueError):
            found = None
        if not isinstance(found, dict) or found.get("key") != key:
            del self._at[key]
            return None
        return found

    def add(self, key: str, reply: dict[str, Any]) -> None:
        """Keep a reply; it outlives this process at once, and the machine within a second of the next one."""
        if self._handle is None or self._path is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            own = f"{self.judge}.{socket.gethostname()}.{os.getpid()}.{secrets.token_hex(4)}.jsonl"
            self._path = self.folder / own
            self._handle = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o644)
        line = (json.dumps({"key": key, **reply}) + "\n").encode()
        begin = os.fstat(self._handle).st_size
        written = os.write(self._handle, line)
        if written < len(line):  # a full disk: the rest of the line says so
            os.write(self._handle, line[written:])
        self._at[key] = self._path, begin
        if time.monotonic() - self._synced > _SYNC_S:
            self.sync()

    def sync(self) -> None:
        """Make what was added durable."""
        if self._handle is not None:
            os.fsync(self._handle)
        self._synced = time.monotonic()

    def close(self) -> None:
        """Sync, and let the file go; the next reply begins another."""
        if self._handle is not None:
            self.sync()
            os.close(self._handle)
        self._handle = self._path = None
