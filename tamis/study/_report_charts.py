"""Charts as inline SVG: axes with units, titles that say what is seen, colours that the page's style sets.

A chart is drawn in a box of `WIDTH` units and scales with the page. Three kinds of mark mean the same
everywhere: the subset (`mine`, filled or solid), the pool (`pool`, grey) and a random draw of the same size
(`draw`, dashed), so that they differ by shape as well as by colour.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from markupsafe import Markup, escape

WIDTH, HEIGHT = 480, 270
LEFT, RIGHT, TOP, BOTTOM = 54, 18, 28, 44
POINTS = 240  # of a curve


@dataclass(frozen=True)
class Chart:
    """An SVG element with a title that says what it shows, and a note under it."""

    title: str
    svg: Markup
    note: str = ""


def number(value: float | None, digits: int = 3) -> str:
    """A number for people: thousands grouped, whole when whole, else so many significant digits."""
    if value is None or not math.isfinite(value):
        return "–"
    if float(value).is_integer() and abs(value) < 1e15:
        return f"{int(value):,}"
    if abs(value) >= 10 ** (digits - 1):
        return f"{value:,.0f}"
    if abs(value) < 1e-4:
        return f"{value:.{digits - 1}e}"
    places = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return f"{value:.{places}f}".rstrip("0").rstrip(".")


def percent(share: float | None) -> str:
    """A share as percent: one decimal below 10, `< 0.1 %` for what is not nothing."""
    if share is None or not math.isfinite(share):
        return "–"
    if 0 < share < 0.001:
        return "< 0.1 %"
    return f"{100 * share:.1f}".removesuffix(".0") + " %" if share < 0.0995 else f"{100 * share:.0f} %"


@dataclass(frozen=True)
class Axis:
    """From values to places of the box; `ticks` with their labels."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        if self.log:
            low, high, value = math.log10(self.low), math.log10(self.high), math.log10(max(value, self.low))
        else:
            low, high = self.low, self.high
        return self.start + (value - low) / ((high - low) or 1.0) * (self.end - self.start)

    def ticks(self) -> list[float]:
        if self.log:
            powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            wide = self.high > 2000 * self.low
            found = [m * 10.0**p for p in powers for m in ((1,) if wide else (1, 2, 5))]
            return [tick for tick in found if self.low <= tick <= self.high]
        step = nice_step(self.high - self.low)
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return [round(i * step, 12) + 0.0 for i in range(first, last + 1)]


def nice_step(span: float, wanted: int = 5) -> float:
    """1, 2 or 5 times a power of ten that divides `span` into about `wanted` parts."""
    if span <= 0:
        return 1.0
    raw = span / wanted
    power = 10.0 ** math.floor(math.log10(raw))
    return next(m * power for m in (1, 2, 5, 10) if m * power >= raw * 0.999)


def _short(value: float) -> str:
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            divisor = 1e3 if letter == "k" else size
            return f"{value / divisor:g}{letter}"
    return f"{value:,g}"


def _text(x: float, y: float, text: str, kind: str = "", anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}" text-anchor="{anchor}">{escape(text)}</text>'


def frame(x: Axis, y: Axis, x_label: str, y_label: str, y_text: Callable[[float], str] = _short) -> list[str]:
    """Grid, ticks and the labels of both axes."""
    parts = []
    for tick in y.ticks():
        at = y(tick)
        parts.append(f'<path class="grid" d="M{LEFT} {at:.1f}H{WIDTH - RIGHT}"/>')
        parts.append(_text(LEFT - 6, at + 4, y_text(tick), "tick", "end"))
    for tick in x.ticks():
        at = x(tick)
        parts.append(f'<path class="grid" d="M{at:.1f} {HEIGHT - BOTTOM}v5"/>')
        parts.append(_text(at, HEIGHT - BOTTOM + 19, _short(tick), "tick", "middle"))
    parts.append(f'<path class="axis" d="M{LEFT} {HEIGHT - BOTTOM}H{WIDTH - RIGHT}"/>')
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 6, x_label, "label", "middle"))
    parts.append(_text(4, 14, y_label, "label"))
    return parts


def svg(parts: Sequence[str], title: str, height: int = HEIGHT) -> Markup:
    """The whole element, named by its title."""
    return Markup(
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(title)}">{"".join(parts)}</svg>'
    )


def line(x: Axis, y: Axis, xs: np.ndarray, ys: np.ndarray, kind: str) -> str:
    """A curve through the points; of many, the least and the greatest of each of `POINTS` stretches."""
    if len(xs) > 2 * POINTS:
        # Taking every tenth point, say, would draw a pattern that is not there where scores alternate.
        keep = sparse(ys, POINTS)
        xs, ys = xs[keep], ys[keep]
    at = [f"{x(float(a)):.1f} {y(float(b)):.1f}" for a, b in zip(xs, ys, strict=True) if np.isfinite(b)]
    return f'<path class="line {kind}" d="M{"L".join(at)}"/>' if at else ""


