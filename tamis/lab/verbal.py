"""Skills on words: sorting, string edits, opposites, categories, past tense, the alphabet."""

from __future__ import annotations

from random import Random

from tamis.lab.question import Question, ask, listed, misplaced, near, noun, other
from tamis.lab.words import (
    ADJECTIVE_PAIRS,
    CATEGORIES,
    LETTERS,
    MOMENTS,
    NAMES,
    OPPOSITES,
    PAST,
    SUBJECTS,
    WORDS,
)

_SORT = (
    ("Sort these words: {items}", "Sorted: {r}"),
    ("Put the words {items} in alphabetical order.", "{r}"),
    ("Arrange from A to Z: {items}", "Sorted: {r}"),
    ("{name} wrote down {items}. Write the list in alphabetical order.", "Sorted: {r}"),
    ("What is the sorted list of {items}?", "{r}"),
)
_EDITS = {
    "upper": (
        ("Write the word {word} in capitals.", "Edited: {r}"),
        ("Change the word {word} to uppercase.", "Edited: {r}"),
        ("What is {word} in capitals?", "Edited: {r}"),
    ),
    "reverse": (
        ("Write the word {word} backwards.", "Edited: {r}"),
        ("Reverse the word {word}.", "Edited: {r}"),
        ("What is {word} backwards?", "Edited: {r}"),
    ),
    "vowels": (
        ("Write the word {word} without its vowels.", "Edited: {r}"),
        ("Remove the vowels from the word {word}.", "Edited: {r}"),
        ("What is {word} without its vowels?", "Edited: {r}"),
    ),
    "double": (
        ("Write the word {word} twice.", "Edited: {r}"),
        ("Change {word} by writing the word twice.", "Edited: {r}"),
    ),
}
_OPPOSITE = (
    ("What is the opposite of {word}?", "{r}"),
    ("Give a word that means the opposite of {word}.", "{r}"),
    ("Which word is the contrary of {word}?", "The contrary of {word} is {r}."),
    ("Find the antonym: {word}", "{r}"),
    ("{name} says {word}. What is the opposite word?", "{r}"),
)
_OPPOSITE_IN_SENTENCE = (
    ("Replace the word {word} with its opposite: The {thing} is {word}.", "The {thing} is {r}."),
    ("Write the contrary of this: The {thing} of {name} is {word}.", "The {thing} of {name} is {r}."),
)
_CATEGORY = (
    ("What kind of thing is {a_word}?", "{r}."),
    ("Is {a_word} {a_first} or {a_second}?", "{r}."),
    ("Name the category of {word}.", "{r}."),
    ("To which group does {word} belong: {first} or {second}?", "{r}."),
)
_MEMBER = (
    ("Which word in this list is {a_kind}? {items}", "{r}."),
    ("Find the {kind}: {items}", "{r}."),
    ("{name} wrote {items}. Which of these is {a_kind}?", "{r}."),
)
_PAST_TENSE = (
    ("What is the past tense of {verb}?", "{r}"),
    ("Give the past form of the word {verb}.", "{r}"),
    ("Write the past tense: {verb}", "{r}"),
)
_PAST_SENTENCE = (
    ("Change this sentence to the past: {subject} {verb} {moment}.", "{subject} {r} {moment}."),
    ("Write in the past tense: {subject} {verb} {moment}.", "{subject} {r} {moment}."),
    ("Fill in the past form of {verb}: {subject} ... {moment}.", "{r}"),
)
_AFTER = (
    ("Which letter comes {n} after {letter}?", "{r}"),
    ("Go {n} forward in the alphabet from {letter}.", "{r}"),
)
_BEFORE = (
    ("Which letter comes {n} before {letter}?", "{r}"),
    ("Go {n} back in the alphabet from {letter}.", "{r}"),
)
_PLACE = (
    ("What is the position of {letter} in the alphabet?", "{r}"),
    ("{name} asks which number the letter {letter} has.", "The letter {letter} has number {r}."),
)
_LETTER_AT = (
    ("Which letter is number {n} in the alphabet?", "{r}"),
    ("What is letter {n} of the alphabet?", "{r}"),
)


