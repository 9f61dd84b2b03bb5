"""The pictures of a report as SVG, coloured by class from the page's style sheet. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape

import numpy as np

from selectbench import units
from selectbench.analysis.result import OptionSearch, Ranking, Row, TriedSetting
from selectbench.record.record import Completed, EvaluationPoint, GpuMeters, Inspection, Record, Series
from selectbench.report.document import Chart, Ratio, labels, value_text
from selectbench.suite.metrics import METRICS
from selectbench.text import one_line

WIDTH, HEIGHT = 520.0, 330.0
LEFT, _RIGHT, _TOP, _BOTTOM = 74.0, 16.0, 14.0, 46.0
_BAR_WIDTH, _BAR_HEIGHT, _BAR_EDGE = 130, 18, 4
_FARTHEST = 4.0
"""Ratios beyond this, or below its inverse, stand at the edge: one far row would flatten all others."""
_FAR_APART = 20.0
"""Largest value over the smallest from which a linear axis would hide the small ones."""
_TICKS = 5
"""About as many ticks as an axis has."""
_NAMES = 150.0
"""Room for options' names at the left of a picture."""
_NAME_ROOM = 21
"""Characters of a name that fit into it."""
MOST_DRAWN = 8
"""Options in one picture at most: more can't be told apart."""
QUANTILES = (5, 25, 50, 75, 95)
_PARETO_NOTE = (
    "Up and to the left is better. Hollow: another option is shown to be better in one of speed, memory, energy "
    "and quality, and shown to be worse by less than matters, if at all, in all others that are known. Filled: "
    "none is."
)
_CROSS = " Cross: not eligible, as it fails a constraint or it is open whether it holds one."
_RADIUS, _ARM, _LINE, _LETTER = 6, 5.0, 14.0, 7.2
_MOST_LABELS = 30
_SEARCH_NOTE = "Ringed: what the contest took. Values that failed are left out."
_SQUARE, _MAP_LEFT, _ABOVE = 16, 110, 96
_WORD = 14
Point = tuple[float, float]
_Box = tuple[float, float, float, float]
"""Left, top, right and bottom."""
ByOption = Mapping[str, list[Record]]
"""Completed trials that count, by option in the ranking's order, in the order of seeds."""


def _element(name: str, kind: str, body: str | None = None, **attributes: float | str) -> str:
    """An element of a CSS class; `body`: markup. Floats get one decimal; underscores in names become hyphens."""
    values = {key: f"{value:.1f}" if isinstance(value, float) else value for key, value in attributes.items()}
    opening = "".join(f' {key.replace("_", "-")}="{value}"' for key, value in values.items())
    return f'<{name} class="{kind}"{opening}' + ("/>" if body is None else f">{body}</{name}>")


def _line_element(kind: str, begin: Point, end: Point) -> str:
    return _element("line", kind, x1=begin[0], y1=begin[1], x2=end[0], y2=end[1])


def _text_element(kind: str, x: float, y: float, words: str, anchor: str) -> str:
    return _element("text", kind, escape(one_line(words)), x=x, y=y, text_anchor=anchor)


def _title_element(words: str) -> str:
    """A title, which is shown where a pointer rests on the element that it is in."""
    return f"<title>{escape(one_line(words))}</title>"


@dataclass(frozen=True)
class Scale:
    """Maps values onto a stretch of the picture."""

    low: float
    high: float
    begin: float
    end: float
    is_log: bool = False

    def __call__(self, value: float) -> float:
        """The position of a value; values outside the scale are put at its edge."""
        at, low, high = (_log10(v) if self.is_log else v for v in (value, self.low, self.high))
        share = (at - low) / (high - low) if high > low else 0.5
        return self.begin + min(1.0, max(0.0, share)) * (self.end - self.begin)

    def ticks(self) -> list[float]:
        """Round values within the scale, where its ticks are."""
        return _log_ticks(self.low, self.high) if self.is_log else _ticks(self.low, self.high)


def _log10(value: float) -> float:
    return math.log10(max(value, 1e-300))


def _ticks(low: float, high: float) -> list[float]:
    span = high - low
    if span <= 0 or not math.isfinite(span):
        return [low]
    rough_step = span / _TICKS
    power = 10.0 ** math.floor(math.log10(rough_step))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough_step * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [number * step for number in range(first, last + 1)][: _TICKS + 2]