def sparse(values: np.ndarray, stretches: int) -> np.ndarray:
    """Positions of the first and last value, and of the least and greatest of every stretch, ascending."""
    bounds = np.linspace(0, len(values), stretches + 1).round().astype(int)
    found = {0, len(values) - 1}
    for start, stop in pairwise(bounds.tolist()):
        found |= {start + int(values[start:stop].argmin()), start + int(values[start:stop].argmax())}
    return np.array(sorted(found))


def limits(*arrays: np.ndarray) -> tuple[float, float]:
    """Least and greatest finite value, a little apart when equal."""
    values = np.concatenate([np.asarray(array, float).ravel() for array in arrays])
    values = values[np.isfinite(values)]
    if not len(values):
        return 0.0, 1.0
    low, high = float(values.min()), float(values.max())
    return (low, high) if high > low else (low - 0.5 * (abs(low) or 1), high + 0.5 * (abs(high) or 1))


@dataclass(frozen=True, eq=False)
class Curve:
    """Values at places of the x axis, 0, 1, … unless given; `name` is written at the end of the curve."""

    kind: str
    values: np.ndarray
    at: np.ndarray | None = None
    name: str = ""

    @property
    def places(self) -> np.ndarray:
        """Where the values stand."""
        return np.arange(len(self.values)) if self.at is None else self.at


def curves(
    title: str,
    x_label: str,
    y_label: str,
    lines: Sequence[Curve],
    marks: Sequence[int] = (),
    note: str = "",
) -> Chart:
    """Curves over ranks, the first on top; `marks` are ranks with a vertical line."""
    last = max((int(curve.places[-1]) for curve in lines if len(curve.values)), default=1)
    low, high = limits(*(curve.values for curve in lines))
    x = Axis(0, max(last, 1), LEFT, WIDTH - RIGHT)
    y = Axis(low, high, HEIGHT - BOTTOM, TOP)
    parts = frame(x, y, x_label, y_label)
    for mark in marks:
        parts.append(f'<path class="mark" d="M{x(mark):.1f} {TOP}V{HEIGHT - BOTTOM}"/>')
    for curve in reversed(lines):
        parts.append(line(x, y, curve.places, curve.values, curve.kind))
    below = HEIGHT - BOTTOM + 11.0
    for curve in sorted((c for c in lines if c.name), key=lambda c: float(c.values[-1])):
        below = min(below - 15, y(float(curve.values[-1])) - 14)
        parts.append(_text(WIDTH - RIGHT, below, curve.name, "name", "end"))
    return Chart(title, svg(parts, title), note)


def length_bins(*arrays: np.ndarray) -> np.ndarray:
    """Edges of bins of equal ratio, four to a doubling at most, from the least to the greatest length."""
    low, high = limits(*(np.maximum(array, 1) for array in arrays))
    low, high = max(1.0, low), max(2.0, high) + 1
    count = max(4, min(32, math.ceil(4 * math.log2(high / low))))
    return np.geomspace(low, high, count + 1)


def lengths(
    title: str, mine: np.ndarray, pool: np.ndarray, draw: np.ndarray, unit: str, note: str = ""
) -> Chart:
    """Shares of rows by length, on a logarithmic axis."""
    edges = length_bins(mine, pool, draw)
    shares = [np.histogram(np.maximum(a, 1), edges)[0] / max(len(a), 1) for a in (mine, pool, draw)]
    x = Axis(float(edges[0]), float(edges[-1]), LEFT, WIDTH - RIGHT, log=True)
    y = Axis(0.0, max(float(max(share.max() for share in shares)), 1e-9), HEIGHT - BOTTOM, TOP)
    parts = frame(x, y, f"length of a row, {unit} (logarithmic)", "share of rows", percent)
    for share, kind in zip(shares, ("mine", "pool", "draw"), strict=True):
        steps = [f"M{x(float(edges[0])):.1f} {y(0):.1f}"]
        for height, right in zip(share, edges[1:], strict=True):
            steps.append(f"V{y(float(height)):.1f}H{x(float(right)):.1f}")
        path = "".join(steps) + f"V{y(0):.1f}"
        parts.append(f'<path class="{"area mine" if kind == "mine" else "line " + kind}" d="{path}"/>')
    return Chart(title, svg(parts, title), note)


