"""The skills of the laboratory, one function each: a generator of random numbers in, a `Question` out."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from tamis.lab.formats import dates, json_reading, python, units
from tamis.lab.numeric import arithmetic, comparison, counting, multiplication, sequences, sort_numbers
from tamis.lab.question import Question
from tamis.lab.verbal import alphabet, categories, opposites, past_tense, sort_words, string_edit

MAKERS: dict[str, Callable[[Random], Question]] = {
    "arithmetic": arithmetic,
    "multiplication": multiplication,
    "sort-numbers": sort_numbers,
    "sort-words": sort_words,
    "counting": counting,
    "sequences": sequences,
    "comparison": comparison,
    "string-edit": string_edit,
    "opposites": opposites,
    "categories": categories,
    "past-tense": past_tense,
    "alphabet": alphabet,
    "dates": dates,
    "units": units,
    "json": json_reading,
    "python": python,
}
SKILLS: tuple[str, ...] = tuple(MAKERS)
