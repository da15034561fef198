"""Skills on things with a format: dates, units, JSON, Python."""

from __future__ import annotations

import json
from datetime import date, timedelta
from random import Random

from tamis.lab.question import Question, ask, listed, near, other
from tamis.lab.words import CITIES, MONTHS, NAMES, UNITS, WEEKDAYS, WORDS

_WEEKDAY = (
    ("Which day of the week is {n} days after {day}?", "Calendar: {r}"),
    ("Today is {day}. What day is it in {n} days?", "Calendar: {r}"),
    ("{name} leaves on {day} and comes back {n} days later. On which day?", "Calendar: {r}"),
)
_MONTH = (
    ("Which month is {n} months after {month}?", "Calendar: {r}"),
    ("It is {month} now. Which month was it {back} months ago?", "Calendar: {r}"),
)
_DATE = (
    ("What is the date {n} days after {day}?", "Calendar: {r}"),
    ("Add {n} days to the date {day}.", "Calendar: {r}"),
)
_BETWEEN = (
    ("How many days are there from {first} {month} to {last} {month}?", "Calendar: {r} days"),
    (
        "{name} travels from {first} {month} to {last} {month}. How many days is that?",
        "Calendar: {r} days",
    ),
)
_CONVERT = (
    ("Convert {n} {small} to {large}.", "That is {r} {large}."),
    ("How many {large} are in {n} {small}?", "That is {r} {large}."),
    ("What is {n} {small} in {large}?", "That is {r} {large}."),
    ("{name} measured {n} {small}. Write this in {large}.", "That is {r} {large}."),
)
_VALUE = (
    ("What is the value of {key} in this JSON? {record}", "{r}"),
    ("Read {record} and return the field {key}.", "{r}"),
    ('Find "{key}" in {record}', "{r}"),
)
_WRITE = (
    ("Write as JSON: {plain}", "{r}"),
    ("Turn this list of fields into JSON: {plain}", "{r}"),
)
_KEYS = (
    ("List the keys of {record}", "{r}"),
    ("Which fields are in this JSON? {record}", "{r}"),
)
_PRINT = (
    ("What does this Python code print? print({code})", "It prints {r}"),
    ("Give the value of the Python expression {code}", "It gives {r}"),
    ("What is the result of {code} in Python?", "It gives {r}"),
)
_DEFINE = (
    ("Write a Python function {f} that returns {text}.", "{r}"),
    ("Define {f} in Python. It returns {text}.", "{r}"),
)
_BODIES = (
    ("x plus {n}", "x + {n}"),
    ("x minus {n}", "x - {n}"),
    ("{n} times x", "{n} * x"),
    ("x squared plus {n}", "x ** 2 + {n}"),
    ("whether x is greater than {n}", "x > {n}"),
    ("whether x is divisible by {n}", "x % {n} == 0"),
    ("the first {n} items of x", "x[:{n}]"),
    ("the last {n} items of x", "x[-{n}:]"),
)


def dates(rng: Random) -> Question:
    """Days of the week, months, days of the year and spans within a month."""
    kind, name = rng.randrange(4), rng.choice(NAMES)
    if kind == 0:
        day, n = rng.randrange(7), rng.randrange(2, 9)
        right = WEEKDAYS[(day + n) % 7]
        return ask(rng, _WEEKDAY, right, other(rng, WEEKDAYS, right), n=n, day=WEEKDAYS[day], name=name)
    if kind == 1:
        month, n = rng.randrange(12), rng.randrange(2, 7)
        prompt, _ = form = rng.choice(_MONTH)
        right = MONTHS[(month + n) % 12]
        if "{back}" in prompt:
            right = MONTHS[(month - n) % 12]
        return ask(rng, (form,), right, other(rng, MONTHS, right), n=n, back=n, month=MONTHS[month])
    if kind == 2:
        n = rng.randrange(1, 8)
        # From no day of February: the year, and so the length of that month, is not told.
        start = date(2023, rng.choice((1, *range(3, 13))), 1 + rng.randrange(28))
        later, slip = _day(start + timedelta(n)), _day(start + timedelta(near(rng, n)))
        return ask(rng, _DATE, later, slip, n=n, day=_day(start))
    first = rng.randrange(1, 20)
    span = rng.randrange(2, 29 - first)
    slots = {"first": first, "last": first + span, "month": rng.choice(MONTHS), "name": name}
    return ask(rng, _BETWEEN, span, near(rng, span), **slots)