def _log_ticks(low: float, high: float) -> list[float]:
    decades = range(math.floor(_log10(low)), math.ceil(_log10(high)) + 1)
    ticks: list[float] = []
    for factors in ((1,), (1, 3), (1, 2, 5)):
        if len(ticks) < 3:
            ticks = [tick for d in decades for f in factors if low <= (tick := f * 10.0**d) <= high]
    stride = max(1, math.ceil(len(ticks) / (_TICKS + 1)))
    return ticks[::stride] or [low]


@dataclass(frozen=True)
class Axis:
    """The label of an axis, the text of its ticks, and how values lie along it."""

    label: str
    show: Callable[[float], str]
    log_from: float = math.inf
    """Largest value over the smallest from which it is logarithmic, where all values are positive."""
    from_zero: bool = False

    def scale(self, values: Sequence[float], begin: float, end: float) -> Scale:
        """A scale that holds all values with a little room."""
        low, high = min(values), max(values)
        if low > 0 and high / low > self.log_from:
            room = max(0.02, 0.06 * (_log10(high) - _log10(low)))
            return Scale(low * 10**-room, min(high * 10**room, 1e300), begin, end, True)
        room = 0.06 * (high - low) or abs(high) * 0.05 or 1.0
        return Scale(0.0 if self.from_zero and low >= 0 else low - room, high + room, begin, end)


@dataclass
class Picture:
    """A frame for shapes, with axes that hold all values of x and y."""

    title: str
    description: str
    axes: tuple[Axis, Axis]
    values: tuple[Sequence[float], Sequence[float]]
    height: float = HEIGHT
    left: float = LEFT
    """Room for the labels of the y axis."""
    names: Sequence[tuple[float, str]] | None = None
    """Names at values of the y axis, instead of ticks."""
    shapes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.x = self.axes[0].scale(self.values[0], self.left, WIDTH - _RIGHT)
        self.y = self.axes[1].scale(self.values[1], self.height - _BOTTOM, _TOP)

    def line(self, points: Sequence[Point], kind: int) -> None:
        """A line of the series' colour and dash, with a dot at each of few points."""
        self.shapes.append(_element("polyline", f"line s{kind}", points=self._path(points)))
        for x, y in points if len(points) <= 12 else ():
            self.shapes.append(_element("circle", f"dot s{kind}", cx=self.x(x), cy=self.y(y), r=2.5))

    def band(self, edges: Sequence[Sequence[Point]], kind: int) -> None:
        """The area between two lines."""
        lower, upper = edges
        outline = [*lower, *reversed(upper)]
        self.shapes.append(_element("polygon", f"band s{kind}", points=self._path(outline)))

    def _path(self, points: Sequence[Point]) -> str:
        return " ".join(f"{self.x(x):.1f},{self.y(y):.1f}" for x, y in points)

    def render(self) -> str:
        """The picture as one element."""
        return (
            f'<svg viewBox="0 0 {WIDTH:.0f} {self.height:.0f}" role="img" class="picture">'
            f"{_title_element(self.title)}<desc>{escape(one_line(self.description))}</desc>"
            f"{self._frame()}{''.join(self.shapes)}</svg>"
        )

    def _frame(self) -> str:
        right, bottom, (x_axis, y_axis) = WIDTH - _RIGHT, self.height - _BOTTOM, self.axes
        elements = []
        for tick in self.x.ticks():
            position = self.x(tick)
            text_position, anchor = (right, "end") if position > right - 24 else (position, "middle")
            elements.append(_line_element("grid", (position, _TOP), (position, bottom)))
            elements.append(_text_element("tick", text_position, bottom + 17, x_axis.show(tick), anchor))
        ticks = [(tick, y_axis.show(tick)) for tick in self.y.ticks()] if self.names is None else self.names
        for value, label in ticks:
            position = self.y(value)
            elements.append(_line_element("grid", (self.left, position), (right, position)))
            elements.append(_text_element("tick", self.left - 6, position + 4, one_line(label, _NAME_ROOM), "end"))
        elements.append(_text_element("axis", right, self.height - 8, x_axis.label, "end"))
        elements.append(_element("text", "axis", escape(y_axis.label), x=4, y=self.height - 8))
        return "".join(elements)


