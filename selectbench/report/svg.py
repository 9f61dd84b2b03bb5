"""SVG text: scales with round ticks, a frame with axes, lines, bands, points, boxes, the bars of intervals.

Colours and fonts come from the page's style sheet by class, so that a picture follows light, dark and print.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from html import escape

from selectbench.report.document import Ratio
from selectbench.report.escape import one_line
from selectbench.report.figures import shown

WIDTH, HEIGHT = 520.0, 330.0
LEFT, _RIGHT, _TOP, _BOTTOM = 74.0, 16.0, 14.0, 46.0
Point = tuple[float, float]
_BAR_WIDTH, _BAR_HEIGHT, _BAR_EDGE = 130.0, 18.0, 4.0
_FARTHEST = 4.0
"""Ratios beyond this, or below its inverse, stand at the edge: one far row would flatten all others."""


@dataclass(frozen=True)
class Scale:
    """From values to a stretch of the picture."""

    low: float
    high: float
    begin: float
    end: float
    is_log: bool = False

    def __call__(self, value: float) -> float:
        """Place of a value; those outside stay at the edge."""
        at, low, high = (_log(v) if self.is_log else v for v in (value, self.low, self.high))
        share = (at - low) / (high - low) if high > low else 0.5
        return self.begin + min(1.0, max(0.0, share)) * (self.end - self.begin)

    def ticks(self, most: int = 5) -> list[float]:
        """Round values within the scale."""
        return _log_ticks(self.low, self.high, most) if self.is_log else _ticks(self.low, self.high, most)


def scale_over(
    values: Sequence[float], begin: float, end: float, *, is_log: bool = False, from_zero: bool = False
) -> Scale:
    """A scale that holds all values with a little room."""
    low, high = min(values), max(values)
    if is_log and low > 0:
        room = max(0.02, 0.06 * (_log(high) - _log(low)))
        return Scale(low * 10**-room, min(high * 10**room, 1e300), begin, end, True)
    room = 0.06 * (high - low) or abs(high) * 0.05 or 1.0
    return Scale(0.0 if from_zero and low >= 0 else low - room, high + room, begin, end)


def wants_log(values: Sequence[float], ratio: float = 20.0) -> bool:
    """Whether values lie so far apart that a linear axis would hide the small ones."""
    return min(values) > 0 and max(values) / min(values) > ratio


def _log(value: float) -> float:
    return math.log10(max(value, 1e-300))


def _ticks(low: float, high: float, most: int) -> list[float]:
    span = high - low
    if span <= 0 or not math.isfinite(span):
        return [low]
    raw = span / most
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [number * step for number in range(first, last + 1)][: most + 2]


def _log_ticks(low: float, high: float, most: int) -> list[float]:
    decades = range(math.floor(_log(low)), math.ceil(_log(high)) + 1)
    found: list[float] = []
    for factors in ((1,), (1, 3), (1, 2, 5)):
        candidates = sorted(f * 10.0**d for d in decades for f in factors)
        found = [tick for tick in candidates if low <= tick <= high]
        if len(found) >= 3:
            break
    every = max(1, math.ceil(len(found) / (most + 1)))
    return found[::every] or [low]


@dataclass
class Picture:
    """A frame with axes that shapes are put into."""

    title: str
    description: str
    x: Scale
    y: Scale
    x_label: str
    y_label: str
    show_x: Callable[[float], str]
    show_y: Callable[[float], str]
    height: float = HEIGHT
    shapes: list[str] = field(default_factory=list)
    y_names: Sequence[tuple[float, str]] | None = None
    """Names at places of the y axis, in place of ticks."""
    left: float = LEFT
    """Room for the y axis."""

    def line(self, points: Sequence[Point], kind: int) -> None:
        """A line of the series' colour and dash, with a dot at each of few points."""
        path = " ".join(f"{self.x(x):.1f},{self.y(y):.1f}" for x, y in points)
        self.shapes.append(f'<polyline class="line s{kind}" points="{path}"/>')
        for x, y in points if len(points) <= 12 else ():
            self.shapes.append(f'<circle class="dot s{kind}" cx="{self.x(x):.1f}" cy="{self.y(y):.1f}" r="2.5"/>')

    def band(self, lower: Sequence[Point], upper: Sequence[Point], kind: int) -> None:
        """The area between two lines."""
        around = [*lower, *reversed(upper)]
        path = " ".join(f"{self.x(x):.1f},{self.y(y):.1f}" for x, y in around)
        self.shapes.append(f'<polygon class="band s{kind}" points="{path}"/>')

    def text(self, x: float, y: float, words: str, *, anchor: str = "start", name: str = "label") -> None:
        """Words at a place of the picture, in its own units."""
        self.shapes.append(_words(name, x, y, words, anchor))

    def render(self) -> str:
        """The picture as one element."""
        return (
            f'<svg viewBox="0 0 {WIDTH:.0f} {self.height:.0f}" role="img" class="picture">'
            f"<title>{escape(one_line(self.title))}</title><desc>{escape(one_line(self.description))}</desc>"
            f"{self._axes()}{''.join(self.shapes)}</svg>"
        )

    def _axes(self) -> str:
        left, right, top, bottom = self.left, WIDTH - _RIGHT, _TOP, self.height - _BOTTOM
        parts = []
        for tick in self.x.ticks():
            at = self.x(tick)
            parts.append(f'<line class="grid" x1="{at:.1f}" y1="{top}" x2="{at:.1f}" y2="{bottom}"/>')
            edge = at > right - 24
            parts.append(
                _words("tick", right if edge else at, bottom + 17, self.show_x(tick), "end" if edge else "middle")
            )
        for at, told in self._y_ticks():
            parts.append(f'<line class="grid" x1="{left}" y1="{at:.1f}" x2="{right}" y2="{at:.1f}"/>')
            parts.append(
                f'<text class="tick" x="{left - 6}" y="{at + 4:.1f}" text-anchor="end">{escape(told)}</text>'
            )
        parts.append(
            f'<text class="axis" x="{right}" y="{self.height - 8}" text-anchor="end">{escape(self.x_label)}</text>'
        )
        parts.append(f'<text class="axis" x="4" y="{self.height - 8}">{escape(self.y_label)}</text>')
        return "".join(parts)

    def _y_ticks(self) -> Sequence[tuple[float, str]]:
        if self.y_names is not None:
            return [(self.y(at), one_line(name, 21)) for at, name in self.y_names]
        return [(self.y(tick), self.show_y(tick)) for tick in self.y.ticks()]