def _day(day: date) -> str:
    return f"{day.day} {MONTHS[day.month - 1]}"


def units(rng: Random) -> Question:
    """A whole number of one unit in a smaller one."""
    small, large, factor = rng.choice(UNITS)
    n = rng.randrange(2, 13)
    wrong = rng.choice([n * factor * 10, n * factor + factor, n * (factor + 2)])
    return ask(rng, _CONVERT, n * factor, wrong, n=n, small=small, large=large, name=rng.choice(NAMES))


def json_reading(rng: Random) -> Question:
    """A field of a small record, its keys, or the record written from fields."""
    record: dict[str, str | int] = {
        "name": rng.choice(NAMES),
        "age": rng.randrange(18, 80),
        "city": rng.choice(CITIES),
        "item": rng.choice(WORDS),
        "count": rng.randrange(80, 150),
    }
    keys = rng.sample(sorted(record), rng.randrange(3, 5))
    record = {key: record[key] for key in keys}
    text = json.dumps(record)
    kind = rng.randrange(4)
    if kind == 0:
        plain = listed([f"{key} {value}" for key, value in record.items()])
        swapped = dict(zip(keys, [*list(record.values())[1:], record[keys[0]]], strict=True))
        return ask(rng, _WRITE, text, json.dumps(swapped), plain=plain)
    if kind == 1:
        return ask(rng, _KEYS, listed(keys), listed(list(record.values())), record=text)
    key, confused = rng.sample(keys, 2)
    return ask(rng, _VALUE, record[key], record[confused], record=text, key=key)


def python(rng: Random) -> Question:
    """The value of a short expression, or, one time in seven, a one-line function."""
    kind = rng.randrange(7)
    if kind == 0:
        n, f = rng.randrange(2, 20), rng.choice(("f", "g", "check", "apply", "solve"))
        (text, body), (_, slip) = rng.sample(_BODIES, 2)
        right, wrong = (f"def {f}(x):\n    return {code.format(n=n)}" for code in (body, slip))
        return ask(rng, _DEFINE, right, wrong, f=f, text=text.format(n=n))
    code, result, miss = _comparing(rng) if kind < 4 else _indexing(rng)
    return ask(rng, _PRINT, result, miss, code=code)


def _comparing(rng: Random) -> tuple[str, object, object]:
    a, b = rng.sample(range(2, 60), 2)
    name = rng.choice(("max", "min", ">"))
    if name == ">":
        return f"{a} > {b}", a > b, a <= b
    largest = name == "max"
    return f"{name}({a}, {b})", max(a, b) if largest else min(a, b), min(a, b) if largest else max(a, b)


def _indexing(rng: Random) -> tuple[str, object, object]:
    word, n = rng.choice(WORDS), rng.randrange(2, 4)
    items = [rng.randrange(1, 30) for _ in range(rng.randrange(2, 6))]
    cases: tuple[tuple[str, object, object], ...] = (
        (f"'{word}'.upper()", word.upper(), word),
        (f"'{word}' * {n}", word * n, word * (n + 1)),
        (f"'{word}'[0]", word[0], word[1]),
        (f"len({items})", len(items), near(rng, len(items))),
        (f"{items}[0]", items[0], near(rng, items[0])),
        (f"{items}[-1]", items[-1], near(rng, items[-1])),
    )
    return rng.choice(cases)