def interval_bars(ratios: Sequence[Ratio]) -> list[str]:
    """A small picture of each ratio with its interval, all on one scale; empty where there is none."""
    measured = (ratio for ratio in ratios if ratio.value and units.is_measurable(ratio.low, ratio.high))
    ends = [end for ratio in measured for end in _interval_ends(ratio)]
    if not ends:
        return ["" for _ in ratios]
    low, high = max(1 / _FARTHEST, min(*ends, 0.98)), min(_FARTHEST, max(*ends, 1.02))
    scale = Scale(low, high, _BAR_EDGE, _BAR_WIDTH - _BAR_EDGE, is_log=True)
    return [_interval_bar(scale, ratio) if ratio.value else "" for ratio in ratios]


def _interval_ends(ratio: Ratio) -> tuple[float, float]:
    """The interval's ends, infinity for one too large for a number; the ratio twice where there is no interval."""
    if ratio.low is None:
        return ratio.value or 1.0, ratio.value or 1.0
    return ratio.low, math.inf if ratio.high is None else ratio.high


def _interval_bar(scale: Scale, ratio: Ratio) -> str:
    """A picture of one ratio: without a dot, and dashed, where the interval is too wide to mean anything."""
    low, high = map(scale, _interval_ends(ratio))
    point, unity, middle = scale(ratio.value or 1.0), scale(1.0), _BAR_HEIGHT / 2
    baseline = _line_element("one", (unity, 0), (unity, _BAR_HEIGHT))
    is_measurable = units.is_measurable(ratio.low, ratio.high)
    span = _line_element("span" if is_measurable else "span unclear", (low, middle), (high, middle))
    dot = _element("circle", "at", cx=point, cy=middle, r=4) if is_measurable else ""
    return (
        f'<svg class="interval" viewBox="0 0 {_BAR_WIDTH} {_BAR_HEIGHT}" role="img">'
        f"{_title_element(f'against the baseline: {value_text(ratio)}')}{baseline}{span}{dot}</svg>"
    )


def completed_by_option(ranking: Ranking, records: Sequence[Record]) -> ByOption:
    """Completed trials of every row; an empty list for a row without any. `records`: those that count."""
    by_option: dict[str, list[Record]] = {row.option: [] for row in ranking.rows}
    for record in records:
        if isinstance(record.outcome, Completed) and record.trial.option in by_option:
            by_option[record.trial.option].append(record)
    return {option: sorted(completed, key=lambda r: r.trial.seed) for option, completed in by_option.items()}


def draw_charts(ranking: Ranking, completed: ByOption) -> list[Chart]:
    """The pictures that the run has figures for."""
    seconds = Axis("training seconds, evaluation excluded", "{:g}".format)
    memory = Axis("memory of the GPU", units.size, from_zero=True)
    power = Axis("power", units.watts, from_zero=True)
    drawn = [
        _pareto_chart(ranking),
        _loss_chart(ranking, completed, "tokens", Axis("training tokens", units.short), lambda p: float(p.tokens)),
        _loss_chart(ranking, completed, "time", seconds, lambda p: p.training_seconds),
        _step_time_chart(ranking, completed),
        *_search_charts(ranking),
        _meter_chart(ranking, completed, "Memory in use over a trial", memory, lambda gpu: gpu.memory_series),
        _meter_chart(ranking, completed, "Power over a trial", power, lambda gpu: gpu.power_series),
    ]
    return [chart for chart in drawn if chart is not None]


@dataclass(frozen=True)
class _Series:
    """One option's line, with the number that says which colour and dash it has."""

    option: str
    kind: int
    points: Sequence[Point]
    band: Sequence[Sequence[Point]] = ()
    """Lower and upper edge of the area around it."""
    ringed: Sequence[tuple[Point, str]] = ()
    """Points that stand out, and what they are."""


