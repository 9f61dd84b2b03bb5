"""The pictures of a report, as SVG."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape

import numpy as np

from selectbench import units
from selectbench.analysis.result import OwnBest, Ranking, Row
from selectbench.record.record import Completed, EvaluationPoint, Inside, Record, Series
from selectbench.report.document import Chart, Ratio
from selectbench.report.figures import one_line, shown
from selectbench.report.own_best import told
from selectbench.suite.metrics import METRICS

# SVG text: scales with round ticks, a frame with axes, lines, bands, points, boxes, the bars of intervals.
#
# Colours and fonts come from the page's style sheet by class, so that a picture follows light, dark and print.


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
        for at, label in self._y_ticks():
            parts.append(f'<line class="grid" x1="{left}" y1="{at:.1f}" x2="{right}" y2="{at:.1f}"/>')
            parts.append(
                f'<text class="tick" x="{left - 6}" y="{at + 4:.1f}" text-anchor="end">{escape(label)}</text>'
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


# The pictures of a report, each from the ranking and the records. Pure.


Counting = Mapping[str, list[Record]]
"""Completed trials that count, by option in the ranking's order, in the order of seeds."""
_NAMES = 150.0
"""Room for options' names beside a picture."""
MOST_DRAWN = 8
"""Options in one picture; more can't be told apart."""
QUANTILES = (5, 25, 50, 75, 95)
_PARETO_NOTE = (
    "Up and to the left is better. Filled: no other option is shown to be better in speed, memory, energy or "
    "quality without being worse in another by more than matters. Hollow: some option is."
)
_CROSS = " Cross: not eligible, as it fails a constraint or it is open whether it holds one."
_RADIUS, _ARM, _LINE, _LETTER = 6.0, 5.0, 14.0, 7.2
_MOST_LABELS = 30
_SEARCH_NOTE = "Ringed: what the contest took. Values that failed are left out."
_SQUARE, _MAP_LEFT, _ABOVE = 16.0, 110.0, 96.0
_WORD = 14
_Box = tuple[float, float, float, float]


def counting(ranking: Ranking, records: Sequence[Record]) -> Counting:
    """Of every row; empty for one without any. `records`: those that count."""
    found: dict[str, list[Record]] = {row.option: [] for row in ranking.rows}
    for record in records:
        if isinstance(record.outcome, Completed) and record.trial.option in found:
            found[record.trial.option].append(record)
    return {option: sorted(own, key=lambda r: r.trial.seed) for option, own in found.items()}


def charts(ranking: Ranking, done: Counting) -> list[Chart]:
    """Those that the run has figures for."""
    made = [
        _pareto(ranking),
        _loss(ranking, done, "Held-out loss against tokens", "training tokens",
              lambda p: float(p.tokens), units.short),
        _loss(ranking, done, "Held-out loss against time", "training seconds, evaluation excluded",
              lambda p: p.training_seconds, lambda v: f"{v:g}"),
        _steps(ranking, done),
        *_search_charts(ranking),
        _meter(ranking, done, "Memory in use over a trial", "memory of the GPU", _memory, units.size),
        _meter(ranking, done, "Power over a trial", "power", _power, units.watts),
    ]  # fmt: skip
    return [chart for chart in made if chart is not None]


def _escaped(text: str) -> str:
    return escape(one_line(text))


def _loss(
    ranking: Ranking, done: Counting, heading: str, label: str,
    x: Callable[[EvaluationPoint], float], show_x: Callable[[float], str],
) -> Chart | None:  # fmt: skip
    curves = _heldout_curves(ranking, done, x)
    if not curves:
        return None
    values = [v for curve in curves for v in (*curve.low, *curve.high)]
    picture = Picture(
        heading, f"{len(curves)} options, mean over seeds with the lowest and the highest seed",
        x_scale([v for curve in curves for v in curve.x]), y_scale(values), label,
        "nats per token", show_x, _loss_tick,
    )  # fmt: skip
    for curve in curves:
        picture.band(
            list(zip(curve.x, curve.low, strict=True)), list(zip(curve.x, curve.high, strict=True)), curve.kind
        )
    for curve in curves:
        picture.line(list(zip(curve.x, curve.mean, strict=True)), curve.kind)
    note = "Line: mean over seeds. Band: from the lowest to the highest seed. Lower is better."
    return Chart(heading, picture.render(), [(c.option, c.kind) for c in curves], note + _undrawn(ranking))


def _loss_tick(value: float) -> str:
    return units.significant(value, 4)


