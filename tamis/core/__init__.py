"""Nouns and mechanisms that every stage shares; standard library, numpy and pyarrow only."""
