"""Strategies, and what is done with them: selecting, comparing, reporting."""
