"""Pools: files in any known form → rows with a role for every turn, a source, an id and the untouched original."""