def _steps(ranking: Ranking, done: Counting) -> Chart | None:
    found = _step_quantiles(ranking, done)
    if not found:
        return None
    values = [q for _, _, quantiles in found for q in quantiles]
    height = 70.0 + 30 * len(found)
    names = [(float(-number), option) for number, (option, _, _) in enumerate(found)]
    picture = Picture(
        "Step times", "quantiles of the timed steps of each option",
        x_scale(values, is_log=wants_log(values), left=_NAMES),
        y_scale([0.6, 0.4 - len(found)], height=height), "seconds per optimizer step", "", units.seconds, str,
        height=height, y_names=names, left=_NAMES,
    )  # fmt: skip
    for (at, _), (option, kind, quantiles) in zip(names, found, strict=True):
        _box(picture, at, option, kind, quantiles)
    note = (
        "Box: the middle half of all timed steps, its bar the median; whiskers: from the 5th to the 95th "
        "percentile. All "
        "seeds together; further left is better."
    )
    return Chart("Step times", picture.render(), [(o, k) for o, k, _ in found], note + _undrawn(ranking))


def _box(picture: Picture, at: float, option: str, kind: int, quantiles: Sequence[float]) -> None:
    low, first, middle, third, high = map(picture.x, quantiles)
    y = picture.y(at)
    told = _escaped(f"{option}: median {units.seconds(quantiles[2])}, 5th to 95th percentile "
                    f"{units.seconds(quantiles[0])} to {units.seconds(quantiles[4])}")  # fmt: skip
    whisker = f'<line class="whisker s{kind}" x1="{low:.1f}" y1="{y:.1f}" x2="{high:.1f}" y2="{y:.1f}"/>'
    width = max(1.5, third - first)
    box = f'<rect class="box s{kind}" x="{first:.1f}" y="{y - 8:.1f}" width="{width:.1f}" height="16"/>'
    median = f'<line class="median" x1="{middle:.1f}" y1="{y - 8:.1f}" x2="{middle:.1f}" y2="{y + 8:.1f}"/>'
    picture.shapes.append(f"<g><title>{told}</title>{whisker}{box}{median}</g>")


def _memory(record: Record) -> Series:
    return record.meters.gpus[0].memory_series if record.meters and record.meters.gpus else []


def _power(record: Record) -> Series:
    return record.meters.gpus[0].power_series if record.meters and record.meters.gpus else []


def _meter(
    ranking: Ranking, done: Counting, heading: str, label: str,
    read: Callable[[Record], Series], show: Callable[[float | None], str],
) -> Chart | None:  # fmt: skip
    found = _metered(ranking, done, read)
    if not found:
        return None
    picture = Picture(
        heading, f"the first seed of {len(found)} options", x_scale([t for _, _, own in found for t, _ in own]),
        y_scale([v for _, _, own in found for _, v in own], from_zero=True), "seconds since the launch", label,
        lambda v: f"{v:g}", show,
    )  # fmt: skip
    for _, kind, own in found:
        picture.line(own, kind)
    note = "Of the first rank's GPU with the first completed seed, as the bench sampled it; at most 64 points."
    return Chart(heading, picture.render(), [(o, k) for o, k, _ in found], note + _undrawn(ranking))


def _undrawn(ranking: Ranking) -> str:
    left = [row.option for row in ranking.rows if row.n][MOST_DRAWN:]
    return f" Not drawn: {one_line(', '.join(left), 300)}." if left else ""


@dataclass(frozen=True)
class _Curve:
    """Mean over seeds with the lowest and the highest seed, in order of x."""

    option: str
    kind: int
    """Which colour and dash."""
    x: list[float]
    mean: list[float]
    low: list[float]
    high: list[float]
    seeds: int


def _drawn(ranking: Ranking) -> dict[str, int]:
    """Options that the pictures show, with their number: ranked ones first, those without a figure left out."""
    return {row.option: number for number, row in enumerate([r for r in ranking.rows if r.n][:MOST_DRAWN])}


def _heldout_curves(ranking: Ranking, done: Counting, x: Callable[[EvaluationPoint], float]) -> list[_Curve]:
    """Held-out loss by step, over the steps that all seeds of an option evaluated."""
    curves = []
    for option, kind in _drawn(ranking).items():
        seeds = [{point.step: point for point in r.evaluation_curve} for r in done[option] if r.evaluation_curve]
        steps = sorted(set.intersection(*(set(own) for own in seeds))) if seeds else []
        if steps:
            curves.append(_curve(option, kind, [[own[step] for own in seeds] for step in steps], x))
    return curves


def _curve(
    option: str, kind: int, points: Sequence[Sequence[EvaluationPoint]], x: Callable[[EvaluationPoint], float]
) -> _Curve:
    losses = [[point.loss for point in own] for own in points]
    return _Curve(
        option=option, kind=kind, x=[sum(map(x, own)) / len(own) for own in points],
        mean=[sum(own) / len(own) for own in losses], low=[min(own) for own in losses],
        high=[max(own) for own in losses], seeds=len(points[0]),
    )  # fmt: skip


