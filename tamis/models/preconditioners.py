"""What an optimizer would make of a row's gradient: functions of the gradient and AdamW's stored moments.

With g (n, p) the gradients of n rows, m and v (p,) the moments of the checkpoint, b1, b2, eps of AdamW:

less   m' / sqrt(v' + eps), m' = b1 m + (1 - b1) g, v' = b2 v + (1 - b2) g^2: LESS as its program computes it
       (Xia et al. 2024, arXiv:2402.04333), without bias correction, eps inside the root
adam   m' / (sqrt(v') + eps): eps outside, as in the paper and in AdamW; bias correction, which the paper has,
       is one factor for all numbers of a checkpoint but for eps, and cancels in a cosine
rms    g / (sqrt(v) + eps): the second moment as it stands, no first; what bergson computes
sign   sign(g)
none   g
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from tamis.core.errors import RequestError

Preconditioner = Callable[[torch.Tensor, "Moments | None", "Constants"], torch.Tensor]


@dataclass(frozen=True)
class Constants:
    """AdamW's decay rates and epsilon."""

    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8


@dataclass(frozen=True)
class Moments:
    """First and second moment (p,) float32 of one parameter."""

    first: torch.Tensor
    second: torch.Tensor


def less(g: torch.Tensor, moments: Moments | None, constants: Constants) -> torch.Tensor:
    """See the module."""
    first, second = _folded(g, moments, constants)
    return first.div_(second.add_(constants.epsilon).sqrt_())


def adam(g: torch.Tensor, moments: Moments | None, constants: Constants) -> torch.Tensor:
    """See the module."""
    first, second = _folded(g, moments, constants)
    return first.div_(second.sqrt_().add_(constants.epsilon))


def rms(g: torch.Tensor, moments: Moments | None, constants: Constants) -> torch.Tensor:
    """See the module."""
    return g / _there(moments).second.sqrt().add_(constants.epsilon)


def sign(g: torch.Tensor, moments: Moments | None, constants: Constants) -> torch.Tensor:
    """See the module."""
    return torch.sign(g) + 0 * g  # torch has 0 for the sign of NaN


def none(g: torch.Tensor, moments: Moments | None, constants: Constants) -> torch.Tensor:
    """See the module."""
    return g


PRECONDITIONERS: dict[str, Preconditioner] = {
    "less": less,
    "adam": adam,
    "rms": rms,
    "sign": sign,
    "none": none,
}
NEED_MOMENTS = ("less", "adam", "rms")


def _folded(
    g: torch.Tensor, moments: Moments | None, constants: Constants
) -> tuple[torch.Tensor, torch.Tensor]:
    """m' and v', new tensors (n, p)."""
    known = _there(moments)
    first = torch.add(known.first * constants.beta1, g, alpha=1 - constants.beta1)
    second = torch.addcmul(known.second * constants.beta2, g, g, value=1 - constants.beta2)
    return first, second


def _there(moments: Moments | None) -> Moments:
    if moments is None:
        raise RequestError("this preconditioner needs the optimizer's moments")
    return moments
