"""Chosen rows as ready folders for trainers: the rows, and the few lines that make the trainer read them.

    llamafactory   NAME.jsonl and dataset_info.json; train with `dataset_dir: FOLDER`, `dataset: NAME`
    axolotl        NAME.jsonl and datasets.yaml, the block for its configuration
    trl            NAME.jsonl and train.py, a snippet for its SFTTrainer

NAME is the folder's. Loss falls on assistant turns and their end, as in tamis. Schemas: LLaMA-Factory 0.9,
Axolotl 0.19, TRL 1.16.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import yaml

from tamis.core.errors import RequestError
from tamis.core.files import replacing
from tamis.pools.pool import Message, Pool

Rows = Callable[[Pool, np.ndarray, Callable[[list[Message]], dict[str, Any]], Path], None]

_LLAMAFACTORY_ROLES = {"system": "system", "user": "human", "assistant": "gpt", "tool": "observation"}

_TRL = '''"""Fine-tune on this subset with TRL. Set MODEL; run from anywhere."""

from pathlib import Path

from datasets import load_dataset
from trl import SFTConfig, SFTTrainer

MODEL = "PATH_OR_ID"

rows = load_dataset("json", data_files=str(Path(__file__).with_name({file!r})), split="train")
{shape}
config = SFTConfig(output_dir="trained", {loss}=True, max_length=2048, num_train_epochs=2)
SFTTrainer(model=MODEL, args=config, train_dataset=rows).train()
'''
_TRL_SINGLE = """# Every row has one answer, at its end: loss on it alone, with any chat template.
rows = rows.map(
    lambda row: {"prompt": row["messages"][:-1], "completion": row["messages"][-1:]},
    remove_columns=rows.column_names,
)"""
_TRL_SEVERAL = """# Some rows have several answers: loss on all assistant turns, which the template must mark
# with generation blocks. TRL knows those of common models; else set chat_template_path in SFTConfig.
rows = rows.select_columns(["messages"])"""


def write_llamafactory(pool: Pool, at: np.ndarray, folder: Path, write_rows: Rows) -> None:
    """Rows as ShareGPT turns and their entry of `dataset_info.json`."""
    name = _name(folder)
    entry = {
        "file_name": f"{name}.jsonl",
        "formatting": "sharegpt",
        "columns": {"messages": "conversations"},
        "tags": {
            "role_tag": "from",
            "content_tag": "value",
            "user_tag": "human",
            "assistant_tag": "gpt",
            "observation_tag": "observation",
            "function_tag": "function_call",
            "system_tag": "system",
        },
    }
    text = orjson.dumps({name: entry}, option=orjson.OPT_INDENT_2).decode() + "\n"
    _write(pool, at, folder, write_rows, _alternating, {"dataset_info.json": text})


def write_axolotl(pool: Pool, at: np.ndarray, folder: Path, write_rows: Rows) -> None:
    """Rows as messages and the `datasets:` block that reads them."""
    block = {
        "path": str(folder / f"{_name(folder)}.jsonl"),
        "ds_type": "json",
        "type": "chat_template",
        "field_messages": "messages",
        "message_property_mappings": {"role": "role", "content": "content"},
        "roles_to_train": ["assistant"],
        "train_on_eos": "turn",
    }
    text = yaml.safe_dump({"datasets": [block]}, sort_keys=False, allow_unicode=True)
    _write(pool, at, folder, write_rows, _messages, {"datasets.yaml": text})


def write_trl(pool: Pool, at: np.ndarray, folder: Path, write_rows: Rows) -> None:
    """Rows as messages and a script that trains on them."""
    single = all(_ends_with_its_answer(turns) for turns in pool.messages_at(at))
    text = _TRL.format(
        file=f"{_name(folder)}.jsonl",
        shape=_TRL_SINGLE if single else _TRL_SEVERAL,
        loss="completion_only_loss" if single else "assistant_only_loss",
    )
    _write(pool, at, folder, write_rows, _messages, {"train.py": text})


def _ends_with_its_answer(turns: list[Message]) -> bool:
    roles = [turn.role for turn in turns]
    return len(roles) > 1 and roles.index("assistant") == len(roles) - 1 if "assistant" in roles else False


def _messages(turns: list[Message]) -> dict[str, Any]:
    return {"messages": [turn._asdict() for turn in turns]}


def _alternating(turns: list[Message]) -> dict[str, Any]:
    """ShareGPT turns; LLaMA-Factory passes over rows whose turns do not alternate, so they are refused."""
    rest = turns[1:] if turns[0].role == "system" else turns
    asked, answered = {"user", "tool"}, {"assistant"}
    fits = all(turn.role in (answered if i % 2 else asked) for i, turn in enumerate(rest))
    if not rest or len(rest) % 2 or not fits:
        raise RequestError(
            f"turns of {', '.join(turn.role for turn in turns)}: LLaMA-Factory reads user (or tool) and "
            "assistant in turns, ending with assistant, and would pass over this row; leave it out or export "
            "to messages"
        )
    return {"conversations": [{"from": _LLAMAFACTORY_ROLES[t.role], "value": t.content} for t in turns]}


def _name(folder: Path) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", folder.name) or "subset"


def _write(
    pool: Pool,
    at: np.ndarray,
    folder: Path,
    write_rows: Rows,
    convert: Callable[[list[Message]], dict[str, Any]],
    also: Mapping[str, str],
) -> None:
    """The folder, whole or not at all."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RequestError(f"{folder}: exists already; name a new folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        made = Path(temporary) / "made"
        made.mkdir()
        write_rows(pool, at, convert, made / f"{_name(folder)}.jsonl")
        for name, text in also.items():
            with replacing(made / name) as path:
                path.write_text(text, encoding="utf-8")
        if folder.exists():
            folder.rmdir()
        shutil.move(str(made), folder)
