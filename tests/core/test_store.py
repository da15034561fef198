"""Stored things: names, states, shards, several writers, kills and a full disk."""

from __future__ import annotations

import errno
import multiprocessing
import os
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tamis.core.digest import digest
from tamis.core.errors import RunError
from tamis.core.files import remove_dead, write_array
from tamis.core.shards import Made, make_shards, parse_share
from tamis.core.store import Store, shard_bounds, shard_rows_of

RECIPE = {"method": "square", "rows": 50}
BOUNDS = shard_bounds(50, 8)


def _square(start: int, stop: int) -> Made:
    rows = np.arange(start, stop, dtype=np.float32)
    arrays = {
        "vectors": np.stack([rows, rows**2], 1),
        "status": np.zeros(stop - start, np.uint8),
        "tokens": np.ones(stop - start, np.int32),
    }
    return Made(arrays, {1: "a reason"} if start == 8 else {}, tokens=stop - start)


def _make(root: Path, share: tuple[int, int] | None = None) -> bool:
    store = Store(root)
    thing = store.open("representation", RECIPE, len(BOUNDS))
    return make_shards(store, thing, BOUNDS, _square, method="square", share=share)


def _bytes(root: Path) -> dict[str, bytes]:
    """Every file of the store but the ledger, which holds times."""
    files = sorted(path for path in root.rglob("*") if path.is_file() and path.name != "ledger.jsonl")
    return {str(path.relative_to(root)): path.read_bytes() for path in files}


def test_shard_bounds_cover_every_row_once() -> None:
    assert shard_bounds(20, 8) == [(0, 8), (8, 16), (16, 20)]
    assert shard_bounds(16, 8) == [(0, 8), (8, 16)]
    assert shard_bounds(0, 8) == [(0, 0)]
    assert shard_bounds(600) == [(0, 512), (512, 600)]


def test_shards_grow_with_the_pool_between_two_limits() -> None:
    assert [shard_rows_of(n) for n in (0, 1, 131_072, 131_073, 1_000_000)] == [512, 512, 512, 1024, 4096]
    assert shard_rows_of(10**8) == 65_536


def test_the_name_is_the_recipe(tmp_path: Path) -> None:
    store = Store(tmp_path)
    first = store.open("representation", {"a": 1, "b": 2.5})
    assert first.digest == store.open("representation", {"b": 2.5, "a": 1}).digest
    assert first.digest != store.open("representation", {"a": 1, "b": 2.0}).digest
    assert first.digest != store.open("scores", {"a": 1, "b": 2.5}).digest
    with pytest.raises(ValueError, match="JSON"):
        digest({"a": float("nan")})


def test_three_states_and_reading_back(tmp_path: Path) -> None:
    thing = Store(tmp_path).open("representation", RECIPE, len(BOUNDS))
    assert thing.state == "missing"
    thing.begin()
    thing.write_shard(0, _square(*BOUNDS[0]).arrays)
    assert thing.state == "partial" and thing.missing() == [1, 2, 3, 4, 5, 6]
    with pytest.raises(RunError, match="6 of 7 shards"):
        thing.finish({})
    assert _make(tmp_path)
    assert thing.state == "complete" and thing.missing() == []
    assert thing.joined("vectors")[:, 1].tolist() == [float(i * i) for i in range(50)]
    assert thing.summary == {"rows": 50, "tokens": 50, "status": {"ok": 50}}
    assert thing.reasons(1) == {1: "a reason"} and thing.reasons(0) == {}
    assert Store(tmp_path).check() == []


def test_the_check_names_a_damaged_file(tmp_path: Path) -> None:
    _make(tmp_path)
    thing = Store(tmp_path).open("representation", RECIPE, len(BOUNDS))
    path = thing.path("00002.vectors.npy")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    thing.path("00003.status.npy").unlink()
    thing.path("stray").write_text("?")
    reasons = {fault.path.name: fault.reason for fault in Store(tmp_path).check()}
    assert reasons == {
        "00002.vectors.npy": "the content does not match its checksum",
        "00003.status.npy": "missing",
        "stray": "not listed in meta.json",
    }


