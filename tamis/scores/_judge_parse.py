"""Reading a judge's reply: the strict reader, and what released programs read, for comparison with them.

Strict: the first line that is not blank is a number from 0 to 5, perhaps after a label ("Score:") and perhaps
of five ("/5", "out of 5"), and nothing else but marks; else one labelled number stands in the reply, and all
labelled ones agree. A number of another scale ("8/10", "90%"), with a decimal comma, or one that the reply
may have been cut in, is none.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass

CLASSES = (
    "none", "number", "labelled", "of_five", "labelled_later", "out_of_range", "no_number", "refusal",
    "empty", "truncated", "no_reply",
)  # fmt: skip
"""Classes of replies in the order of their codes; "none": not asked; "no_reply": every attempt failed."""

_LABEL = r"(?:overall |final |my )?(?:score|rating|accuracy|helpfulness|quality|grade|评分|得分|分数)"
_JOINED = r"(?:\s+(?:score|rating))?(?:\s+(?:is|of))?\s*[:=]?\s*"
_NUMBER = r"(?P<number>[-+]?\d+(?:\.\d+)?)"
_FIVE = r"(?P<five>\s*/\s*5(?:\.0+)?(?![\d.])|\s+out\s+of\s+(?:5|five)(?:\.0+)?(?![\d.]))?"
_END = r"(?:\s*(?:stars?|points?|分))?\s*[.!。]?"
_FIRST = re.compile(rf"(?:(?P<label>{_LABEL}){_JOINED})?{_NUMBER}{_FIVE}{_END}(?:\s+[-–—]\s+\D.*)?", re.I)
_OTHER_SCALE = re.compile(rf"(?:{_LABEL}{_JOINED})?[-+]?\d+(?:\.\d+)?\s*(?:/|out\s+of|%).*", re.I)
_ANYWHERE = re.compile(
    rf"(?<!\w){_LABEL}(?:\s+(?:score|rating))?(?:\s+(?:is|of)\s+|\s*[:=]\s*){_NUMBER}{_FIVE}"
    r"(?!\d|[.,]\d|\s*/|\s+out\s+of|\s*%|\s*[-–]\s*\d)",
    re.I,
)
_MARKS = "*_`#>\"'“”‘’[]() \t"
_THOUGHT = re.compile(r"\s*<think>.*?(?:</think>|\Z)", re.S | re.I)
_REFUSAL = re.compile(
    r"(?:i['’]?m|i am)?\s*(?:very |so )?(?:sorry|afraid)\b|i\s*(?:can(?:['’]t|not| not)|won['’]t|will not)\b"
    r"|(?:i['’]?m|i am) (?:unable|not able)\b|as an ai\b|(?:抱歉|对不起|很遗憾)",
    re.I,
)


@dataclass(frozen=True)
class Verdict:
    """A reply, read: its class and its score in [0, 5], None where it has none; `quote`: the words that a
    number was found in, when they are not the first line."""

    word: str
    score: float | None = None
    quote: str = ""


def read_reply(text: str, cut: bool = False) -> Verdict:
    """Read a reply. `cut`: it ended because its tokens did, so that a number at its end may be unfinished."""
    text = _THOUGHT.sub("", unicodedata.normalize("NFKC", text), count=1).strip()
    if not text:
        return Verdict("truncated" if cut else "empty")
    first, _, rest = text.partition("\n")
    line = first.replace("**", "").replace("__", "").strip(_MARKS)
    found = _FIRST.fullmatch(line)
    if found and cut and not rest:  # "4" may have become "4.5" or "4/10"
        return Verdict("truncated")
    if found:
        score = float(found["number"])
        word = "of_five" if found["five"] else "labelled" if found["label"] else "number"
        if 0.0 <= score <= 5.0 and not found["number"].startswith("-"):
            return Verdict(word, score)
    later = _labelled(text.replace("**", "").replace("__", ""), cut)
    if later is not None:
        return later
    if found or _OTHER_SCALE.fullmatch(line):
        return Verdict("out_of_range")
    if _REFUSAL.match(line):
        return Verdict("refusal")
    return Verdict("truncated" if cut else "no_number")


def _labelled(text: str, cut: bool) -> Verdict | None:
    """The one score that labelled numbers of a text agree on."""
    found = [match for match in _ANYWHERE.finditer(text) if not (cut and match.end() == len(text))]
    scores = {float(match["number"]) for match in found}
    if len(scores) != 1:
        return None
    score = scores.pop()
    if not 0.0 <= score <= 5.0 or found[0]["number"].startswith("-"):
        return None
    return Verdict("labelled_later", score, found[0].group())


# --- released programs, for comparison: never used by a score ---------------------------------------------


def released_first_line(review: str) -> float:
    """AlpaGasus, step `get_scores`: float(first line), else -1."""
    try:
        return float(review.split("\n")[0])
    except ValueError:
        return -1.0


def released_labelled(review: str) -> float:
    """AlpaGasus, steps `filter` and `chatgpt_rating`: float(first line); else of the line after "score:";
    else of the first character after "Score:" and its line breaks; else -1. Raises ValueError as they do."""
    try:
        return float(review.split("\n")[0])
    except ValueError:
        pass
    if "score:" in review:
        return float(review.split("score:")[1].split("\n")[0])
    if "Score:" in review:
        return float(review.split("Score:")[1].strip("\n")[:1])
    return -1.0


def released_first_digit(review: str) -> int:
    """The study of random baselines (arXiv:2410.15225): the first of 0, 1, … 5 that occurs anywhere, else -1,
    so that "4.0" is 0 and "4.5" is 4."""
    return next((digit for digit in range(6) if str(digit) in review), -1)