def sources(title: str, rows: Sequence[dict[str, object]], note: str = "") -> Chart:
    """Bars of the subset's shares; a line where the pool's share is, a ring where the random draw's is."""
    step, top = 42, 4
    height = top + step * len(rows) + 34
    most = max(
        (float(str(row[name])) for row in rows for name in ("share", "pool_share", "random_share")),
        default=1.0,
    )
    x = Axis(0.0, max(most, 1e-9), 2, WIDTH - RIGHT - 8)
    parts = []
    for tick in x.ticks():
        parts.append(f'<path class="grid" d="M{x(tick):.1f} {top}V{height - 34}"/>')
        parts.append(_text(x(tick), height - 20, percent(tick), "tick", "middle" if tick else "start"))
    for i, row in enumerate(rows):
        y = top + i * step
        name, share, pool, draw = (
            str(row["source"]),
            *(float(str(row[n])) for n in ("share", "pool_share", "random_share")),
        )
        name = name if len(name) <= 30 else name[:29] + "…"
        parts.append(_text(2, y + 14, f"{name}: {percent(share)} (pool {percent(pool)})", "bar"))
        parts.append(
            f'<rect class="mine" x="2" y="{y + 19}" width="{max(x(share) - 2, 0):.1f}" height="15"/>'
        )
        parts.append(f'<path class="tickmark" d="M{x(pool):.1f} {y + 16}v21"/>')
        parts.append(f'<circle class="ring" cx="{x(draw):.1f}" cy="{y + 26.5}" r="4.5"/>')
    parts.append(_text(WIDTH / 2, height - 4, "share of rows", "label", "middle"))
    return Chart(title, svg(parts, title, height), note)


def bars(title: str, x_label: str, y_label: str, values: np.ndarray, even: float, note: str = "") -> Chart:
    """One bar a value, in the given order, and a line where all would be if they were equal."""
    x = Axis(0.0, max(len(values), 1), LEFT, WIDTH - RIGHT)
    y = Axis(0.0, max(float(values.max(initial=0)), even, 1.0), HEIGHT - BOTTOM, TOP)
    parts = frame(Axis(1, max(len(values), 2), LEFT, WIDTH - RIGHT), y, x_label, y_label)
    steps = [f"M{x(0):.1f} {y(0):.1f}"]
    for i, value in enumerate(values.tolist()):
        steps.append(f"V{y(value):.1f}H{x(i + 1):.1f}")
    parts.append(f'<path class="area mine" d="{"".join(steps)}V{y(0):.1f}"/>')
    parts.append(f'<path class="line draw" d="M{LEFT} {y(even):.1f}H{WIDTH - RIGHT}"/>')
    return Chart(title, svg(parts, title), note)


def histogram(title: str, edges: np.ndarray, rows: np.ndarray, x_label: str, note: str = "") -> Chart:
    """Rows (b,) by value, between the edges (b + 1,)."""
    x = Axis(float(edges[0]), float(edges[-1]), LEFT, WIDTH - RIGHT)
    y = Axis(0.0, max(float(rows.max(initial=0)), 1.0), HEIGHT - BOTTOM, TOP)
    steps = [f"M{x(float(edges[0])):.1f} {y(0):.1f}"]
    for count, right in zip(rows.tolist(), edges[1:].tolist(), strict=True):
        steps.append(f"V{y(count):.1f}H{x(right):.1f}")
    parts = frame(x, y, x_label, "rows")
    parts.append(f'<path class="line pool" d="{"".join(steps)}V{y(0):.1f}"/>')
    return Chart(title, svg(parts, title), note)


def scatter(
    title: str, points: Sequence[tuple[str, np.ndarray]], labels: tuple[str, str], note: str = ""
) -> Chart:
    """Points (p, 2) of several kinds, the last on top; both axes in the same unit."""
    height, edge = 400, 12
    every = np.concatenate([xy for _, xy in points])
    middle = (every.max(axis=0) + every.min(axis=0)) / 2
    scale = min(
        (WIDTH - 2 * edge) / max(float(np.ptp(every[:, 0])), 1e-9),
        (height - 2 * edge - 40) / max(float(np.ptp(every[:, 1])), 1e-9),
    )
    parts = [f'<rect class="plate" x="1" y="1" width="{WIDTH - 2}" height="{height - 30}"/>']
    for kind, xy in points:
        at = (xy - middle) * (scale, -scale) + (WIDTH / 2, (height - 28) / 2)
        path = "".join(f"M{a:.1f} {b:.1f}h0" for a, b in at.tolist())
        parts.append(f'<path class="dots {kind}" d="{path}"/>')
    parts.append(_text(WIDTH / 2, height - 10, f"across: {labels[0]}; up: {labels[1]}", "label", "middle"))
    return Chart(title, svg(parts, title, height), note)
