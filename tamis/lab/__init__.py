"""The laboratory: a pool with known truth, queries and tests for each skill, and a nano model for them."""

from pathlib import Path

from tamis.lab.generate import FAULTS, SOURCES, Lab, RowTruth, corpus, generate, write_lab
from tamis.lab.skills import SKILLS

NANO = Path(__file__).parent / "nano"  # the folder of the shipped model, for `--model`

__all__ = ["FAULTS", "NANO", "SKILLS", "SOURCES", "Lab", "RowTruth", "corpus", "generate", "write_lab"]
