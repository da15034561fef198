"""Import of vectors: .npy and bergson indexes, statuses, sides, and that paths are no part of a recipe."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tamis.core.errors import RequestError
from tamis.core.status import words
from tamis.representations import REPRESENTATIONS
from tamis.representations._context import Context
from tamis.representations._outside_vectors import open_matrix

IMPORT = REPRESENTATIONS["import"]
IDS = np.array([f"{i:032x}" for i in range(6)])
ROWS = np.array([[3, 4], [0, 0], [np.nan, 1], [-2, 0], [1, np.inf]], dtype=np.float64)


def write_index(
    folder: Path, rows: np.ndarray, dtype: str = "float32", old: bool = False, **processor: Any
) -> Path:
    """A bergson index of two modules, as bergson 2.x lays it out; `old`: before it had base_dtype."""
    folder.mkdir(parents=True)
    if dtype == "bfloat16":
        (np.ascontiguousarray(rows, np.float32).view(np.uint32) >> 16).astype(np.uint16).tofile(
            folder / "gradients.bin"
        )
    else:
        rows.astype(dtype).tofile(folder / "gradients.bin")
    sizes = {"layers.0.q": 1, "layers.0.v": rows.shape[1] - 1}
    info: dict[str, Any] = {"num_grads": len(rows), "grad_sizes": sizes}
    if old:
        code = np.dtype(dtype).str
        info["dtype"] = {"names": list(sizes), "formats": [f"({size},){code}" for size in sizes.values()]}
    else:
        info |= {"attribute_tokens": False, "num_items": len(rows), "base_dtype": dtype}
    (folder / "info.json").write_text(json.dumps(info))
    given = {"projection_dim": 16, "projection_type": "rademacher", **processor}
    (folder / "processor_config.yaml").write_text(
        "".join(f"{key}: {value}\n" for key, value in given.items())
    )
    return folder


def opened(path: Path, role: str = "pool", **parameters: Any) -> Any:
    side = "query" if role == "query" else "file"
    return IMPORT.run(IMPORT.configure({side: str(path), **parameters}), Context(role=role))


@pytest.fixture
def npy(tmp_path: Path) -> Path:
    np.save(tmp_path / "vectors.npy", ROWS)
    np.save(tmp_path / "ids.npy", IDS[:5])
    return tmp_path / "vectors.npy"


def test_rows_by_hand(npy: Path) -> None:
    encoder = opened(npy, ids=str(npy.with_name("ids.npy")))
    order = np.array([5, 3, 0, 1, 2, 4])
    assert encoder.match(IDS[order]) == {
        "file_rows": 5, "matched": 5, "missing": 1, "unknown": 0, "repeated": 0
    }  # fmt: skip
    found = encoder.rows(0, 6)
    assert list(words(found.status)) == ["failed", "ok", "ok", "no_target_tokens", "non_finite", "non_finite"]
    np.testing.assert_allclose(found.arrays["vectors"][:3], [[0, 0], [-1, 0], [0.6, 0.8]], atol=1e-7)
    assert not found.arrays["vectors"][3:].any() and found.arrays["vectors"].dtype == np.float32
    assert sorted(found.reasons) == [0, 3, 4, 5] and "no vector" in found.reasons[0]
    part = encoder.rows(1, 3)
    np.testing.assert_array_equal(part.arrays["vectors"], found.arrays["vectors"][1:3])
    assert part.reasons == {}


def test_inner_products_keep_lengths_and_zeros(npy: Path) -> None:
    encoder = opened(npy, by_position=True, normalise=False)
    encoder.match(IDS[:5])
    found = encoder.rows(0, 5)
    assert list(words(found.status)) == ["ok", "ok", "non_finite", "ok", "non_finite"]
    np.testing.assert_array_equal(found.arrays["vectors"][[0, 1, 3]], ROWS[[0, 1, 3]])


@pytest.mark.parametrize(
    ("dtype", "old", "kept"),
    [
        ("float32", False, np.float32),
        ("float16", False, np.float16),
        ("bfloat16", False, np.float16),
        ("float32", True, np.float32),
    ],
)
def test_a_bergson_index(tmp_path: Path, dtype: str, old: bool, kept: type) -> None:
    rows = np.array([[3, 4, 0], [0, 0, 0], [1, -0.5, 0.25]])
    index = write_index(tmp_path / "index", rows, dtype, old)
    np.testing.assert_array_equal(open_matrix(str(index)).take(np.array([2, 0])), rows[[2, 0]])
    encoder = opened(index, by_position=True)
    encoder.match(IDS[:3])
    found = encoder.rows(0, 3)
    assert found.arrays["vectors"].dtype == kept
    assert list(words(found.status)) == ["ok", "no_target_tokens", "ok"]
    np.testing.assert_allclose(found.arrays["vectors"][0], [0.6, 0.8, 0], atol=1e-3)


def test_sides_that_cannot_be_compared_are_refused(tmp_path: Path) -> None:
    rows = np.ones((2, 3))
    pool = write_index(tmp_path / "pool", rows)
    for name, index in (
        ("projection", write_index(tmp_path / "other", rows, projection_dim=8)),
        ("modules", write_index(tmp_path / "wider", np.ones((2, 4)))),
    ):
        with pytest.raises(RequestError, match=f"differ in {name}"):
            opened(pool, query=str(index), by_position=True)
    same = write_index(tmp_path / "query", rows[:1])
    assert opened(pool, query=str(same), by_position=True).dimensions == 3
    np.save(tmp_path / "plain.npy", rows)
    with pytest.raises(RequestError, match="differ in d"):
        opened(pool, query=str(tmp_path / "plain.npy"), by_position=True)


def test_the_query_side_has_its_own_file(tmp_path: Path, npy: Path) -> None:
    np.save(tmp_path / "query.npy", np.array([[0.0, 2.0]]))
    both = {"file": str(npy), "query": str(tmp_path / "query.npy"), "by_position": True}
    encoder = IMPORT.run(IMPORT.configure(both), Context(role="query"))
    encoder.match(IDS[:1])
    np.testing.assert_array_equal(encoder.rows(0, 1).arrays["vectors"], [[0, 1]])


def test_the_recipe_is_the_contents(npy: Path, tmp_path: Path) -> None:
    def recipe(path: Path, **parameters: Any) -> str:
        return json.dumps(opened(path, **{"by_position": True, **parameters}).recipe, sort_keys=True)

    moved = tmp_path / "moved.npy"
    moved.write_bytes(npy.read_bytes())
    ids = str(npy.with_name("ids.npy"))
    (tmp_path / "same.txt").write_text("\n".join(IDS[:5]))
    assert recipe(npy) == recipe(moved)
    assert recipe(npy, ids=ids) == recipe(moved, ids=str(tmp_path / "same.txt"))
    np.save(tmp_path / "other.npy", ROWS[::-1])
    changed = [
        recipe(npy),
        recipe(npy, ids=ids),
        recipe(npy, normalise=False),
        recipe(tmp_path / "other.npy"),
    ]
    assert len(set(changed)) == 4


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({}, "give --set import.file=FILE"),
        ({"file": "absent.npy"}, "no such file or folder"),
        ({"file": "{ints}", "by_position": True}, "expected floating-point numbers"),
        ({"file": "{text}", "by_position": True}, "expected a .npy matrix"),
        ({"file": "{vectors}"}, r"--set import\.ids=FILE"),
        ({"file": "{vectors}", "name": "mine"}, "not both"),
        ({"name": 7}, "expected a text"),
        ({"name": "mine"}, "unknown import"),
    ],
)
def test_refusals_before_any_work(npy: Path, parameters: dict[str, Any], message: str) -> None:
    np.save(npy.with_name("ints.npy"), np.ones((2, 2), int))
    npy.with_name("text").write_text("hello")
    places = {"ints": npy.with_name("ints.npy"), "text": npy.with_name("text"), "vectors": npy}
    given = {k: v.format(**places) if isinstance(v, str) else v for k, v in parameters.items()}
    with pytest.raises(RequestError, match=message):
        IMPORT.run(IMPORT.configure(given), Context(store=npy.parent))


def test_an_index_that_is_none(tmp_path: Path) -> None:
    index = write_index(tmp_path / "index", np.ones((2, 3)))
    (index / "gradients.bin").write_bytes(b"1234")
    with pytest.raises(RequestError, match="4 bytes, but 2 rows of 3 float32 numbers"):
        open_matrix(str(index))
    (index / "info.json").write_text(
        json.dumps(
            {"num_grads": 2, "grad_sizes": {"a": 3}, "base_dtype": "float32", "attribute_tokens": True}
        )
    )
    with pytest.raises(RequestError, match="single tokens"):
        open_matrix(str(index))
    (index / "info.json").write_text("{}")
    with pytest.raises(RequestError, match="not the description of a gradient index"):
        open_matrix(str(index))
    with pytest.raises(RequestError, match="expected a bergson gradient index"):
        open_matrix(str(tmp_path))
