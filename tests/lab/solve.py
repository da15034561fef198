"""A second opinion on what the right answer is, read from the text of the question alone."""

from __future__ import annotations

import json
import re
from datetime import date, timedelta
from itertools import pairwise

DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
MONTHS = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
]
ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
SMALLER_IN_LARGER = {
    "metres in kilometres": 1000,
    "centimetres in metres": 100,
    "millimetres in centimetres": 10,
    "grams in kilograms": 1000,
    "millilitres in litres": 1000,
    "minutes in hours": 60,
    "seconds in minutes": 60,
    "inches in feet": 12,
}


def numbers(text: str) -> list[int]:
    """The whole numbers of a text, in order."""
    return [int(digits) for digits in re.findall(r"\d+", text)]


def items(text: str) -> list[str]:
    """The longest run of words or numbers with commas between them."""
    return max(re.findall(r"\w+(?:, \w+)+", text), key=len).split(", ")


def is_right(skill: str, prompt: str, answer: str) -> bool:
    """Whether `answer` answers `prompt`; only for the skills in SOLVERS."""
    return SOLVERS[skill](prompt, answer)


def _arithmetic(prompt: str, answer: str) -> bool:
    a, b = numbers(prompt)
    added = re.search(r"\+|plus|Add|add the|sum|gets|total", prompt)
    return numbers(answer)[-1:] == [a + b if added else abs(a - b)]


def _multiplication(prompt: str, answer: str) -> bool:
    a, b = numbers(prompt)
    return numbers(answer)[-1:] == [a * b]


def _sort_numbers(prompt: str, answer: str) -> bool:
    down = re.search("largest first|descending|high to low", prompt) is not None
    return numbers(answer) == sorted(numbers(prompt), reverse=down)


def _sort_words(prompt: str, answer: str) -> bool:
    return "," in answer and items(answer) == sorted(items(prompt))


def _counting(prompt: str, answer: str) -> bool:
    if letters := re.search(r"letters (?:are in the word|of) (\w+)", prompt):
        return numbers(answer) == [len(letters[1])]
    if word := re.search(r"(?:the word|often is) (\w+)", prompt):
        return numbers(answer) == [items(prompt).count(word[1])]
    return numbers(answer) == [len(items(prompt))]


def _sequences(prompt: str, answer: str) -> bool:
    shown = items(prompt)
    said = answer.removeprefix("Next is ").rstrip(".")
    if not shown[0].isdigit():
        period = next(p for p in (2, 3) if shown[p:] == shown[:-p])
        return said == shown[len(shown) - period]
    terms = [int(term) for term in shown]
    step = terms[1] - terms[0]
    if all(b - a == step for a, b in pairwise(terms)):
        return said == str(terms[-1] + step)
    return said == str(terms[-1] * 2)


def _comparison(prompt: str, answer: str) -> bool:
    a, b = numbers(prompt)
    if re.search("[Ww]hich", prompt):
        return numbers(answer) == [max(a, b)]
    true = a < b if re.search("less|smaller", prompt) else a > b
    return answer == f"{'yes' if true else 'no'}, {min(a, b)} < {max(a, b)}"


def _alphabet(prompt: str, answer: str) -> bool:
    if move := re.search(
        r"(\d+) places? (forward|after|back|before)(?: in the alphabet from)? ([A-Z])", prompt
    ):
        sign = 1 if move[2] in ("forward", "after") else -1
        return answer == ALPHABET[ALPHABET.index(move[3]) + sign * int(move[1])]
    if place := numbers(prompt):
        return answer == ALPHABET[place[0] - 1]
    letter = re.search(r"\b(?:of|letter) ([A-Z])\b", prompt)
    return letter is not None and numbers(answer) == [ALPHABET.index(letter[1]) + 1]


def _dates(prompt: str, answer: str) -> bool:
    n = numbers(prompt)
    if start := re.search(rf"(?:after|date) (\d+) ({'|'.join(MONTHS)})", prompt):
        day = date(2023, 1 + MONTHS.index(start[2]), n[1]) + timedelta(n[0])
        return answer == f"Calendar: {day.day} {MONTHS[day.month - 1]}"
    if len(n) == 2:
        return numbers(answer) == [n[1] - n[0]]
    if day := next((day for day in DAYS if day in prompt), None):
        return re.findall("|".join(DAYS), answer) == [DAYS[(DAYS.index(day) + n[0]) % 7]]
    month = MONTHS.index(next(month for month in MONTHS if month in prompt))
    return re.findall("|".join(MONTHS), answer) == [
        MONTHS[(month + (-n[0] if "ago" in prompt else n[0])) % 12]
    ]


def _units(prompt: str, answer: str) -> bool:
    (n,) = numbers(prompt)
    words = re.findall(r"\w+", prompt)
    (factor,) = (f for pair, f in SMALLER_IN_LARGER.items() if all(w in words for w in pair.split(" in ")))
    return numbers(answer)[-1:] == [n * factor]


def _json(prompt: str, answer: str) -> bool:
    if "{" not in prompt:
        plain = prompt.split("JSON: ")[1].split(".")[0]
        fields = dict(field.split(" ") for field in plain.split(", "))
        try:
            return {key: str(value) for key, value in json.loads(answer).items()} == fields
        except ValueError:
            return False
    record = json.loads(prompt[prompt.index("{") : prompt.index("}") + 1])
    if re.search("keys|[Ww]hich fields", prompt):
        return answer == ", ".join(record)
    rest = prompt[: prompt.index("{")] + prompt[prompt.index("}") :]
    (key,) = (key for key in record if re.search(rf"\b{key}\b", rest))
    return answer == str(record[key])


SOLVERS = {
    "arithmetic": _arithmetic,
    "multiplication": _multiplication,
    "sort-numbers": _sort_numbers,
    "sort-words": _sort_words,
    "counting": _counting,
    "sequences": _sequences,
    "comparison": _comparison,
    "alphabet": _alphabet,
    "dates": _dates,
    "units": _units,
    "json": _json,
}