def _line_chart(
    heading: str, description: str, axes: tuple[Axis, Axis], series: Sequence[_Series], note: str
) -> Chart | None:
    """A line for each series, over all bands; None where no series has two points."""
    if all(len(line.points) < 2 for line in series):
        return None
    x_values = [x for line in series for x, _ in line.points]
    y_values = [y for line in series for edge in line.band or [line.points] for _, y in edge]
    picture = Picture(heading, description, axes, (x_values, y_values))
    for line in series:
        if line.band:
            picture.band(line.band, line.kind)
    for line in series:
        picture.line(line.points, line.kind)
        for (x, y), words in line.ringed:
            place = {"cx": picture.x(x), "cy": picture.y(y)}
            picture.shapes.append(_element("circle", f"ring s{line.kind}", _title_element(words), **place, r=6))
    return Chart(heading, picture.render(), [(line.option, line.kind) for line in series], note)


def _drawn_options(ranking: Ranking) -> dict[str, int]:
    """Options in the pictures, with their series' number: ranked ones first, those without a figure left out."""
    return {row.option: number for number, row in enumerate([r for r in ranking.rows if r.n][:MOST_DRAWN])}


def _undrawn_note(ranking: Ranking) -> str:
    left = [row.option for row in ranking.rows if row.n][MOST_DRAWN:]
    return f" Not drawn: {one_line(', '.join(left), 300)}." if left else ""


def _loss_chart(
    ranking: Ranking, completed: ByOption, over: str, axis: Axis, x: Callable[[EvaluationPoint], float]
) -> Chart | None:
    """Held-out loss of each option, over the steps that all its seeds evaluated."""
    series = []
    for option, kind in _drawn_options(ranking).items():
        curves = [{p.step: p for p in r.evaluation_curve} for r in completed[option] if r.evaluation_curve]
        steps = sorted(set.intersection(*map(set, curves))) if curves else []
        points_by_step = [[curve[step] for curve in curves] for step in steps]
        means = [sum(map(x, points)) / len(points) for points in points_by_step]
        losses = [[point.loss for point in points] for points in points_by_step]
        averages = [sum(values) / len(values) for values in losses]
        line, *band = (list(zip(means, y, strict=True)) for y in (averages, map(min, losses), map(max, losses)))
        if steps:
            series.append(_Series(option, kind, line, band))
    note = "Line: mean over seeds. Band: from the lowest to the highest seed. Lower is better."
    what = f"{len(series)} options, mean over seeds with the lowest and the highest seed"
    axes = (axis, Axis("nats per token", units.significant))
    return _line_chart(f"Held-out loss against {over}", what, axes, series, note + _undrawn_note(ranking))


def _meter_chart(
    ranking: Ranking, completed: ByOption, heading: str, axis: Axis, read: Callable[[GpuMeters], Series]
) -> Chart | None:
    """A GPU meter over time: of each option the first GPU, with the first completed seed that has readings."""
    series = []
    for option, kind in _drawn_options(ranking).items():
        metered = [record.meters.gpus[0] for record in completed[option] if record.meters and record.meters.gpus]
        first_readings = next((readings for gpu in metered if len(readings := read(gpu)) > 1), None)
        if first_readings:
            series.append(_Series(option, kind, first_readings))
    note = "Of the first rank's GPU with the first completed seed, as the bench sampled it; at most 64 points."
    axes = (Axis("seconds since the launch", "{:g}".format), axis)
    what = f"the first seed of {len(series)} options"
    return _line_chart(heading, what, axes, series, note + _undrawn_note(ranking))


