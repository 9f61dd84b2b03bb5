"""A report as blocks of plain values, which a renderer escapes and writes, and the text of each value."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from selectbench import units
from selectbench.analysis.result import NamedVerdict
from selectbench.suite.metrics import METRICS
from selectbench.text import one_line

UNCLEAN_MARK = "†"
"""Marks a figure whose trials were all throttled or shared."""
BRIEF_MARK = "‡"
"""Marks a figure that comes from short trials alone."""
RowKind = Literal["first", "ranked", "barred", "failed", "reference", "better", "worse", "undecided", ""]
"""How a row of a table stands out; in the ranking `barred` completed without a rank."""


@dataclass(frozen=True)
class Literally:
    """A part of a sentence that is typed or named as it stands, such as a command."""

    text: str


Text = str | tuple[str | Literally, ...]
"""One sentence or more."""


@dataclass(frozen=True)
class Figure:
    """The value of a metric, in the catalogue's unit; None: not known."""

    metric: str
    value: float | None
    standard_deviation: float | None = None
    """From seed to seed; None: not known or not shown."""
    mark: str = ""
    """What follows it where its trials were not as others."""


@dataclass(frozen=True)
class Ratio:
    """A ratio to the baseline with its interval; None: not known."""

    value: float | None
    low: float | None = None
    high: float | None = None
    metric: str = ""
    """The metric that it compares: of some metrics the difference is shown instead; '': of none."""
    base: float | None = None
    """The value of the metric that it is a ratio to."""
    mark: str = ""
    """What follows it, as in `Figure`."""

    def texts(self, *, is_short: bool = False) -> tuple[str, str]:
        """The ratio or the difference, and its interval: empty where there is none, or no room (`is_short`)."""
        ends = (None, None) if is_short and units.is_measurable(self.low, self.high) else (self.low, self.high)
        if self.metric:
            point, interval = METRICS[self.metric].against(self.value, *ends, self.base)
        else:
            point, interval = units.ratio_and_range(self.value, *ends)
        return _marked(point, self.mark), interval


@dataclass(frozen=True)
class Amount:
    """Any other number, with the function that makes text of it, such as one of `selectbench.units`."""

    value: float | None
    show: Callable[[float | None], str]
    is_words: bool = False
    """Whether its text is words, which may take several lines."""


Value = str | Figure | Ratio | Amount


@dataclass(frozen=True)
class Stack:
    """A value with a remark, which stands below it in smaller letters where a medium has them."""

    value: Value
    remark: str


Cell = Value | Stack


@dataclass(frozen=True)
class Column:
    """A heading and how the cells below it are aligned."""

    heading: str
    align: Literal["left", "right"] = "left"
    help: str = ""
    """Shown where a pointer rests on the heading."""
    names_row: bool = False
    """Whether its cells name their row; in a table without such a column those of the first one do."""
    droppable: bool = False
    """Whether it may be left out where there is no room."""
    has_bars: bool = False
    """Whether its ratios are drawn too, all on one scale."""


@dataclass(frozen=True)
class Table:
    """Rows of cells under their columns."""

    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]
    caption: str
    is_titled: bool = False
    """Whether the caption says what the section's text does not: it is then shown everywhere."""
    is_sortable: bool = False
    """Whether a reader may want the rows in another order."""
    kinds: Sequence[RowKind] = ()
    """The kind of each row; empty: no row stands out."""


def table(
    caption: str,
    left: Iterable[str],
    right: Iterable[str],
    rows: Iterable[Sequence[Cell]],
    *,
    is_titled: bool = False,
    kinds: Sequence[RowKind] = (),
) -> Table:
    """A table with plain columns. `left`, `right`: the headings of the columns that are aligned so."""
    columns = [*(Column(heading) for heading in left), *(Column(heading, "right") for heading in right)]
    return Table(columns, list(rows), caption, is_titled, kinds=kinds)


@dataclass(frozen=True)
class Paragraph:
    """A paragraph."""

    text: Text
    is_strong: bool = False


@dataclass(frozen=True)
class Listing:
    """A list; `is_warning`: its items are what a reader must not miss."""

    items: Sequence[Text]
    is_warning: bool = False


@dataclass(frozen=True)
class Code:
    """Lines that are shown as they are; with a caption they are details, which may be folded away."""

    text: str
    caption: Text = ""


@dataclass(frozen=True)
class Cards:
    """Answers side by side, each to one question."""

    cards: Sequence[NamedVerdict]


@dataclass(frozen=True)
class Chart:
    """A picture as an SVG element, with its legend (name and number of the series) and how to read it."""

    heading: str
    svg: str
    legend: Sequence[tuple[str, int]]
    note: str


@dataclass(frozen=True)
class Charts:
    """Pictures side by side, for readers who can see them."""

    charts: Sequence[Chart]


@dataclass(frozen=True)
class Shaded:
    """Text whose words are the darker, the larger their share of 1, for readers who can see it."""

    heading: str
    words: Sequence[tuple[str, float, str]]
    """Word, share, and what to show where a pointer rests on it."""


@dataclass(frozen=True)
class Details:
    """More detail, or pictures, shown only where a reader can unfold it."""

    summary: str
    blocks: Sequence[Table | Listing | Charts | Shaded]