def sort_words(rng: Random) -> Question:
    """Three or four different words in alphabetical order."""
    items = rng.sample(WORDS, rng.randrange(3, 5))
    right = sorted(items)
    wrong = listed(misplaced(rng, right))
    return ask(rng, _SORT, listed(right), wrong, items=listed(items), name=rng.choice(NAMES))


def edited(edit: str, word: str) -> str:
    """`word` after one of the string edits."""
    if edit == "upper":
        return word.upper()
    if edit == "reverse":
        return word[::-1]
    if edit == "vowels":
        return "".join(letter for letter in word if letter not in "aeiou")
    return f"{word}-{word}"


def string_edit(rng: Random) -> Question:
    """One word in capitals, backwards, without its vowels, or twice."""
    edit = rng.choice(("upper", "upper", "vowels", "vowels", "double", "double", "reverse"))
    word, confused = rng.choice(WORDS), rng.choice(tuple(_EDITS))
    right = edited(edit, word)
    wrong = edited(confused, word)
    if wrong == right:
        wrong = edited(edit, other(rng, [w for w in WORDS if edited(edit, w) != right], word))
    return ask(rng, _EDITS[edit], right, wrong, word=word)


def opposites(rng: Random) -> Question:
    """The antonym of a word, alone or in a sentence."""
    sentence = rng.randrange(3) == 0
    pair = rng.choice(ADJECTIVE_PAIRS if sentence else OPPOSITES)
    word, right = pair if rng.randrange(2) else pair[::-1]
    wrong = rng.choice(rng.choice([p for p in (ADJECTIVE_PAIRS if sentence else OPPOSITES) if p != pair]))
    forms = _OPPOSITE_IN_SENTENCE if sentence else _OPPOSITE
    return ask(rng, forms, right, wrong, word=word, thing=rng.choice(WORDS), name=rng.choice(NAMES))


def categories(rng: Random) -> Question:
    """The kind of a thing, or the thing of a kind in a list."""
    kinds = rng.sample(tuple(CATEGORIES), 4)
    kind, rest = kinds[0], kinds[1:]
    word = rng.choice(CATEGORIES[kind])
    right = f"{word} is {noun(kind)}"
    if rng.randrange(2):
        first, second = (kind, rest[0]) if rng.randrange(2) else (rest[0], kind)
        pair = {"first": first, "second": second, "a_first": noun(first), "a_second": noun(second)}
        return ask(rng, _CATEGORY, right, f"{word} is {noun(rest[0])}", word=word, a_word=noun(word), **pair)
    items = [word] + [rng.choice(CATEGORIES[k]) for k in rest[: rng.randrange(2, 4)]]
    rng.shuffle(items)
    wrong = f"{other(rng, items, word)} is {noun(kind)}"
    slots = {"kind": kind, "a_kind": noun(kind), "items": listed(items), "name": rng.choice(NAMES)}
    return ask(rng, _MEMBER, right, wrong, **slots)


def past_tense(rng: Random) -> Question:
    """The past form of a verb, alone or in a sentence."""
    verb, right = rng.choice(PAST)
    wrong = other(rng, [past for _, past in PAST], right)
    forms = _PAST_SENTENCE if rng.randrange(2) else _PAST_TENSE
    return ask(rng, forms, right, wrong, verb=verb, subject=rng.choice(SUBJECTS), moment=rng.choice(MOMENTS))


def alphabet(rng: Random) -> Question:
    """Letters some places away, places of letters, letters of places."""
    place, n = rng.randrange(26), rng.randrange(1, 6)
    kind = rng.randrange(4)
    if kind == 0:
        slots = {"letter": LETTERS[place], "name": rng.choice(NAMES)}
        return ask(rng, _PLACE, place + 1, near(rng, place + 1), **slots)
    if kind == 1:
        return ask(rng, _LETTER_AT, LETTERS[place], other(rng, LETTERS, LETTERS[place]), n=place + 1)
    if kind == 2:
        place = rng.randrange(26 - n)
        right, forms = LETTERS[place + n], _AFTER
    else:
        place = rng.randrange(n, 26)
        right, forms = LETTERS[place - n], _BEFORE
    steps = f"{n} place" if n == 1 else f"{n} places"
    return ask(rng, forms, right, other(rng, LETTERS, right), n=steps, letter=LETTERS[place])