def _step_time_chart(ranking: Ranking, completed: ByOption) -> Chart | None:
    """Quantiles of each option's timed steps in seconds, all seeds together, as boxes."""
    quantiles: dict[str, list[float]] = {}
    for option in _drawn_options(ranking):
        measurements = [r.outcome.measurement for r in completed[option] if isinstance(r.outcome, Completed)]
        if steps := [seconds for measurement in measurements for seconds in measurement.step_seconds]:
            quantiles[option] = [float(q) for q in np.percentile(steps, QUANTILES)]
    if not quantiles:
        return None
    short, left_out = labels(list(quantiles), _NAME_ROOM)
    names = [(float(-number), short[one_line(option)]) for number, option in enumerate(quantiles)]
    picture = Picture(
        "Step times", "quantiles of the timed steps of each option",
        (Axis("seconds per optimizer step", units.seconds, _FAR_APART), Axis("", str)),
        ([q for values in quantiles.values() for q in values], [0.6, 0.4 - len(quantiles)]),
        height=70.0 + 30 * len(quantiles), left=_NAMES, names=names,
    )  # fmt: skip
    legend = [(option, kind) for option, kind in _drawn_options(ranking).items() if option in quantiles]
    for (place, _), (option, kind) in zip(names, legend, strict=True):
        low, first, middle, third, high = map(picture.x, quantiles[option])
        fifth, _, median, _, last = map(units.seconds, quantiles[option])
        y, title = picture.y(place), f"{option}: median {median}, 5th to 95th percentile {fifth} to {last}"
        box = _element("rect", f"box s{kind}", x=first, y=y - 8, width=max(1.5, third - first), height=16)
        whisker = _line_element(f"whisker s{kind}", (low, y), (high, y))
        bar = _line_element("median", (middle, y - 8), (middle, y + 8))
        picture.shapes.append(f"<g>{_title_element(title)}{whisker}{box}{bar}</g>")
    note = (
        "Box: the middle half of all timed steps, its bar the median; whiskers: from the 5th to the 95th "
        "percentile. All seeds together; further left is better."
    )
    return Chart("Step times", picture.render(), legend, f"{note} {left_out}".strip() + _undrawn_note(ranking))


def _pareto_chart(ranking: Ranking) -> Chart | None:
    """Speed against memory; None where fewer than two options have both figures."""
    metric = "peak_device_memory_bytes"
    rows = [row for row in ranking.rows if row.n and row.identity.comparable and not row.control]
    if not rows or any(row.metrics[metric].value is None for row in rows):
        metric = "peak_memory_bytes"
    known = [(row.metrics[metric].value, row.metrics["tokens_per_second"].value, row) for row in rows]
    points = [(memory, speed, row) for memory, speed, row in known if memory and speed]
    if len(points) < 2:
        return None
    unit = 1024.0 ** min(5, max(0, math.floor(math.log(max(memory for memory, _, _ in points), 1024))))
    picture = Picture(
        "Speed against memory", f"{len(points)} options; up and left is better",
        (Axis("memory", lambda v: units.size(v * unit)), Axis("tokens/s", units.short, _FAR_APART)),
        ([memory / unit for memory, _, _ in points], [speed for _, speed, _ in points]),
    )  # fmt: skip
    places = [(picture.x(memory / unit), picture.y(speed), row) for memory, speed, row in points]
    picture.shapes += [_marker(x, y, row) for x, y, row in places]
    taken = [(x - _RADIUS, y - _RADIUS, x + _RADIUS, y + _RADIUS) for x, y, _ in places]
    short, left_out = labels([row.option for _, _, row in places], _NAME_ROOM)
    for x, y, row in places[:_MOST_LABELS]:
        picture.shapes += _placed_name(x, y, short[one_line(row.option)], taken)
    cross = "" if all(row.eligible for _, _, row in points) else _CROSS
    return Chart("Speed against memory", picture.render(), [], f"{_PARETO_NOTE}{cross} {left_out}".strip())


def _marker(x: float, y: float, row: Row) -> str:
    names = ("tokens_per_second", "peak_memory_bytes", "final_loss")
    speed, memory, loss = (row.metrics[name].value for name in names)
    title = f"{row.option}: {units.count(speed)} tokens/s, {units.size(memory)}"
    title = _title_element(title if loss is None else f"{title}, loss {units.significant(loss)}")
    if not row.eligible:
        left, right, top, bottom = x - _ARM, x + _ARM, y - _ARM, y + _ARM
        lines = f"M{left:.1f} {top:.1f}L{right:.1f} {bottom:.1f}M{left:.1f} {bottom:.1f}L{right:.1f} {top:.1f}"
        return _element("path", "marker cross", title, d=lines)
    return _element("circle", f"marker {'full' if row.pareto else 'hollow'}", title, cx=x, cy=y, r=_RADIUS)