def _step_quantiles(ranking: Ranking, done: Counting) -> list[tuple[str, int, list[float]]]:
    """Option, number and quantiles of its timed steps' seconds, all seeds together."""
    found = []
    for option, kind in _drawn(ranking).items():
        steps = [
            s for r in done[option] if isinstance(r.outcome, Completed) for s in r.outcome.measurement.step_seconds
        ]
        if steps:
            found.append((option, kind, [float(q) for q in np.percentile(steps, QUANTILES)]))
    return found


def _metered(ranking: Ranking, done: Counting, read: Callable[[Record], Series]) -> list[tuple[str, int, Series]]:
    """Option, number and series of its first completed seed that has one."""
    found = []
    for option, kind in _drawn(ranking).items():
        first = next((own for r in done[option] if len(own := read(r)) > 1), None)
        if first:
            found.append((option, kind, first))
    return found


def without_meters(records: Sequence[Record]) -> str:
    """Why there are no meters, as the records say it."""
    problems = dict.fromkeys(r.meters.problem for r in records if r.meters and r.meters.problem)
    return "; ".join(p for p in problems if p) or "the records have none"


@dataclass
class _Room:
    """What of the picture is taken."""

    boxes: list[_Box] = field(default_factory=list)

    def is_free(self, box: _Box) -> bool:
        left, top, right, bottom = box
        inside = left >= LEFT and right <= WIDTH and top >= 0
        return inside and not any(
            left < other[2] and other[0] < right and top < other[3] and other[1] < bottom for other in self.boxes
        )


def _pareto(ranking: Ranking) -> Chart | None:
    """The picture, or None where fewer than two options have both figures."""
    metric = "peak_device_memory_bytes"
    rows = [row for row in ranking.rows if row.n and row.identity.comparable and not row.control]
    if not rows or any(row.metrics[metric].value is None for row in rows):
        metric = "peak_memory_bytes"
    points = [(m, s, row) for row in rows if (m := row.metrics[metric].value) and (s := _speed(row))]
    if len(points) < 2:
        return None
    unit = 1024.0 ** min(5, max(0, math.floor(math.log(max(m for m, _, _ in points), 1024))))
    memory, speeds = [m / unit for m, _, _ in points], [s for _, s, _ in points]
    picture = Picture(
        "Speed against memory", f"{len(points)} options; up and left is better", x_scale(memory),
        y_scale(speeds, is_log=wants_log(speeds)), "memory", "tokens/s",
        lambda v: units.size(v * unit), units.short,
    )  # fmt: skip
    _draw(picture, [(m / unit, s, row) for m, s, row in points])
    note = _PARETO_NOTE + ("" if all(row.eligible for _, _, row in points) else _CROSS)
    return Chart("Speed against memory", picture.render(), [], note)


def _speed(row: Row) -> float | None:
    return row.metrics["tokens_per_second"].value


def _draw(picture: Picture, points: list[tuple[float, float, Row]]) -> None:
    """Markers first, then their names where there is room."""
    room = _Room()
    for memory, speed, row in points:
        x, y = picture.x(memory), picture.y(speed)
        room.boxes.append((x - _RADIUS, y - _RADIUS, x + _RADIUS, y + _RADIUS))
        picture.shapes.append(_marker(x, y, row))
    for memory, speed, row in points[:_MOST_LABELS]:
        _put_name(picture, room, picture.x(memory), picture.y(speed), one_line(row.option, 24))


def _marker(x: float, y: float, row: Row) -> str:
    metrics = row.metrics
    told = f"{row.option}: {units.count(_speed(row))} tokens/s, {units.size(metrics['peak_memory_bytes'].value)}"
    if metrics["final_loss"].value is not None:
        told += f", loss {units.significant(metrics['final_loss'].value)}"
    title = f"<title>{escape(one_line(told))}</title>"
    if not row.eligible:
        left, right, top, bottom = x - _ARM, x + _ARM, y - _ARM, y + _ARM
        lines = f"M{left:.1f} {top:.1f}L{right:.1f} {bottom:.1f}M{left:.1f} {bottom:.1f}L{right:.1f} {top:.1f}"
        return f'<path class="marker cross" d="{lines}">{title}</path>'
    kind = "full" if row.pareto else "hollow"
    return f'<circle class="marker {kind}" cx="{x:.1f}" cy="{y:.1f}" r="{_RADIUS:g}">{title}</circle>'


def _put_name(picture: Picture, room: _Room, x: float, y: float, words: str) -> None:
    """Right, left, above or below the marker, further away where that is taken; left out where nothing is free."""
    width = len(words) * _LETTER
    for far in (0.0, _LINE, 2 * _LINE, 3 * _LINE):
        for down in dict.fromkeys((far, -far)):
            for anchor, left in (("start", x + 10), ("end", x - 10 - width), ("middle", x - width / 2)):
                if anchor == "middle" and not far:
                    continue
                box = (left, y + down - 8, left + width, y + down + 6)
                if room.is_free(box):
                    room.boxes.append(box)
                    at = {"start": left, "end": left + width, "middle": x}[anchor]
                    picture.text(at, y + down + 4, words, anchor=anchor)
                    return


