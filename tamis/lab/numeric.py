"""Skills on numbers: arithmetic, multiplication, sorting, counting, sequences, comparison."""

from __future__ import annotations

from random import Random

from tamis.lab.question import Question, ask, listed, misplaced, near
from tamis.lab.words import COLOURS, NAMES, THINGS, WORDS

_SUM = (
    ("What is {a} + {b}?", "{a} + {b} = {r}"),
    ("Compute {a} plus {b}.", "{a} + {b} = {r}"),
    ("Add the numbers {a} and {b}.", "{a} + {b} = {r}"),
    ("{name} has {a} {things} and gets {b} more. How many {things} are there now?", "{a} + {b} = {r}"),
    ("There are {a} red {things} and {b} blue {things}. How many in total?", "{a} + {b} = {r}"),
    ("Find the sum of {a} and {b}.", "{a} + {b} = {r}"),
)
_DIFFERENCE = (
    ("What is {a} - {b}?", "{a} - {b} = {r}"),
    ("Compute {a} minus {b}.", "{a} - {b} = {r}"),
    ("Subtract the number {b} from {a}.", "{a} - {b} = {r}"),
    ("{name} has {a} {things} and gives away {b}. How many {things} are left?", "{a} - {b} = {r}"),
    ("Find the difference of {a} and {b}.", "{a} - {b} = {r}"),
)
_PRODUCT = (
    ("What is {a} times {b}?", "The product is {r}."),
    ("What is {a} * {b}?", "The product is {r}."),
    ("Compute {a} x {b}.", "The product is {r}."),
    ("Multiply the numbers {a} and {b}.", "The product is {r}."),
    ("There are {a} boxes with {b} {things} each. How many {things} in total?", "The product is {r}."),
    ("{name} buys {a} packs of {b} {things}. How many {things} is that?", "The product is {r}."),
    ("Find the product of {a} and {b}.", "The product is {r}."),
)
_SORT = (
    ("Sort these numbers: {items}", "{r}"),
    ("Put the numbers {items} in order, smallest first.", "{r}"),
    ("Arrange from low to high: {items}", "{r}"),
    ("{name} wrote down {items}. Write the list in ascending order.", "Sorted: {r}"),
    ("What is the sorted list of {items}?", "{r}"),
)
_SORT_DOWN = (
    ("Sort these numbers, largest first: {items}", "{r}"),
    ("Put the numbers {items} in descending order.", "{r}"),
    ("Arrange from high to low: {items}", "{r}"),
)
_COUNT = (
    ("How many times does the word {word} appear in this list? {items}", "The count is {r}."),
    ("Count the word {word} in: {items}", "The count is {r}."),
    ("How often is {word} in the list {items}?", "The count is {r}."),
)
_COUNT_ALL = (
    ("How many items are in this list? {items}", "The count is {r} items."),
    ("Count the words: {items}", "The count is {r} words."),
    ("{name} wrote {items}. How many words is that?", "The count is {r} words."),
)
_COUNT_LETTERS = (
    ("How many letters are in the word {word}?", "The count is {r} letters."),
    ("Count the letters of {word}.", "The count is {r} letters."),
)
_NEXT = (
    ("What comes next? {items}", "Next is {r}."),
    ("Continue the sequence: {items}", "Next is {r}."),
    ("Which number follows in the series {items}?", "{r}"),
    ("{name} writes {items}. What is next in the list?", "Next is {r}."),
    ("Find the next item: {items}", "{r}"),
)
_GREATER = (
    ("Is {a} greater than {b}?", "{r}, {low} < {high}"),
    ("Is the number {a} more than {b}? Answer yes or no.", "{r}, {low} < {high}"),
    ("{name} has {a} {things} and {second} has {b} {things}. Does {name} have more?", "{r}, {low} < {high}"),
)
_SMALLER = (
    ("Is {a} less than {b}?", "{r}, {low} < {high}"),
    ("Is the number {a} smaller than {b}? Answer yes or no.", "{r}, {low} < {high}"),
)
_LARGER_OF = (
    ("Which is larger, {a} or {b}?", "{r} is larger."),
    ("Compare the numbers {a} and {b}. Which one is larger?", "{r} is larger."),
)


