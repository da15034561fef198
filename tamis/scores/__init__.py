"""Scores of a row alone, without a target: one file is one method."""

from tamis.core.method import Family
from tamis.scores import length

SCORES = Family("score", [length.METHOD])
