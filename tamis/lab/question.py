"""One question with its right and one wrong answer, and the few draws every skill shares.

Chance enters only through `Random.randrange`, `choice`, `sample` and `shuffle`, which are integer arithmetic:
the same seed gives the same text on every platform.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

Form = tuple[str, str]  # how it is asked, how it is answered; `{r}` stands for the result


@dataclass(frozen=True)
class Question:
    """A user turn, the right assistant turn, and a plausible wrong one in the same wording."""

    prompt: str
    answer: str
    wrong: str


def ask(rng: Random, forms: Sequence[Form], right: object, wrong: object, **slots: object) -> Question:
    """A question in one of `forms`, its slots filled; `right` and `wrong` take the place of `{r}`."""
    prompt, reply = rng.choice(forms)
    return Question(prompt.format(**slots), reply.format(r=right, **slots), reply.format(r=wrong, **slots))


def near(rng: Random, number: int) -> int:
    """Another number, at least 0, at a small distance: the slip a careless writer makes."""
    step = rng.choice((1, 1, 2, 3, 10))
    return number - step if number >= step and rng.randrange(2) else number + step


def other(rng: Random, options: Sequence[str], right: str) -> str:
    """One of `options` that is not `right`."""
    return rng.choice([option for option in options if option != right])


def misplaced(rng: Random, items: Sequence[object]) -> list[object]:
    """`items` (at least two different) with two unequal ones exchanged."""
    first, second = rng.choice([(i, j) for i in range(len(items)) for j in range(i) if items[i] != items[j]])
    swapped = list(items)
    swapped[first], swapped[second] = swapped[second], swapped[first]
    return swapped


def noun(word: str) -> str:
    """`word` with its indefinite article."""
    return f"{'an' if word[0] in 'aeiou' else 'a'} {word}"


def listed(items: Sequence[object]) -> str:
    """`items` with commas between them."""
    return ", ".join(str(item) for item in items)
