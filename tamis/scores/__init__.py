"""Scores: one number for each row. One file is one method; `importance` alone compares rows with a target."""

from tamis.core.method import Family
from tamis.scores import ifd, import_score, importance, length, perplexity

SCORES = Family(
    "score",
    [length.METHOD, perplexity.METHOD, ifd.METHOD, importance.METHOD, import_score.METHOD],
)