def test_workers_with_shares_and_in_any_order_give_the_same_bytes(tmp_path: Path) -> None:
    assert _make(tmp_path / "alone")
    for share in ((3, 3), (1, 3)):
        assert not _make(tmp_path / "shared", share)
    assert _make(tmp_path / "shared", (2, 3))
    assert _bytes(tmp_path / "alone") == _bytes(tmp_path / "shared")


def test_writers_at_the_same_time_give_the_same_bytes(tmp_path: Path) -> None:
    _make(tmp_path / "alone")
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_make, args=(tmp_path / "many",)) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    assert _bytes(tmp_path / "alone") == _bytes(tmp_path / "many")


def test_parse_share() -> None:
    assert parse_share("2/8") == (2, 8) and parse_share(None) is None
    for wrong in ("0/3", "4/3", "x/3", "3", "1/"):
        with pytest.raises(Exception, match="expected i/n"):
            parse_share(wrong)


def _make_and_die(root: Path, point: int) -> int:
    """Run `_make` in a child that kills itself (SIGKILL) at its `point`-th step; returns the exit status.

    A step is the moment before or after a call that makes something durable or visible: every fsync, replace
    and rename, so that each gap between two writes is a point.
    """
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    left = point

    def step() -> None:
        nonlocal left
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def watched(call: Callable[..., None]) -> Callable[..., None]:
        def wrapper(*args: object) -> None:
            step()
            call(*args)
            step()

        return wrapper

    os.fsync, os.replace, os.rename = watched(os.fsync), watched(os.replace), watched(os.rename)
    _make(root)
    os._exit(0)


def test_killed_between_any_two_writes(tmp_path: Path) -> None:
    _make(tmp_path / "undisturbed")
    expected = _bytes(tmp_path / "undisturbed")
    point, exits = 0, []
    while 0 not in exits:
        folder = tmp_path / f"killed{point}"
        exits.append(_make_and_die(folder, point))
        assert exits[-1] in (0, -signal.SIGKILL)
        assert _make(folder)
        assert _bytes(folder) == expected, f"killed at {point}"
        point += 1
    assert point > 150


def test_a_full_disk_is_said_and_loses_nothing(tmp_path: Path) -> None:
    """A limit on file size stands in for the full disk: the write fails half-way in the same place."""
    code = (
        "import resource,sys; from pathlib import Path; sys.path.insert(0, sys.argv[2]);"
        "from tests.core.test_store import _make; import signal;"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (150, resource.RLIM_INFINITY)); _make(Path(sys.argv[1]))"
    )
    root = str(Path(__file__).resolve().parents[2])
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "a"), root], cwd=root, capture_output=True, check=False
    )
    assert done.returncode != 0
    thing = Store(tmp_path / "a").open("representation", RECIPE, len(BOUNDS))
    assert thing.state in ("missing", "partial")
    assert not list((tmp_path / "a").rglob("*.tmp"))
    assert _make(tmp_path / "a") and _make(tmp_path / "b")
    assert _bytes(tmp_path / "a") == _bytes(tmp_path / "b")
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY


def test_arrays_are_written_by_calls_that_can_say_why_they_fail() -> None:
    """On /dev/full every write fails for want of space; numpy's own way would lose the reason."""
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    with pytest.raises(OSError) as caught:
        write_array(Path("/dev/full"), np.zeros(100_000))
    assert caught.value.errno == errno.ENOSPC


def test_only_what_dead_writers_left_is_removed(tmp_path: Path) -> None:
    host = socket.gethostname()
    child = os.fork()
    if not child:
        os._exit(0)
    os.waitpid(child, 0)
    dead, alive = (tmp_path / f".a.json.{host}.{pid}.1.tmp" for pid in (child, os.getpid()))
    other = tmp_path / f".a.json.else.{child}.1.tmp"
    for path in (dead, alive, other):
        path.touch()
    remove_dead(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted([alive, other])


def test_no_space_left_becomes_a_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(source: str, target: str) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(RunError, match="run the same command again"):
        _make(tmp_path)
    assert not list(tmp_path.rglob("*.tmp"))
