"""Representations: a vector for each row. One method a file; this table lists them."""

from tamis.core.method import Family
from tamis.representations import embed, imported, less, ngrams, rds
from tamis.representations.represent import Representation, represent

REPRESENTATIONS = Family(
    "representation", [ngrams.METHOD, embed.METHOD, *rds.METHODS, *less.METHODS, imported.METHOD]
)

__all__ = ["REPRESENTATIONS", "Representation", "represent"]
