"""Scores: one number for each row. One file is one method; `importance` alone compares rows with a target."""

from tamis.core.method import Family
from tamis.scores import complexity, deita, ifd, import_score, importance, judge, length, perplexity, quality

SCORES = Family(
    "score",
    [
        length.METHOD,
        perplexity.METHOD,
        ifd.METHOD,
        quality.METHOD,
        complexity.METHOD,
        deita.METHOD,
        judge.METHOD,
        importance.METHOD,
        import_score.METHOD,
    ],
)
