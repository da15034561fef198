"""Rows of one file → turns in a shard: a quick way for the commonest rows, a careful one for all others."""

from __future__ import annotations

import re
from collections.abc import Iterator
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

import orjson

from tamis.pools._fast import FAST
from tamis.pools.identity import row_id, text_id
from tamis.pools.inputs import Input, parse, source_of, unwrapped
from tamis.pools.mapping import Rule
from tamis.pools.shapes import SHAPES, BadRow, Turns, shape_of_keys

if TYPE_CHECKING:
    from tamis.pools.ingest import Shard, Tally

_KEY_SETS = 4096
_BREAKS = re.compile(rb"[ \t\r\n]*\n[ \t\r\n]*")


class Converter:
    """Converts the rows of one file; `fast` leaves every row with a surprise to `careful`."""

    def __init__(self, shard: Shard, number: int, file: Input, tally: Tally) -> None:
        self.shard, self.number, self.file, self.tally = shard, number, file, tally
        rule = Rule(file.rule or {})
        self.rule = rule if rule.converts else None
        self.known: dict[tuple[str, ...], list[Any]] = {}

    def fast(self, line: int, raws: list[bytes]) -> None:
        """JSON lines without a rule. What is not as expected goes to `careful`, which comes to the same."""
        shard, known, loads, dumps = self.shard, self.known, orjson.loads, orjson.dumps
        ids, flat, add_id, add_original = shard.ids, shard.flat, shard.ids.append, shard.originals.append
        add_turns, add_line, add_source = shard.turns.append, shard.lines.append, shard.sources.append
        own = shard.names.setdefault(self.file.stem, len(shard.names))
        for at, raw in enumerate(raws, line):
            try:
                row = loads(raw)
                entry = known[tuple(row)]
                turns = entry[0](row)
                clean = [text.strip() for text in turns]
                payload = dumps(clean)
            except (ValueError, KeyError, TypeError, AttributeError, BadRow):
                if raw.strip():
                    self.careful(at, raw, None)
                continue
            if clean != turns:
                shard.texts[len(ids)] = blake2b(dumps(turns), digest_size=16).digest()
            if "" in clean:
                self.note_blanks(clean)
            add_id(blake2b(payload, digest_size=16).digest())
            flat += turns
            add_turns(len(turns) >> 1)
            add_source(self._source(row) if entry[1] else own)
            add_line(at)
            add_original(raw)
            entry[2] += 1
        shard.files += [self.number] * (len(shard.ids) - len(shard.files))
        shard.bytes += sum(map(len, raws))

    def note_blanks(self, clean: Turns) -> None:
        """Count a row with an empty answer or an empty prompt; `clean` are its turns, stripped."""
        blank = {clean[i] for i in range(0, len(clean), 2) if not clean[i + 1]}
        for role, note in (("assistant", "an empty answer"), ("user", "an empty prompt")):
            if role in blank:
                self.tally.notes[note] += 1

    def _source(self, row: dict[str, Any]) -> int:
        names = self.shard.names
        return names.setdefault(source_of(row, self.file.stem), len(names))

    def careful(self, line: int, raw: bytes | None, value: Any) -> None:
        """Any row: parsed if that is due, converted, and added, or rejected with the reason."""
        shard = self.shard
        try:
            if isinstance(value, BadRow):
                raise value
            row = unwrapped(parse(raw) if value is None and raw is not None else value)
            original = self._original(raw, value, row)
            made = list(self._converted(row))
            hashed = [(_hashed(turns), turns, source, narrowed) for turns, source, narrowed in made]
        except BadRow as error:
            shown = raw if raw is not None else _as_json(value)
            shard.reject(self.file, self.tally, line, shown, str(error))
            return
        for (key, whole), turns, source, narrowed in hashed:
            if key != whole:
                shard.texts[len(shard.ids)] = whole
            self.note_blanks([text.strip() for text in turns])
            shard.ids.append(key)
            shard.flat += turns
            shard.turns.append(len(turns) // 2)
            shard.sources.append(shard.names.setdefault(source, len(shard.names)))
            shard.files.append(self.number)
            shard.lines.append(line)
            shard.originals.append(original if narrowed is None else narrowed)
            shard.bytes += len(original)
            self.tally.rows += 1

    def _original(self, raw: bytes | None, value: Any, row: dict[str, Any]) -> bytes:
        """The row as one JSON line: untouched when it is one, else without line breaks between its parts."""
        if raw is None or value is not None:
            return _as_json(row)
        return _BREAKS.sub(b" ", raw) if b"\n" in raw else raw

    def _converted(self, row: dict[str, Any]) -> Iterator[tuple[Turns, str, bytes | None]]:
        """(turns, source, original when it is not the whole row) of everything that a row gives."""
        if self.rule is not None:
            made = self.rule.rows(row)
            if not made:
                raise BadRow(f"the map finds no {' of '.join(reversed(self.rule.each))} in the row")
            self.tally.shapes["map"] += len(made)
            for turns, source, narrowed in made:
                yield turns, source or source_of(row, self.file.stem), narrowed
            return
        keys = tuple(row)
        shape = shape_of_keys(keys)
        if shape is None:
            raise BadRow(f"no known shape; its keys are {', '.join(map(str, keys)) or 'none'}")
        turns = SHAPES[shape](row)
        if len(self.known) < _KEY_SETS:
            self.known.setdefault(
                keys, [FAST.get(shape, SHAPES[shape]), "source" in row or "dataset" in row, 0]
            )
        self.tally.shapes[shape] += 1
        if "tools" in row:
            self.tally.notes["tools are not rendered"] += 1
        if shape == "alpaca" and type(row.get("output")) is list:
            self.tally.notes["of several outputs the first is read"] += 1
        yield turns, source_of(row, self.file.stem), None

    def close(self) -> None:
        """Count what the quick way has read."""
        for keys, (_, _, count) in self.known.items():
            if count:
                self.tally.rows += count
                self.tally.shapes[str(shape_of_keys(keys))] += count
                if "tools" in keys:
                    self.tally.notes["tools are not rendered"] += count


def _hashed(turns: Turns) -> tuple[bytes, bytes]:
    """(id, hash of the turns as they are)."""
    try:
        return row_id(turns), text_id(turns)
    except TypeError:
        raise BadRow("text with half of a surrogate pair, which UTF-8 cannot hold") from None


def _as_json(value: Any) -> bytes:
    """A row of a table as one JSON line; what JSON lacks (bytes, decimals, dates) becomes text."""
    try:
        return orjson.dumps(value, default=str, option=orjson.OPT_NON_STR_KEYS)
    except TypeError as error:
        raise BadRow(f"the row cannot be written as JSON: {error}") from error