def _placed_name(x: float, y: float, name: str, taken: list[_Box]) -> list[str]:
    """A name right, left, above or below its marker, further away where that is taken; none where all is."""
    width = len(name) * _LETTER
    right = WIDTH - 2 * _LETTER  # some words are wider than so many letters of middling width
    for distance in (0.0, _LINE, 2 * _LINE, 3 * _LINE):
        for offset in dict.fromkeys((distance, -distance)):
            for anchor, left in (("start", x + 10), ("end", x - 10 - width), ("middle", x - width / 2)):
                if anchor == "middle" and not distance:
                    continue
                box = (left, y + offset - 8, left + width, y + offset + 6)
                is_taken = any(left < o[2] and o[0] < box[2] and box[1] < o[3] and o[1] < box[3] for o in taken)
                if left >= LEFT and box[2] <= right and box[1] >= 0 and not is_taken:
                    taken.append(box)
                    at = {"start": left, "end": left + width, "middle": x}[anchor]
                    return [_text_element("label", at, y + offset + 4, name, anchor)]
    return []


def _search_charts(ranking: Ranking) -> list[Chart | None]:
    """Speed over the micro-batch size, and the tuning's metric over the one setting that was tuned."""
    search = ranking.search
    if search is None:
        return []
    tuning = [best for best in search.tuning if all(len(trial.values) == 1 for trial in best.tried)]
    path = next((path for best in tuning for trial in best.tried for path in trial.values), "")
    metric = METRICS[tuning[0].metric].title if tuning else ""
    return [
        _search_chart(ranking, search.sizes, "Speed over the micro-batch size"),
        _search_chart(ranking, tuning, f"{metric[:1].upper()}{metric[1:]} over {path}"),
    ]


def _search_chart(ranking: Ranking, searched: Sequence[OptionSearch], heading: str) -> Chart | None:
    kinds, lines = _drawn_options(ranking), []
    for best in searched:
        known = [((float(*t.values.values()), t.value), t) for t in best.tried if t.value is not None]
        ringed = [(point, f"{best.option}: {point[0]:g}, {trial_text(best, t)}") for point, t in known if t.chosen]
        if best.option in kinds and known:
            lines.append(_Series(best.option, kinds[best.option], [point for point, _ in known], ringed=ringed))
    if not lines:
        return None
    metric = METRICS[searched[0].metric]
    path = next(iter(searched[0].tried[0].values))
    show = units.short if metric.better == "more" else units.significant
    axes = Axis(path.rpartition(".")[2], lambda v: f"{v:g}", 0.0), Axis(metric.title, show, _FAR_APART)
    return _line_chart(heading, f"{len(lines)} options", axes, lines, _SEARCH_NOTE)


def trial_text(best: OptionSearch, trial: TriedSetting) -> str:
    """The figure of one trial of a search, or the outcome of one that failed."""
    figure = trial.outcome if trial.value is None else METRICS[best.metric].show(trial.value)
    return f"{figure} (chosen)" if trial.chosen else figure


def attention_chart(option: str, inspection: Inspection) -> Chart:
    """The attention of an option's last layer, mean over heads: a square for each pair of tokens."""
    rows, columns = len(inspection.attention), len(inspection.attention[0])
    title = _title_element(f"Attention of {option}: rows attend to columns")
    size = f"{_MAP_LEFT + _SQUARE * columns + 4} {_ABOVE + _SQUARE * rows + 4}"
    parts = [f'<svg class="picture" viewBox="0 0 {size}" role="img">{title}']
    for number, word in enumerate(inspection.attention_columns[:columns]):
        x, y = round(_MAP_LEFT + _SQUARE * (number + 0.7)), _ABOVE - 6
        parts.append(_element("text", "tick", _token_label(word), x=x, y=y, transform=f"rotate(-60 {x} {y})"))
    for number, weights in enumerate(inspection.attention):
        y, word = _ABOVE + _SQUARE * number, _token_label(inspection.attention_rows[number])
        parts.append(_element("text", "tick", word, x=_MAP_LEFT - 6, y=y + 12, text_anchor="end"))
        for place, weight in enumerate(weights):
            if weight >= 0.01:
                x, style = _MAP_LEFT + _SQUARE * place, f"fill-opacity:{weight:.2f};stroke:none"
                parts.append(_element("rect", "box s0", x=x, y=y, width=15, height=15, style=style))
    note = "Rows attend to columns; drawn after measuring, with the eager kernel."
    return Chart(one_line(option, 120), "".join(parts) + "</svg>", [], note)


def _token_label(word: str) -> str:
    return escape(one_line(word.replace("\n", "\u21b5").strip() or "\u2423", _WORD))
