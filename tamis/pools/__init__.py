"""Pools: files in any known form → rows with roles, a source, an id and the untouched original."""
