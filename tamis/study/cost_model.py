"""What selection, training and storage cost by the formulas of the published comparisons.

P parameters, all of them; T tokens charged per example; N pool rows; B selected rows; E epochs; K
checkpoints. A forward pass is 2 P operations a token, a training step 6 P; comparing and sorting are left
out. Ivison et al. 2025 (arXiv:2503.01807, appendix E, its arithmetic corrected), Xia et al. 2024
(arXiv:2402.04333) for gradients. What a run here is expected to cost is in `plan.py`: real lengths, the body
without the head, and the attention term.
"""

from __future__ import annotations

TOKENS = 2048
"""Tokens charged per example in the published tables."""
GTR_PARAMETERS = 1.1e8
IFD_WARM_ROWS, IFD_JUDGED_ROWS = 1_000, 200_000
LESS_WARM_ROWS = 10_000
PROJECTED = 8192
"""Entries of a projected gradient."""


def inference(parameters: float, tokens: float) -> float:
    """Operations of a forward pass over `tokens` tokens: 2 P a token."""
    return 2 * parameters * tokens


def training(parameters: float, tokens: float) -> float:
    """Operations of forward and backward passes over `tokens` tokens: 6 P a token."""
    return 6 * parameters * tokens


def one_pass(parameters: float, rows: float, tokens: float = TOKENS) -> float:
    """RDS+, perplexity, EMBED: every row once through the model, 2 P T N."""
    return inference(parameters, tokens * rows)


def ifd(
    parameters: float,
    rows: float,
    tokens: float = TOKENS,
    warm_rows: float = IFD_WARM_ROWS,
    judged_rows: float = IFD_JUDGED_ROWS,
) -> float:
    """IFD: every row once, `judged_rows` a second time without their prompt, and a model tuned on
    `warm_rows`: 2 P T N + 2 P T x 200,000 + 6 P T x 1,000."""
    twice = one_pass(parameters, rows, tokens) + one_pass(parameters, judged_rows, tokens)
    return twice + training(parameters, tokens * warm_rows)


def less(
    parameters: float, rows: float, tokens: float = TOKENS, checkpoints: int = 4, warm_rows: float = 0
) -> float:
    """LESS: a gradient of every row at each checkpoint, and the warm-up of one epoch a checkpoint on
    `warm_rows`: K x 6 P T (N + warm-up rows)."""
    return checkpoints * training(parameters, tokens * (rows + warm_rows))


def fine_tuning(parameters: float, rows: float, tokens: float = TOKENS, epochs: float = 2) -> float:
    """Training on the selected rows: 6 P T E B."""
    return training(parameters, tokens * rows * epochs)


def similarity(queries: float, rows: float, width: float) -> float:
    """Comparing every query with every row: 2 Q N d; left out of the published totals."""
    return 2 * queries * rows * width


# --- storage, bytes of one row ---------------------------------------------------------------------------


def vector_bytes(width: int, itemsize: int = 4) -> int:
    """A dense vector: d numbers of `itemsize` bytes."""
    return width * itemsize


def gradient_bytes(checkpoints: int = 4, itemsize: int = 4, projected: int = PROJECTED) -> int:
    """Projected gradients: K x 8,192 numbers."""
    return checkpoints * projected * itemsize


def similarity_bytes(queries: int, itemsize: int = 4) -> int:
    """Similarities to all queries, where they are kept at all: Q numbers."""
    return queries * itemsize
