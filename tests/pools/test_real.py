"""Real files: every pool, query set and malformed file gives what is documented of it."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from tamis.core.errors import PoolError, RequestError
from tamis.pools.pool import Pool
from tamis.pools.read import read_pool
from tests.conftest import ROOT, shared
from tests.pools.rows import turns

MAP = ROOT / "examples" / "maps" / "shared-pool.yaml"
NEED_A_MAP = {
    "commonsenseqa_train", "foundry_finetune_example", "gorilla_torchhub_train", "mawps_train",
    "self_instruct_seed_tasks", "tydiqa_train_ko", "tydiqa_train_sw",
}  # fmt: skip
REPEATED = {
    "alpaca_gpt4_en_1k": 14, "alpaca_gpt4_zh_1k": 8, "alpagasus_dolly_3k": 2, "arc_challenge_train": 1,
    "dpo_en": 5, "dpo_zh": 11, "fireact_messages": 1, "flan_cot_strategyqa": 1,
    "glaive_toolcall_en": 38, "glaive_toolcall_zh": 43, "lawyer_llama_judicial_exam": 1, "lf_v1_sft": 1,
    "medalpaca_meadow_small": 92, "oasst_sft_zh": 5, "t0_train_subset": 210, "tydiqa_train_sw": 9,
}  # fmt: skip
"""Rows of a file that repeat an earlier one; without MAWPS, where the equation is part of the answer."""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store")


@pytest.fixture(scope="module")
def pool(store: Path) -> Pool:
    return read_pool(str(shared("data/pool") / "*.jsonl.gz"), map=MAP, store=store)


def _stem(path: str) -> str:
    return Path(path).name.split(".")[0]


def test_every_row_of_every_file_is_read(pool: Pool) -> None:
    with open(shared("data/pool_meta/sources.csv"), newline="", encoding="utf-8") as file:
        expected = {_stem(row["file"]): int(row["rows"]) for row in csv.DictReader(file)}
    assert {_stem(report.path): report.rows for report in pool.files} == expected
    assert sum(expected.values()) == 86_115 and len(expected) == 38
    assert not any(report.bad_rows for report in pool.files)
    assert pool.counts.sum() == 86_115
    empty = {_stem(report.path): report.notes.get("an empty answer", 0) for report in pool.files}
    assert {name: count for name, count in empty.items() if count} == {
        "alpaca_random_9k": 4,
        "codealpaca_2k": 2,
    }


def test_without_the_map_the_files_that_need_one_are_named_at_once(store: Path) -> None:
    with pytest.raises(RequestError) as caught:
        read_pool(str(shared("data/pool") / "*.jsonl.gz"), store=store)
    lines = str(caught.value).splitlines()
    assert {_stem(line.split(":")[0]) for line in lines[1:]} == NEED_A_MAP
    assert all("keys are" in line and "--map" in line for line in lines[1:])


@pytest.mark.parametrize("name", REPEATED)
def test_repeated_rows_within_a_file(name: str, store: Path) -> None:
    report = read_pool(shared(f"data/pool/{name}.jsonl.gz"), map=MAP, store=store).files[0]
    assert report.duplicate_rows == REPEATED[name]


def _file(pool: Pool, name: str) -> int:
    """Position of the first row of a file, of which no row is merged into another."""
    return int(np.flatnonzero(pool.source_codes == pool.source_names.index(name))[0])


def test_irregular_rows(pool: Pool) -> None:
    notes = {_stem(report.path): report.notes for report in pool.files}
    assert notes["fireact_messages"] == {
        "begins with the assistant": 2, "ends with the user": 2063, "one role twice in a row": 5
    }  # fmt: skip
    assert notes["oasst_rm_zh"]["of several outputs the first is read"] == 775
    assert notes["glaive_toolcall_en"] == {"tools are not rendered": 300}
    found = pool.row(_file(pool, "lawyer_llama_judicial_exam"))
    assert found.original.startswith(b'[{"input"') and [turn.role for turn in found.messages] == [
        "user",
        "assistant",
    ]
    gsm8k = _file(pool, "gsm8k_train")
    assert "\u2028" in pool.row(gsm8k + 2381).messages[0].content and pool.row(gsm8k + 2381).line == 2382
    odd = pool.row(_file(pool, "gpteacher_toolformer") + 4069)
    assert b"example_input" in odd.original and odd.line == 4070
    assert any("\u0085" in turn.content for row in pool.iter_rows(*_span(pool, "t0_train_subset"))
               for turn in row.messages)  # fmt: skip
    roles = {turn.role for row in pool.iter_rows(*_span(pool, "glaive_toolcall_en")) for turn in row.messages}
    assert roles == {"user", "assistant", "tool"}
    aqua = pool.row(_file(pool, "flan_cot_aqua"))
    assert "\\n" not in aqua.messages[0].content and aqua.messages[1].content.endswith("\nThe answer is (C).")
    first = pool.row(_file(pool, "commonsenseqa_train"))
    assert first.messages[1].content == "A. ignore"
    reasoned = pool.row(_file(pool, "lf_reason_tool_use"))
    assert reasoned.messages[2].content.startswith("<think>\nOkay")
    assert pool.row(_file(pool, "medalpaca_meadow_small")).messages[0].content == (
        "Answer this question truthfully\nWhat are the symptoms of Allergy?"
    )
    # one file names its rows' source itself
    assert "moss" in pool.source_names and "firefly_dummy" not in pool.source_names


def _span(pool: Pool, name: str) -> tuple[int, int]:
    rows = np.flatnonzero(pool.source_codes == pool.source_names.index(name))
    return int(rows[0]), int(rows[-1]) + 1


@pytest.mark.parametrize(
    ("verbatim", "name", "rows"),
    [
        ("gpteacher_roleplay.yaml.gz", "gpteacher_roleplay", 1923),
        ("identity.json", "lf_identity", 91),
        ("torchhub_train.json.gz", "gorilla_torchhub_train", 837),
    ],
)
def test_files_in_the_container_of_their_source_hold_the_same_rows(
    verbatim: str, name: str, rows: int, store: Path
) -> None:
    one = read_pool(shared(f"data/pool_verbatim/{verbatim}"), map=MAP, store=store)
    other = read_pool(shared(f"data/pool/{name}.jsonl.gz"), map=MAP, store=store)
    assert one.files[0].rows == rows and turns(one) == turns(other)
    assert [json.loads(row) for row in one.originals(range(20))] == [
        json.loads(row) for row in other.originals(range(20))
    ]


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("mmlu_aux_law_90s.csv", 1115),
        ("mmlu_aux_science_elementary.csv", 617),
        ("flan_cot_ecqa_train.tsv.gz", 7112),
        ("opengpt_nhs_prepared.csv", 306),
    ],
)
def test_tables_of_their_source(name: str, rows: int, store: Path) -> None:
    pool = read_pool(shared(f"data/pool_verbatim/{name}"), map=MAP, store=store)
    assert (pool.files[0].rows, pool.files[0].bad_rows) == (rows, 0)
    assert not any(
        "<|" in turn.content or "\\n" in turn.content for row in pool.conversations(0, 50) for turn in row
    )


@pytest.mark.parametrize(
    ("pattern", "rows"),
    [
        ("gsm8k/exemplars_8shot.jsonl", 8),
        ("gsm8k/test.jsonl", 1319),
        ("humaneval/HumanEval.jsonl.gz", 164),
        ("bbh/query_81.jsonl", 81),
        ("bbh/bbh/*.json", 6511),
        ("tydiqa/*.json.gz", 5077),
        ("squad/*.json.gz", 4760),
        ("multiple_choice/*.jsonl", 9107),
        ("mmlu/dev/*.csv", 285),
        ("mmlu/val/*.csv", 1531),
        ("mmlu/test/*.csv", 14_042),
        ("mmlu/test/management_test.csv", 103),
        ("mmlu/test/sociology_test.csv", 201),
        ("mmlu_pro/test.jsonl.gz", 12_032),
        ("truthfulqa/TruthfulQA.csv", 817),
    ],
)
def test_query_and_test_sets_keep_every_row(pattern: str, rows: int, store: Path) -> None:
    pool = read_pool(str(shared("data/targets") / pattern), map=MAP, store=store, merge_duplicates=False)
    assert len(pool) == rows and not any(report.bad_rows for report in pool.files)
    assert {row[-1].role for row in pool.conversations(0, 300)} == {"assistant"}


def test_queries_read_as_the_target_does(store: Path) -> None:
    targets = shared("data/targets")
    gsm8k = read_pool(targets / "gsm8k" / "exemplars_8shot.jsonl", map=MAP, store=store)
    assert gsm8k.row(0).messages[1].content.endswith("So the answer is 6. The answer is 6.")
    bbh = read_pool(targets / "bbh" / "query_81.jsonl", map=MAP, store=store, merge_duplicates=False)
    assert len(bbh.source_names) == 27 and np.bincount(bbh.source_codes).tolist() == [3] * 27
    korean = read_pool(targets / "tydiqa" / "korean_tydiqa_dev.json.gz", map=MAP, store=store)
    assert all("\n\n" in row[0].content for row in korean.conversations(0, 20))


def test_malformed_files(store: Path) -> None:
    for name, reason in [
        ("lima_lfs_pointer.json", "Git LFS pointer"),
        ("dummy_conversation_conflict.json.gz", "merge-conflict"),
        ("alpaca_data_en_52k.json.REMOVED.git-id", "rewritten history"),
    ]:
        with pytest.raises(PoolError, match=reason):
            read_pool(shared(f"data/malformed/{name}"), store=store, skip_bad_rows=True)
    assert len(read_pool(shared("data/malformed/trec_fine_grained_ABBR.jsonl"), store=store)) == 0
    with pytest.raises(RequestError, match="a folder"):
        read_pool(shared("data/malformed"), store=store)
    with pytest.raises(RequestError, match="conversations"):
        read_pool(shared("data/targets/open_ended/lima_300.jsonl"), store=store)
