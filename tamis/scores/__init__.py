"""Scores of a row alone, without a target: one file is one method."""

from tamis.core.method import Family
from tamis.scores import import_score, length

SCORES = Family("score", [length.METHOD, import_score.METHOD])
