"""Reports: numbers equal to the manifest, hostile text shown as text, the same bytes again, and no model."""

from __future__ import annotations

import base64
import csv
import gzip
import html
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tamis
from tamis.core.errors import RequestError
from tamis.core.similarity import ArraySimilarity, FeatureSimilarity
from tamis.lab import write_lab
from tamis.study._report_charts import nice_step, number, percent, sparse
from tamis.study._report_facts import budget_words, read_runs
from tamis.study._report_map import plane_of
from tamis.study._report_text import (
    PART_CHARACTERS,
    TEXT_BYTES,
    Excerpt,
    allowance,
    embedded,
    excerpt,
    rounded,
    shortened,
    visible,
)
from tamis.study._report_views import nearest, nearest_slow

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--virtual-time-budget=4000",
)  # fmt: skip
SCRIPT = "</script><script>alert(1)</script>"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A selection on the laboratory: two budgets by queries, one by length, and the random draws."""
    folder = tmp_path_factory.mktemp("report")
    write_lab(folder, rows=400, seed=1)
    pool = tamis.read_pool([folder / "pool.jsonl"], store=folder / "store")
    queries = sorted((folder / "queries").glob("*.jsonl"))[:2]
    tamis.select(
        pool,
        query={path.stem: path for path in queries},
        strategy=["ngrams/round-robin", "longest", "random"],
        budget=[20, 60],
        parameters={"length": {"unit": "chars"}},
        store=folder / "store",
        out=folder / "out",
    )
    return folder / "out"


class _Page(HTMLParser):
    """Elements, ids and the text of data scripts of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.data: dict[str, str] = {}
        self._id: str | None = None
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._id = dict(attrs).get("id") if tag == "script" else None

    def handle_data(self, data: str) -> None:
        if self._id:
            self.data[self._id] = self.data.get(self._id, "") + data

    def rows(self) -> dict[str, Any]:
        packed = next(a for t, a in self.tags if t == "script" and a.get("id") == "data").get("data-packed")
        text = self.data["data"]
        found: dict[str, Any] = json.loads(gzip.decompress(base64.b64decode(text)) if packed else text)
        return found


def _page(out: Path) -> _Page:
    return _Page((out / "report.html").read_text(encoding="utf-8"))


def test_the_numbers_are_those_of_the_manifest_and_the_tables(made: Path) -> None:
    manifest = json.loads((made / "manifest.json").read_text())
    text = html.unescape((made / "report.html").read_text(encoding="utf-8"))
    data = _page(made).rows()
    with open(made / "tables" / "sources.csv", encoding="utf-8") as file:
        sources = list(csv.DictReader(file))
    runs = read_runs([made])
    assert len(data["views"]) == len(manifest["subsets"]) == 6
    for entry, view, shown in zip(manifest["subsets"], runs[0].views, data["views"], strict=True):
        assert len(shown["rows"]) == entry["rows"] == len(view)
        for row, rank in zip(shown["rows"], range(len(view)), strict=True):
            assert data["rows"]["id"][row] == str(view.pool.ids[view.positions[rank]])
            source = data["sources"][data["rows"]["source"][row]]
            assert source == str(view.pool.sources[view.positions[rank]])
        top = entry["sources"][0]
        said = f"{percent(top['share'])} of the rows are from {top['source']}, "
        assert said + f"which is {percent(top['pool_share'])} of the pool" in text
        mine = [
            row for row in sources if (row["strategy"], row["budget"]) == (entry["strategy"], entry["budget"])
        ]
        assert {r["source"]: int(r["rows"]) for r in mine} == {
            s["source"]: s["rows"] for s in entry["sources"]
        }
        assert sum(float(row["random_share"]) for row in mine) == pytest.approx(1)
        median = entry["length"]["characters"]
        assert f"Median {number(median['median'])} characters against {number(median['pool_median'])}" in text
        for warning in entry["warnings"]:
            assert warning in text
        if found := entry["diagnostics"].get("subset_to_query"):
            assert number(found, 4) in text
            assert number(entry["diagnostics"]["random"]["subset_to_query"], 4) in text


