"""Scores of a row alone, without a target: one file is one method."""

from tamis.core.method import Family
from tamis.scores import ifd, import_score, length, perplexity

SCORES = Family("score", [length.METHOD, perplexity.METHOD, ifd.METHOD, import_score.METHOD])