def _search_charts(ranking: Ranking) -> list[Chart]:
    """Speed over the micro-batch size, and the tuning's metric over the one setting that was tuned."""
    found = ranking.search
    if found is None:
        return []
    tuning = [own for own in found.tuning if all(len(tried.values) == 1 for tried in own.tried)]
    charts = [
        _search_chart(ranking, found.sizes, "Speed over the micro-batch size"),
        _search_chart(ranking, tuning, _heading(tuning)),
    ]
    return [chart for chart in charts if chart is not None]


def _heading(tuning: Sequence[OwnBest]) -> str:
    path = next((path for own in tuning for tried in own.tried for path in tried.values), "")
    metric = METRICS[tuning[0].metric].title if tuning else ""
    return f"{metric[:1].upper()}{metric[1:]} over {path}"


def _search_chart(ranking: Ranking, searched: Sequence[OwnBest], heading: str) -> Chart | None:
    kinds = _drawn(ranking)
    lines = [(own, _points(own), kinds[own.option]) for own in searched if own.option in kinds]
    lines = [line for line in lines if line[1]]
    if not lines:
        return None
    x, y = ([point[axis] for _, points, _ in lines for point in points] for axis in (0, 1))
    metric = METRICS[searched[0].metric]
    path = next(iter(searched[0].tried[0].values))
    picture = Picture(
        heading, f"{len(lines)} options", x_scale(x, is_log=min(x) > 0), y_scale(y, is_log=wants_log(y)),
        path.rpartition(".")[2], metric.title, lambda v: f"{v:g}",
        units.short if metric.better == "more" else units.significant,
    )  # fmt: skip
    for own, points, kind in lines:
        picture.line(points, kind)
        _ring(picture, own, kind)
    return Chart(heading, picture.render(), [(own.option, kind) for own, _, kind in lines], _SEARCH_NOTE)


def _points(own: OwnBest) -> list[tuple[float, float]]:
    return [(float(*tried.values.values()), tried.value) for tried in own.tried if tried.value is not None]


def _ring(picture: Picture, own: OwnBest, kind: int) -> None:
    for tried in own.tried:
        if tried.chosen and tried.value is not None:
            at = float(*tried.values.values())
            words = escape(one_line(f"{own.option}: {at:g}, {told(own, tried)}"))
            picture.shapes.append(
                f'<circle class="ring s{kind}" cx="{picture.x(at):.1f}" cy="{picture.y(tried.value):.1f}" r="6">'
                f"<title>{words}</title></circle>"
            )


def attention_chart(option: str, inside: Inside) -> Chart:
    """What of an option's last layer attends to what, mean over heads."""
    note = "Rows attend to columns; drawn after measuring, with the eager kernel."
    return Chart(one_line(option, 120), _attention_map(option, inside), [], note)


def _attention_map(option: str, inside: Inside) -> str:
    """A square for each pair of tokens, the darker the more is attended to."""
    rows, columns = len(inside.attention), len(inside.attention[0])
    width, height = _MAP_LEFT + _SQUARE * columns + 4, _ABOVE + _SQUARE * rows + 4
    title = escape(one_line(f"Attention of {option}: rows attend to columns"))
    parts = [f'<svg class="picture" viewBox="0 0 {width:.0f} {height:.0f}" role="img"><title>{title}</title>']
    for number, word in enumerate(inside.attention_columns[:columns]):
        x = _MAP_LEFT + _SQUARE * (number + 0.7)
        y = _ABOVE - 6
        parts.append(
            f'<text class="tick" x="{x:.0f}" y="{y:.0f}" transform="rotate(-60 {x:.0f} {y:.0f})">'
            f"{_short(word)}</text>"
        )
    for number, weights in enumerate(inside.attention):
        y = _ABOVE + _SQUARE * number
        word = _short(inside.attention_rows[number])
        parts.append(f'<text class="tick" x="{_MAP_LEFT - 6:.0f}" y="{y + 12:.0f}" text-anchor="end">{word}</text>')
        parts += [
            f'<rect class="box s0" x="{_MAP_LEFT + _SQUARE * place:.0f}" y="{y:.0f}" width="15" height="15" '
            f'style="fill-opacity:{weight:.2f};stroke:none"/>'
            for place, weight in enumerate(weights)
            if weight >= 0.01
        ]
    return "".join(parts) + "</svg>"


def _short(word: str) -> str:
    return escape(one_line(word.replace("\n", "\u21b5").strip() or "\u2423", _WORD))
