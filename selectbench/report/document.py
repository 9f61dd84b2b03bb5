"""A report as blocks of plain values, raw until a renderer writes them, and how each value reads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from selectbench import units
from selectbench.suite.metrics import METRICS
from selectbench.text import one_line

UNCLEAN_MARK = "†"
BRIEF_MARK = "‡"
"""Of a figure from short trials alone."""
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
    is_unclean: bool = False
    """Whether every trial behind it was throttled or shared."""
    is_brief: bool = False
    """Whether it is of short trials alone."""


@dataclass(frozen=True)
class Ratio:
    """A ratio to the baseline with its interval; None: not known."""

    value: float | None
    low: float | None = None
    high: float | None = None
    metric: str = ""
    """Whose it is: of some the difference is shown; '': of none."""
    base: float | None = None
    """What it is a ratio to."""
    is_brief: bool = False
    """Whether it is of short trials alone."""

    def texts(self, *, is_short: bool = False) -> tuple[str, str]:
        """The ratio or the difference, and its interval; the latter is empty where there is none, or no room."""
        ends = (None, None) if is_short and units.is_measurable(self.low, self.high) else (self.low, self.high)
        if self.metric:
            point, between = METRICS[self.metric].against(self.value, *ends, self.base)
        else:
            point, between = units.ratio_and_range(self.value, *ends)
        return point + f" {BRIEF_MARK}" * self.is_brief, between


@dataclass(frozen=True)
class Amount:
    """Any other number, with the function that writes it, such as one of `selectbench.units`."""

    value: float | None
    show: Callable[[float | None], str]
    is_words: bool = False
    """Whether it may take several lines."""


Value = str | Figure | Ratio | Amount


@dataclass(frozen=True)
class Stack:
    """A value with a remark, which stands in smaller letters below it where there are such."""

    value: Value
    remark: str


Cell = Value | Stack


@dataclass(frozen=True)
class Column:
    """A heading and how the cells below it stand."""

    heading: str
    align: Literal["left", "right"] = "left"
    help: str = ""
    """Shown where a pointer rests on the heading."""
    names_row: bool = False
    """Whether its cells say what their row is about; without any the first column does."""
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
    """Of each row; empty: none stands out."""


def table(
    caption: str,
    left: Iterable[str],
    right: Iterable[str],
    rows: Iterable[Sequence[Cell]],
    *,
    is_titled: bool = False,
) -> Table:
    """A table with plain columns. `left`, `right`: the headings of the columns by how their cells stand."""
    columns = [*(Column(heading) for heading in left), *(Column(heading, "right") for heading in right)]
    return Table(columns, list(rows), caption, is_titled)


@dataclass(frozen=True)
class Paragraph:
    """A paragraph."""

    text: Text
    is_strong: bool = False


@dataclass(frozen=True)
class Listing:
    """A list; `is_warning`: of what a reader must not miss."""

    items: Sequence[Text]
    is_warning: bool = False


@dataclass(frozen=True)
class Code:
    """Lines as they are; with a caption they are for those who look closer, and may be folded away."""

    text: str
    caption: Text = ""


@dataclass(frozen=True)
class Card:
    """The answer to one question."""

    title: str
    headline: str
    sentence: str
    confidence: str
    is_sure: bool


@dataclass(frozen=True)
class Cards:
    """Answers side by side."""

    cards: Sequence[Card]


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
    """Text whose words are the darker, the larger their share of 1 is, for readers who can see it."""

    heading: str
    words: Sequence[tuple[str, float, str]]
    """Word, share, and what to show where a pointer rests on it."""


@dataclass(frozen=True)
class Details:
    """What only a reader who can unfold it is shown: the same in more detail, or pictures."""

    summary: str
    blocks: Sequence[Table | Listing | Charts | Shaded]


Block = Paragraph | Listing | Table | Code | Cards | Charts | Details


@dataclass(frozen=True)
class Section:
    """Blocks under a heading."""

    name: str
    """Where links lead to."""
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
    """Before the first section."""


def warnings(lines: Sequence[str]) -> list[Section]:
    """The section of what a reader must not miss; none where there is nothing."""
    return [Section("warnings", "Warnings", [Listing(lines, is_warning=True)])] if lines else []


def labels(names: Sequence[str], room: int, most: int | None = None) -> tuple[dict[str, str], str]:
    """By name a short one, and a note on what was left out of all, '' for nothing; each stays another.

    Where one has more characters than `room`, they are without what all share, and then cut to `most` (the room).
    """
    names = [one_line(name) for name in names]
    shown, left_out = dict(zip(names, names, strict=True)), list[str]()
    if max(map(len, names), default=0) > room:
        split = {name: name.split(" + ") for name in names}
        usual = Counter(map(len, split.values())).most_common(1)[0][0]
        parts = [split[name] for name in names if len(split[name]) == usual]  # a grid's; a control has its own name
        told, left_out = _told_apart(parts)
        found = {" + ".join(own): " + ".join(words) for own, words in zip(parts, told, strict=True)}
        if all(found.values()) and len({*found.values(), *(shown.keys() - found.keys())}) == len(shown):
            shown |= found
        else:
            left_out = []
    note = f"Left out of the names, as all have it: {', '.join(left_out)}." if left_out else ""
    return _cut(shown, most or room), note


def _told_apart(names: Sequence[Sequence[str]]) -> tuple[list[list[str]], list[str]]:
    """The parts of names without words, and without keys of values, that all have at the same place."""
    told: list[list[str]] = [[] for _ in names]
    left_out: list[str] = []
    for column in zip(*names, strict=True):
        words = [part.split(" ") for part in column]
        own = words if len({len(word) for word in words}) == 1 else [[part] for part in column]
        kept: list[list[str]] = [[] for _ in names]
        run: list[str] = []
        for place in zip(*own, strict=True):
            keys = {word.partition("=")[0] for word in place}
            shared = len(set(place)) == 1
            has_key = len(keys) == 1 and all("=" in word for word in place)
            run += [place[0]] if shared else [f"{place[0].partition('=')[0]}="] if has_key else []
            if not shared:
                left_out, run = [*left_out, *([" ".join(run)] if run else [])], []
            for mine, word in zip(kept, place, strict=True):
                mine += [] if shared else [word.partition("=")[2] if has_key else word]
        left_out += [" ".join(run)] if run else []
        for mine, part in zip(told, kept, strict=True):
            mine += [" ".join(part)] if part else []
    return told, left_out


def _cut(shown: Mapping[str, str], most: int) -> dict[str, str]:
    """To `most` characters: the end goes, or the middle where ends are what differs, or a number comes."""
    for head in (most - 3, most // 2, 4):
        tail = most - 3 - head
        cut = {n: s if len(s) <= most else s[:head] + "..." + s[len(s) - tail :] for n, s in shown.items()}
        if len(set(cut.values())) == len(set(shown.values())):
            return cut
    return {n: f"{s[: max(0, most - 8)]}... #{number}" for number, (n, s) in enumerate(shown.items(), start=1)}


def joined(values: Sequence[float | None], show: Callable[[float | None], str], between: str = " to ") -> str:
    """Several numbers in one cell, such as the two ends of an interval; a dash where there are none."""
    return between.join(map(show, values)) or units.DASH


def value_text(value: Value) -> str:
    """Text is made harmless and put on one line; what is not known is a dash."""
    match value:
        case str():
            return one_line(value)
        case Figure():
            mark = f" {UNCLEAN_MARK}" * value.is_unclean + f" {BRIEF_MARK}" * value.is_brief
            return METRICS[value.metric].show(value.value) + mark
        case Ratio():
            point, ends = value.texts()
            return f"{point} ({ends})" if ends else point
        case Amount():
            return value.show(value.value)


def spread(figure: Figure) -> str:
    """`±0.71`; two digits are enough where the unit is not part of the figure. Empty where it is not known."""
    deviation, show = figure.standard_deviation, METRICS[figure.metric].unit.show
    if deviation is None:
        return ""
    if deviation == 0 or show in (units.count, units.significant):
        return f"±{units.significant(deviation, 2)}"
    return f"±{show(deviation)}"