Block = Paragraph | Listing | Table | Code | Cards | Charts | Details


@dataclass(frozen=True)
class Section:
    """Blocks under a heading."""

    name: str
    """The anchor that links lead to."""
    heading: str
    blocks: Sequence[Block]
    is_folded: bool = False
    """Whether most readers will not need it."""


@dataclass(frozen=True)
class Document:
    """A whole report."""

    title: str
    sections: Sequence[Section]
    question: str = ""
    answer: str = ""
    is_decided: bool = False
    """Whether the answer names one option as the best."""
    facts: Sequence[tuple[str, str]] = ()
    """What a reader wants to know of the run first."""
    opening: Sequence[Block] = ()
    """Blocks before the first section."""


def warnings(lines: Sequence[str]) -> list[Section]:
    """The section of warnings; no section where there are none."""
    return [Section("warnings", "Warnings", [Listing(lines, is_warning=True)])] if lines else []


def labels(names: Sequence[str], room: int, most: int | None = None) -> tuple[dict[str, str], str]:
    """Short names, all distinct, by full name, and a note on the words that were left out of all, '' for none.

    If a name has more characters than `room`, words that all share are left out, and what is left of each is cut to
    `most` characters (None: `room`).
    """
    names = [one_line(name) for name in names]
    short_names, left_out = dict(zip(names, names, strict=True)), list[str]()
    if max(map(len, names), default=0) > room:
        parts = {name: name.split(" + ") for name in names}
        usual = Counter(map(len, parts.values())).most_common(1)[0][0]
        grid = [parts[name] for name in names if len(parts[name]) == usual]  # a control has a name of another form
        distinct, left_out = _without_shared_words(grid)
        shorter = {" + ".join(whole): " + ".join(rest) for whole, rest in zip(grid, distinct, strict=True)}
        others = short_names.keys() - shorter.keys()
        if all(shorter.values()) and len({*shorter.values(), *others}) == len(short_names):
            short_names |= shorter
        else:
            left_out = []
    note = f"Left out of the names, as all have it: {', '.join(left_out)}." if left_out else ""
    return _cut(short_names, most or room), note


def _without_shared_words(names: Sequence[Sequence[str]]) -> tuple[list[list[str]], list[str]]:
    """The parts of names without the words, and the keys of values, that all have at the same place, and these."""
    distinct: list[list[str]] = [[] for _ in names]
    left_out: list[str] = []
    for parts in zip(*names, strict=True):
        words = [part.split(" ") for part in parts]
        pieces = words if len({len(part) for part in words}) == 1 else [[part] for part in parts]
        rests: list[list[str]] = [[] for _ in names]
        shared: list[str] = []
        for place in zip(*pieces, strict=True):
            keys = {word.partition("=")[0] for word in place}
            is_shared = len(set(place)) == 1
            has_key = len(keys) == 1 and all("=" in word for word in place)
            shared += [place[0]] if is_shared else [f"{place[0].partition('=')[0]}="] if has_key else []
            if not is_shared:
                left_out, shared = [*left_out, *([" ".join(shared)] if shared else [])], []
            for rest, word in zip(rests, place, strict=True):
                rest += [] if is_shared else [word.partition("=")[2] if has_key else word]
        left_out += [" ".join(shared)] if shared else []
        for name, rest in zip(distinct, rests, strict=True):
            name += [" ".join(rest)] if rest else []
    return distinct, left_out


def _cut(names: Mapping[str, str], most: int) -> dict[str, str]:
    """The names cut to `most` characters and still distinct: at the end, else in the middle, else numbered."""
    for head in (most - 3, most // 2, 4):
        tail = most - 3 - head
        cut = {n: s if len(s) <= most else s[:head] + "..." + s[len(s) - tail :] for n, s in names.items()}
        if len(set(cut.values())) == len(set(names.values())):
            return cut
    return {n: f"{s[: max(0, most - 8)]}... #{number}" for number, (n, s) in enumerate(names.items(), start=1)}


def joined(values: Sequence[float | None], show: Callable[[float | None], str], separator: str = " to ") -> str:
    """Several numbers in one cell, such as the two ends of an interval; a dash where there are none."""
    return separator.join(map(show, values)) or units.DASH


def value_text(value: Value) -> str:
    """A value as text: words without control characters on one line, a dash for what is not known."""
    match value:
        case str():
            return one_line(value)
        case Figure():
            return _marked(METRICS[value.metric].show(value.value), value.mark)
        case Ratio():
            point, ends = value.texts()
            return f"{point} ({ends})" if ends else point
        case Amount():
            return value.show(value.value)


def _marked(text: str, mark: str) -> str:
    return f"{text} {mark}" if mark else text


def spread(figure: Figure) -> str:
    """The deviation, `±0.71`, with two digits where the unit is no part of the figure; '' where it is not known."""
    deviation, show = figure.standard_deviation, METRICS[figure.metric].unit.show
    if deviation is None:
        return ""
    if deviation == 0 or show in (units.count, units.significant):
        return f"±{units.significant(deviation, 2)}"
    return f"±{show(deviation)}"