def test_choosers_nearest_queries_and_picks_agree_with_the_signal(made: Path) -> None:
    manifest = json.loads((made / "manifest.json").read_text())
    data = _page(made).rows()
    view = data["views"][1]
    assert view["key"] == "s1" and len(view["rows"]) == 60
    picks = np.bincount(view["chooser"], minlength=len(data["queries"]))
    assert view["picks"] == picks.tolist()
    for task, found in manifest["subsets"][1]["queries"].items():
        mine = [picks[i] for i, query in enumerate(data["queries"]) if query["task"] == task]
        assert (sum(mine), max(mine), mine.count(0)) == (found["picks"], found["most"], found["without"])
    # Round-robin takes the row nearest to a query: the score is that similarity.
    near = np.array(view["similarity"]).reshape(60, view["places"])
    assert (np.diff(near, axis=1) <= 0).all()
    assert (np.array(view["score"]) <= near[:, 0] + 1e-3).all()


def test_the_rows_outside_are_the_next_of_the_order(made: Path) -> None:
    small, large = read_runs([made])[0].views[:2]
    assert small.outside.tolist() == large.positions[20:25].tolist()
    assert not set(large.outside) & set(large.positions) and len(large.outside) == 5


def test_random_rows_stand_beside_every_subset_also_beside_random(made: Path) -> None:
    for view in read_runs([made])[0].views:
        assert len(view.control) == len(view) and len(set(view.control.tolist())) == len(view)
        assert sorted(view.control) != sorted(view.positions)