def _words(name: str, x: float, y: float, words: str, anchor: str) -> str:
    return f'<text class="{name}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(one_line(words))}</text>'


def x_scale(values: Sequence[float], *, is_log: bool = False, from_zero: bool = False, left: float = LEFT) -> Scale:
    """Across a picture, left to right."""
    return scale_over(values, left, WIDTH - _RIGHT, is_log=is_log, from_zero=from_zero)


def y_scale(
    values: Sequence[float], *, is_log: bool = False, from_zero: bool = False, height: float = HEIGHT
) -> Scale:
    """Up a picture, bottom to top."""
    return scale_over(values, height - _BOTTOM, _TOP, is_log=is_log, from_zero=from_zero)


def interval_bars(ratios: Sequence[Ratio]) -> list[str]:
    """A small picture of each ratio with its interval, all on one scale; empty where there is none."""
    known = [ratio for ratio in ratios if ratio.value]
    if not known:
        return ["" for _ in ratios]
    ends = [end for ratio in known for end in _ends(ratio)]
    low, high = max(1 / _FARTHEST, min(*ends, 0.98)), min(_FARTHEST, max(*ends, 1.02))
    scale = Scale(low, high, _BAR_EDGE, _BAR_WIDTH - _BAR_EDGE, is_log=True)
    return [_bar(scale, ratio) if ratio.value else "" for ratio in ratios]


def _ends(ratio: Ratio) -> tuple[float, float]:
    """Of the interval: an end that is too large for a number lies at infinity; without an interval the ratio."""
    if ratio.low is None:
        return ratio.value or 1.0, ratio.value or 1.0
    return ratio.low, math.inf if ratio.high is None else ratio.high


def _bar(scale: Scale, ratio: Ratio) -> str:
    low, high = map(scale, _ends(ratio))
    at, one, middle = scale(ratio.value or 1.0), scale(1.0), _BAR_HEIGHT / 2
    return (
        f'<svg class="interval" viewBox="0 0 {_BAR_WIDTH:.0f} {_BAR_HEIGHT:.0f}" role="img">'
        f"<title>{escape(shown(ratio))} the baseline</title>"
        f'<line class="one" x1="{one:.1f}" y1="0" x2="{one:.1f}" y2="{_BAR_HEIGHT:.0f}"/>'
        f'<line class="span" x1="{low:.1f}" y1="{middle}" x2="{high:.1f}" y2="{middle}"/>'
        f'<circle class="at" cx="{at:.1f}" cy="{middle}" r="4"/></svg>'
    )