def arithmetic(rng: Random) -> Question:
    """Sums and differences of numbers up to 20."""
    a, b = rng.randrange(2, 21), rng.randrange(2, 21)
    slots = {"name": rng.choice(NAMES), "things": rng.choice(THINGS)}
    if rng.randrange(2):
        return ask(rng, _SUM, a + b, near(rng, a + b), a=a, b=b, **slots)
    a, b = max(a, b) + 1, min(a, b)
    return ask(rng, _DIFFERENCE, a - b, near(rng, a - b), a=a, b=b, **slots)


def multiplication(rng: Random) -> Question:
    """Products up to 12 times 10."""
    a, b = rng.randrange(2, 13), rng.randrange(2, 11)
    return ask(
        rng, _PRODUCT, a * b, near(rng, a * b), a=a, b=b, name=rng.choice(NAMES), things=rng.choice(THINGS)
    )


def sort_numbers(rng: Random) -> Question:
    """Three or four different numbers below 60, up or down."""
    items = rng.sample(range(1, 60), rng.randrange(3, 5))
    down = rng.randrange(3) == 0
    right = sorted(items, reverse=down)
    forms = _SORT_DOWN if down else _SORT
    wrong = listed(misplaced(rng, right))
    return ask(rng, forms, listed(right), wrong, items=listed(items), name=rng.choice(NAMES))


def counting(rng: Random) -> Question:
    """How often a word stands in a list, how long the list is, or how many letters a word has."""
    kind = rng.randrange(3)
    word = rng.choice(WORDS)
    if kind == 0:
        return ask(rng, _COUNT_LETTERS, len(word), near(rng, len(word)), word=word)
    items = rng.sample([w for w in WORDS if w != word], rng.randrange(2, 5)) + [word] * rng.randrange(1, 4)
    rng.shuffle(items)
    right = len(items) if kind == 1 else items.count(word)
    forms = _COUNT_ALL if kind == 1 else _COUNT
    return ask(rng, forms, right, near(rng, right), word=word, items=listed(items), name=rng.choice(NAMES))


def sequences(rng: Random) -> Question:
    """The next member of a progression with constant step, a doubling, or a repeating pattern of colours."""
    kind = rng.randrange(4)
    name = rng.choice(NAMES)
    if kind == 3:
        cycle = rng.sample(COLOURS, rng.randrange(2, 4))
        shown = [cycle[i % len(cycle)] for i in range(len(cycle) * 2 - rng.randrange(2))]
        right = cycle[len(shown) % len(cycle)]
        wrong = cycle[(len(shown) + 1) % len(cycle)]
        return ask(rng, _NEXT, right, wrong, items=listed(shown), name=name)
    if kind == 2:
        first = rng.randrange(1, 10)
        terms = [first << i for i in range(5)]
    else:
        first, step = rng.randrange(1, 21), rng.choice((1, 2, 3, 4, 5, 10))
        terms = [first + step * i for i in range(5)]
        if rng.randrange(3) == 0:
            terms.reverse()
    return ask(rng, _NEXT, terms[-1], near(rng, terms[-1]), items=listed(terms[:-1]), name=name)


def comparison(rng: Random) -> Question:
    """Which of two numbers is larger, or whether one is."""
    a, b = rng.sample(range(1, 100), 2)
    name, second = rng.sample(NAMES, 2)
    slots: dict[str, object] = {"name": name, "second": second, "things": rng.choice(THINGS)}
    slots |= {"a": a, "b": b, "low": min(a, b), "high": max(a, b)}
    kind = rng.randrange(3)
    if kind == 0:
        return ask(rng, _LARGER_OF, max(a, b), min(a, b), **slots)
    forms, true = (_GREATER, a > b) if kind == 1 else (_SMALLER, a < b)
    return ask(rng, forms, "yes" if true else "no", "no" if true else "yes", **slots)