def test_the_same_selection_gives_the_same_bytes_without_a_signal(made: Path, tmp_path: Path) -> None:
    before = {
        path.name: path.read_bytes() for path in made.rglob("*") if path.suffix in (".html", ".md", ".csv")
    }
    code = (
        "import sys, tamis; tamis.report(sys.argv[1], out=sys.argv[2]);"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(made), str(tmp_path)], check=True)
    after = {path.name: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert after == before and len(after) == 7


def test_the_page_asks_for_nothing_from_outside_and_has_landmarks(made: Path) -> None:
    page = _page(made)
    policy = next(a["content"] for t, a in page.tags if t == "meta" and "http-equiv" in a)
    assert policy and policy.startswith("default-src 'none'") and "unsafe" not in policy
    for tag, attributes in page.tags:
        assert not {"src", "style", "onclick", "onload"} & set(attributes), tag
        assert tag not in ("link", "iframe", "img", "object")
        assert not (attributes.get("href") or "#").strip("#").startswith("http")
    tags = [tag for tag, _ in page.tags]
    assert ("html", {"lang": "en"}) in page.tags
    assert {"header", "main", "nav", "footer", "h1"} <= set(tags) and tags.count("h1") == 1
    ids = [attributes["id"] for _, attributes in page.tags if attributes.get("id")]
    assert len(ids) == len(set(ids))
    labelled = {attributes["for"] for tag, attributes in page.tags if tag == "label"}
    assert {a["id"] for tag, a in page.tags if tag in ("input", "select")} == labelled
    for tag, attributes in page.tags:
        if tag == "svg":
            assert attributes["role"] == "img" and attributes["aria-label"]
        if (attributes.get("href") or "").startswith("#"):
            assert attributes["href"][1:] in ids  # type: ignore[index]


HOSTILE = [
    SCRIPT,
    "{{7*7}}",
    "{% raw %}",
    "a\x00b\x1b[31m",
    "<img src=x onerror=alert(1)>",
    "-->",
    "\u202egnp\u2028",
    "é" * 300_000,
]


def test_hostile_text_is_text(tmp_path: Path) -> None:
    with open(tmp_path / "pool.jsonl", "w", encoding="utf-8") as file:
        for i, text in enumerate(HOSTILE * 5):
            row = {
                "prompt": f"{i} {text}",
                "response": text + "." * (1 << 20 if i == 3 else 1),
                "source": text[:60],
            }
            file.write(json.dumps(row) + "\n")
    with open(tmp_path / "q.jsonl", "w", encoding="utf-8") as file:
        file.writelines(json.dumps({"prompt": text, "response": "alert(1) é"}) + "\n" for text in HOSTILE)
    pool = tamis.read_pool([tmp_path / "pool.jsonl"], store=tmp_path / "store")
    tamis.select(
        pool, query={SCRIPT: tmp_path / "q.jsonl"}, strategy=["ngrams/round-robin", "random"], budget=40,
        store=tmp_path / "store", out=tmp_path / "out", allow_underflow=True,
    )  # fmt: skip
    raw = (tmp_path / "out" / "report.html").read_bytes()
    assert len(raw) < 2_000_000 and b"\x00" not in raw and b"\x1b" not in raw
    text = raw.decode()
    assert "{{7*7}}" in text and "49" not in re.findall(r"<pre class=\"prompt\">\d+ (\d+)<", text)
    page = _page(tmp_path / "out")
    assert [attributes.get("id") for tag, attributes in page.tags if tag == "script"] == ["data", None]
    assert "img" not in {tag for tag, _ in page.tags}
    rows = page.rows()["rows"]
    assert any(SCRIPT in prompt for prompt in rows["prompt"])
    assert any("a␀b␛[31m" in prompt for prompt in rows["prompt"])
    assert max(map(len, rows["prompt"])) <= PART_CHARACTERS and max(rows["prompt_chars"]) > 300_000
    assert max(rows["response_chars"]) > 1 << 20 and max(map(len, rows["response"])) <= PART_CHARACTERS
    assert re.search(r"Shown [\d,]+ of [\d,]{7,} characters", text)
    assert SCRIPT not in (tmp_path / "out" / "report.md").read_text()


def test_several_selections_side_by_side_and_a_part_of_one(made: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(made, copy)
    found = tamis.report([made, copy], out=tmp_path / "both")
    assert (found.subsets, found.rows) == (12, 480)
    data = _page(tmp_path / "both").rows()
    first, second = data["views"][0], data["views"][6]
    assert first["rows"] == second["rows"]  # rows that both hold are in the page once
    assert second["first"] == len(data["queries"]) // 2 and min(second["nearest"]) >= second["first"]
    part = tamis.report(made / "longest" / "20" / "seed0", out=tmp_path / "part")
    assert part.subsets == 1


@pytest.mark.parametrize(
    ("path", "message"),
    [("nothing", "no selection here"), ("unfinished", "was not finished"), ("out/longest/20/seed0", "--out")],
)
def test_what_cannot_be_reported_is_refused(path: str, message: str, made: Path, tmp_path: Path) -> None:
    folder = made.parent / path if path.startswith("out") else tmp_path / path
    if path == "unfinished":
        folder.mkdir()
        (folder / "manifest.json").write_text('{"complete": false}')
    with pytest.raises(RequestError, match=message):
        tamis.report(folder)


def test_views_missing_from_an_older_selection_are_said_not_invented(made: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(made, copy)
    for folder in copy.rglob("view"):
        shutil.rmtree(folder)
    (copy / "queries.jsonl").unlink()
    manifest = json.loads((copy / "manifest.json").read_text())
    for entry in manifest["subsets"]:
        del entry["diagnostics"]
    (copy / "manifest.json").write_text(json.dumps(manifest))
    tamis.report(copy)
    text = (copy / "report.html").read_text(encoding="utf-8")
    assert "holds no diagnostics" in text and "not known for this strategy" in text
    assert not (copy / "tables" / "picks.csv").read_text().splitlines()[1:]


def test_nearest_is_the_sorted_column_with_ties_to_the_first() -> None:
    scores = np.round(np.random.default_rng(0).random((7, 50)), 1).astype(np.float32)
    positions = np.array([3, 49, 0, 7])
    query, value = nearest(ArraySimilarity(scores), positions, 3)
    slow_query, slow_value = nearest_slow(scores, positions, 3)
    assert (query == slow_query).all() and (value == slow_value).all()
    assert nearest(ArraySimilarity(scores[:2]), positions, 3)[0].shape == (4, 2)


@pytest.mark.parametrize("sparse", [False, True])
def test_the_map_is_the_singular_value_decomposition_of_centred_rows(sparse: bool) -> None:
    from scipy.sparse import csr_array

    from tamis.core.similarity import SparseSimilarity

    generator = np.random.default_rng(0)
    rows = (generator.standard_normal((80, 12)) * np.geomspace(5, 0.1, 12) + 1).astype(np.float32)
    queries = generator.standard_normal((5, 12)).astype(np.float32)
    similarity: Any = FeatureSimilarity(queries, [rows])
    if sparse:
        similarity = SparseSimilarity(queries, [csr_array(rows)])
    plane = plane_of(similarity, 0)
    assert plane is not None
    centred = rows - rows.mean(axis=0)
    _, values, axes = np.linalg.svd(centred, full_matrices=False)
    points = plane.points(similarity, np.array([4, 9]), 0)
    expected = np.concatenate([centred, centred[[4, 9]], queries - rows.mean(axis=0)]) @ axes[:2].T
    sign = np.sign((points.xy[:80] * expected[:80]).sum(axis=0))
    assert np.allclose(points.xy, expected * sign / np.abs(expected).max(), atol=2e-4)
    assert np.allclose(points.share, values[:2] ** 2 / (values**2).sum(), atol=1e-5)
    assert points.kind.tolist() == ["pool"] * 80 + ["subset"] * 2 + ["query"] * 5


def test_a_drawn_curve_keeps_its_extremes() -> None:
    values = np.tile([1.0, 0.0], 1000)
    values[777] = 9.0
    kept = sparse(values, 50)
    assert kept[0] == 0 and kept[-1] == 1999 and 777 in kept and len(kept) <= 102
    assert set(values[kept]) == {0.0, 1.0, 9.0}


def test_equal_rows_have_no_map() -> None:
    assert plane_of(FeatureSimilarity(np.ones((2, 3)), [np.ones((9, 3), np.float32)]), 0) is None


def test_texts_are_cut_and_what_is_unseen_is_written_out() -> None:
    assert visible("a\x00\ud800\u202e\u200b\r\nb\tc") == "a␀\\ud800\\u202e\\u200b\nb\tc"
    assert visible("\x7f\x85") == "\\u007f\\u0085" and visible("👩\u200d💻 ن\u200cم") == "👩\u200d💻 ن\u200cم"
    one = excerpt([("user", "p" * 5000), ("assistant", "r" * 10)], 4000)
    assert (len(one.prompt), one.prompt_chars, one.response, one.response_chars) == (2000, 5000, "r" * 10, 10)
    several = excerpt([("system", "s"), ("user", "u"), ("assistant", "a")], 100)
    assert (several.prompt, several.response) == ("system: s\n\nuser: u", "a")
    assert excerpt([("user", "u")], 100) == Excerpt("u", "", 1, 0)
    half = shortened(Excerpt("p" * 90, "r" * 90, 90, 90), 100)
    assert (len(half.prompt), len(half.response)) == (50, 50)
    long_answer = shortened(Excerpt("p" * 10, "r" * 90, 10, 90), 60)
    assert (len(long_answer.prompt), len(long_answer.response)) == (10, 50)


def test_the_allowance_fills_the_budget_and_no_more() -> None:
    lengths = np.random.default_rng(0).integers(0, 5000, 1000)
    for total in (20_000, 100_000, 1_000_000):
        most = allowance(lengths, total)
        assert np.minimum(lengths, most).sum() <= total < np.minimum(lengths, most + 1).sum()
    assert allowance(np.array([5, 6]), 100) == 2 * PART_CHARACTERS


def test_embedded_data_cannot_end_its_element() -> None:
    value = {"text": SCRIPT + "\u2028&<!--"}
    small = str(embedded("x", value))
    assert small.count("</script>") == 1 and "\u2028" not in small and "<!--" not in small
    assert _Page(small).data["x"] and json.loads(_Page(small).data["x"]) == value
    large = {"text": [SCRIPT] * 20_000}
    packed = _Page(str(embedded("x", large)))
    assert json.loads(gzip.decompress(base64.b64decode(packed.data["x"]))) == large
    assert str(embedded("x", large)) == str(embedded("x", large))


def test_a_hundred_thousand_rows_of_the_worst_text_stay_below_15_megabytes() -> None:
    generator = np.random.default_rng(0)
    rows, each = 100_000, TEXT_BYTES // 3 // 100_000
    # Han characters at random: three bytes each, and next to nothing for gzip to find.
    letters = generator.integers(0x4E00, 0x9FFF, (rows, each), dtype=np.uint32)
    texts = letters.view(f"<U{each}").ravel().tolist()
    value = {
        "id": [f"{x:016x}" for x in generator.integers(0, 1 << 62, rows).tolist()],
        "text": texts,
        "score": rounded(generator.random(rows).astype(np.float32)),
        "nearest": generator.integers(0, 500, 3 * rows).tolist(),
        "similarity": rounded(np.round(generator.random(3 * rows), 4)),
    }
    assert len(str(embedded("x", value))) < 14_500_000


def test_numbers_are_said_plainly() -> None:
    said = [number(x) for x in (0, 12, 1234567, 0.12345, 1.5, 123.4, 0.00001234, float("nan"), None)]
    assert said == ["0", "12", "1,234,567", "0.123", "1.5", "123", "1.23e-05", "–", "–"]
    assert [percent(x) for x in (0, 0.0004, 0.034, 0.5, 1)] == ["0 %", "< 0.1 %", "3.4 %", "50 %", "100 %"]
    assert rounded(np.array([0.1, np.nan], np.float32)) == [0.1, None]
    assert [nice_step(x) for x in (1, 10, 37, 0.4)] == [0.2, 2, 10, 0.1]
    assert [budget_words(x) for x in ("500", "5pct", "200000tok")] == ["500 rows", "5pct", "200,000 tokens"]


@pytest.mark.parametrize("width", [1280, 390])
def test_a_browser_lists_the_rows_within_the_width(width: int, made: Path, tmp_path: Path) -> None:
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium here")
    text = (made / "report.html").read_text(encoding="utf-8")
    # A frame of the width asked for: windows of a headless browser cannot be narrower than 500.
    text = re.sub(r"<meta http-equiv[^>]*>", "", text, count=1)
    wide = "document.documentElement.scrollWidth-document.documentElement.clientWidth"
    probe = f"<script>setTimeout(()=>parent.postMessage({wide},'*'),1500)</script>"
    (tmp_path / "page.html").write_text(text.replace("</body>", probe + "</body>"), encoding="utf-8")
    (tmp_path / "frame.html").write_text(
        f"<!DOCTYPE html><iframe src=page.html width={width} height=900></iframe><script>onmessage=(e)=>"
        "{document.body.dataset.beyond=e.data}</script>"
    )
    profile = f"--user-data-dir={tmp_path / 'profile'}"
    for name, expected in (
        ("frame.html", 'data-beyond="0"'),
        (str(made / "report.html"), 'data-ready="yes"'),
    ):
        done = subprocess.run(
            [browser, *FLAGS, profile, "--dump-dom", (tmp_path / name).as_uri()],
            capture_output=True,
            timeout=120,
            check=False,
        )
        assert expected in done.stdout.decode(), name
