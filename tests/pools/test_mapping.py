"""Maps by hand, their faults, and what the sandbox keeps out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tamis.core.errors import PoolError, RequestError
from tamis.pools.map_file import read_map
from tamis.pools.mapping import Rule
from tamis.pools.read import read_pool
from tamis.pools.shapes import BadRow
from tests.pools.rows import ALPACA, lines, put, turns

QUIZ = {
    "id": 7,
    "question": {
        "stem": "Which?",
        "choices": [{"label": "A", "text": "this"}, {"label": "B", "text": "that"}],
    },
    "key": "B",
    "My Task": "quiz",
}
QUIZ_RULE = {
    "source": "{{ row['My Task'] }}",
    "turns": [
        {"role": "human", "content": "{{ question.stem }}{% for c in question.choices %}"
                                     "\n{{ c.label }}. {{ c.text }}{% endfor %}"},
        {"role": "assistant", "content": "{{ (question.choices"
                                         " | selectattr('label', 'equalto', key) | first).text }}"},
    ],
}  # fmt: skip
SQUAD = {
    "title": "t",
    "paragraphs": [
        {"context": "c1", "qas": [{"question": "q1", "answers": [{"text": "a1"}]},
                                  {"question": "q2", "answers": [{"text": "a2"}]}]},
        {"context": "c2", "qas": [{"question": "q3", "answers": [{"text": "a3"}]}]},
    ],
}  # fmt: skip
SQUAD_RULE = {
    "each": ["paragraphs", "qas"],
    "turns": [
        {"role": "user", "content": "{{ title }}/{{ context }}/{{ question }}"},
        {"role": "assistant", "content": "{{ answers[0].text }}"},
    ],
}


def _map(path: Path, *entries: dict[str, Any]) -> Path:
    return put(path, yaml.safe_dump(list(entries)).encode())


def test_templates_by_hand(tmp_path: Path) -> None:
    quiz = put(tmp_path / "data" / "quiz.jsonl", lines([QUIZ]))
    alpaca = put(tmp_path / "data" / "other.jsonl", lines(ALPACA[:1]))
    pool = read_pool(
        [quiz, alpaca],
        map=_map(tmp_path / "m.yaml", {"match": "data/q*.jsonl", **QUIZ_RULE}),
        store=tmp_path / "s",
    )
    assert turns(pool)[0] == [("user", "Which?\nA. this\nB. that"), ("assistant", "that")]
    assert pool.sources.tolist() == ["quiz", "other"]
    assert [report.shape for report in pool.files] == ["map", "alpaca"]


def test_one_row_to_many_and_back(tmp_path: Path) -> None:
    rule = _map(tmp_path / "m.yaml", {"match": "*.jsonl", **SQUAD_RULE})
    path = put(tmp_path / "a.jsonl", lines([SQUAD]))
    pool = read_pool(path, map=rule, store=tmp_path / "s")
    assert turns(pool) == [
        [("user", "t/c1/q1"), ("assistant", "a1")],
        [("user", "t/c1/q2"), ("assistant", "a2")],
        [("user", "t/c2/q3"), ("assistant", "a3")],
    ]
    assert pool.files[0].rows == 3
    narrowed = put(tmp_path / "b.jsonl", b"\n".join(pool.originals([2, 0])))
    again = read_pool(narrowed, map=rule, store=tmp_path / "s")
    assert (
        again.ids.tolist() == pool.ids[[2, 0]].tolist()
    )  # an original gives its own row, not its neighbours
    whole = put(tmp_path / "c.jsonl", json.dumps({"version": 1, "data": [SQUAD]}).encode())
    assert read_pool(whole, map=rule, store=tmp_path / "s").ids.tolist() == pool.ids.tolist()


def test_a_row_alone_in_its_file_is_a_row(tmp_path: Path) -> None:
    rule = _map(tmp_path / "m.yaml", {"match": "*.jsonl", **SQUAD_RULE})
    pool = read_pool(
        put(tmp_path / "a.jsonl", json.dumps(SQUAD, indent=1).encode()), map=rule, store=tmp_path / "s"
    )
    assert len(pool) == 3


def test_items_that_are_no_objects_and_lists_that_are_empty(tmp_path: Path) -> None:
    rule = {"each": "words", "turns": [{"role": "user", "content": "{{ item }}"}]}
    assert [made[0] for made in Rule(rule).rows({"words": ["a", "b"]})] == [["user", "a"], ["user", "b"]]
    path = put(tmp_path / "a.jsonl", lines([{"words": []}, {"words": "a"}, {}]))
    with pytest.raises(PoolError, match="finds no words") as caught:
        read_pool(path, map=_map(tmp_path / "m.yaml", {"match": "*", **rule}), store=tmp_path / "s")
    assert "words is text, expected a list" in str(caught.value) and "no field words" in str(caught.value)


def test_field_maps_rename(tmp_path: Path) -> None:
    rows = [{"q": "ask", "a": "say", "instruction": "not this", "source": "own"}]
    path = put(tmp_path / "a.jsonl", lines(rows))
    for given in ("instruction=q,output=a", {"instruction": "q", "output": "a"}):
        pool = read_pool(path, map=given, store=tmp_path / "s")
        assert turns(pool) == [[("user", "ask"), ("assistant", "say")]] and pool.sources.tolist() == ["own"]
    other = put(tmp_path / "b.jsonl", lines(ALPACA))
    assert len(read_pool([path, other], map="instruction=q,output=a", store=tmp_path / "s")) == 5
    with pytest.raises(RequestError, match="no file has all of these columns"):
        read_pool(other, map="instruction=q,output=a", store=tmp_path / "s")
    mixed = put(tmp_path / "c.jsonl", lines([rows[0], ALPACA[0]]))
    with pytest.raises(PoolError, match=r"c\.jsonl:2: no field q"):
        read_pool(mixed, map="instruction=q,output=a", store=tmp_path / "s")


def test_other_ways_to_turns() -> None:
    tokens = {"column": "t", "roles": {"<u>": "user", "<a>": "assistant"}, "drop": ["<e>"]}
    rule = Rule({"tokens": tokens})
    row = {"t": "<u> q <e> <a> a <e> <u>r<a>b<e>"}
    assert rule.rows(row)[0][0] == ["user", "q", "assistant", "a", "user", "r", "assistant", "b"]
    with pytest.raises(BadRow, match="does not begin"):
        rule.rows({"t": "x <u> q"})
    rule = Rule({"messages_from": "m"})
    chat = [{"role": "user", "content": "q"}]
    assert rule.rows({"m": chat})[0][0] == rule.rows({"m": json.dumps(chat)})[0][0] == ["user", "q"]
    with pytest.raises(BadRow, match="not JSON"):
        rule.rows({"m": "["})


def test_cells_without_header(tmp_path: Path) -> None:
    put(tmp_path / "a.csv", b'"q;1",x,A\n"q\n2",y,B')
    put(tmp_path / "b.tsv", b'say "hi"\t"no\nq2\ta2\n')
    entries = [
        {
            "match": "*.csv",
            "columns": ["q", "x", "a"],
            "header": False,
            "fields": {"question": "q", "answer": "a"},
        },
        {
            "match": "*.tsv",
            "columns": ["question", "answer"],
            "header": False,
            "quoted": False,
            "delimiter": "\t",
        },
    ]
    pool = read_pool(
        [tmp_path / "a.csv", tmp_path / "b.tsv"],
        map=_map(tmp_path / "m.yaml", *entries),
        store=tmp_path / "s",
    )
    assert [[text for _, text in row] for row in turns(pool)] == [
        ["q;1", "A"], ["q\n2", "B"], ['say "hi"', '"no'], ["q2", "a2"]
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("entry", "fault"),
    [
        ({"turns": [{"role": "user", "content": "x"}]}, "[0] has no match"),
        ({"match": "*", "tunrs": []}, "did you mean 'turns'"),
        ({"match": "*", "turns": [{"role": "bard", "content": "x"}]}, "[0].turns[0].role"),
        ({"match": "*", "turns": [{"role": "user"}]}, "[0].turns[0] must have role and content"),
        ({"match": "*", "turns": [{"role": "user", "content": 3}]}, "[0].turns[0].content is a number"),
        ({"match": "*", "turns": [{"role": "user", "content": "{{ x"}]}, "[0].turns[0].content"),
        ({"match": "*", "turns": []}, "[0].turns"),
        ({"match": "*", "turns": [{"role": "user", "content": "x"}], "fields": {}}, "one of them is enough"),
        ({"match": "*", "fields": {"question": "q"}}, "makes no conversation"),
        ({"match": "*", "fields": {"qestion": "q", "answer": "a"}}, "did you mean 'question'"),
        ({"match": "*", "header": False}, "[0].header is false"),
        ({"match": "*", "delimiter": "||", "columns": ["a"]}, "one character"),
        ({"match": "*", "each": [3]}, "[0].each"),
        ({"match": "*", "tokens": {"column": "t", "roles": {"<u>": "bard"}}}, "[0].tokens.roles.<u>"),
        ({"match": "*", "tokens": {"column": "t"}}, "[0].tokens.roles"),
        ({"match": "*", "source": "{% if %}"}, "[0].source"),
        ("text", "[0] is text"),
    ],
)
def test_faults_of_a_mapping_file_are_named_by_key_path(entry: Any, fault: str, tmp_path: Path) -> None:
    with pytest.raises(RequestError) as caught:
        read_map(_map(tmp_path / "m.yaml", entry))
    assert fault in str(caught.value) and str(tmp_path / "m.yaml") in str(caught.value)


def test_all_faults_come_at_once_and_files_that_are_no_map_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError) as caught:
        read_map(_map(tmp_path / "m.yaml", {"match": "*", "bad": 1}, {"worse": 2}))
    assert "[0].unknown key 'bad'" in str(caught.value) and "[1] has no match" in str(caught.value)
    for content, reason in (
        (b"{a: 1}", "a list of entries"),
        (b"[", "not a mapping file"),
        (b"\xff", "not a mapping"),
    ):
        with pytest.raises(RequestError, match=reason):
            read_map(put(tmp_path / "n.yaml", content))
    for given, reason in (
        (tmp_path / "none", "no such mapping file"),
        ("instruction=", "expected field=column"),
        ("instruction=q,outptu=a", "did you mean 'output'"),
        ({"instruction": 3, "output": "a"}, "a number"),
    ):
        with pytest.raises(RequestError, match=reason):
            read_map(given)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__ }}",
        "{{ text.__class__.__mro__[1].__subclasses__() }}",
        "{{ text['__class__'] }}",
        "{{ text|attr('__class__') }}",
        "{{ row.__init__ }}",
        "{{ self }}",
        "{{ self.__init__.__globals__ }}",
        "{{ lipsum.__globals__ }}",
        "{{ cycler }}",
        "{{ range(3) }}",
        "{% for i in range(1000000000) %}{% endfor %}",
        "{{ text * 1000000000 }}",
        "{{ 10 ** 10 ** 10 }}",
        "{{ '%1000000000d' % 1 }}",
        "{{ '{:1000000000}'.format(1) }}",
        "{{ '%1000000000d'|format(1) }}",
        "{{ text.center(1000000000) }}",
        "{{ text|center(1000000000) }}",
        "{{ text|indent(1000000000) }}",
        "{{ text|replace('', text) }}",
        "{{ text.encode() }}",
        "{{ items.append(1) }}",
        "{% set x = text %}{{ x }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{% include 'x' %}",
        "{% import 'os' as os %}{{ os }}",
        "{% for a in items %}{% for b in items %}{% for c in items %}x{% endfor %}{% endfor %}{% endfor %}",
        "{{ missing }}",
        "{{ nothing }}",
        "{{ items }}",
        "{{ flag }}",
        "{{ text.missing }}",
        "{{ 1 / 0 }}",
    ],
)
def test_the_sandbox_and_what_is_no_text(template: str, tmp_path: Path) -> None:
    row = {"text": "hello", "items": ["a"], "nothing": None, "flag": True}
    rule = _map(tmp_path / "m.yaml", {"match": "*", "turns": [{"role": "user", "content": template}]})
    with pytest.raises((RequestError, PoolError)):
        read_pool(put(tmp_path / "a.jsonl", lines([row])), map=rule, store=tmp_path / "s")
