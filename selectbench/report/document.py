"""A report as blocks of plain values, which every renderer shows in its own way.

Text is raw: names and log lines are made harmless, and figures get their units, where a renderer writes them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

RowKind = Literal["first", "ranked", "barred", "failed", ""]
"""How a row of the ranking stands there: `barred` completed without a rank."""


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


@dataclass(frozen=True)
class Ratio:
    """A ratio to the baseline with its interval; None: not known."""

    value: float | None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Amount:
    """Any other number, with the function of `selectbench.units` that writes it."""

    value: float | None
    show: Callable[[float | None], str]


@dataclass(frozen=True)
class Interval:
    """Two ends; None: not known."""

    low: float | None
    high: float | None
    show: Callable[[float | None], str]


@dataclass(frozen=True)
class Place:
    """A row's rank, or the range that it may lie in where others are tied with it."""

    number: int
    """Of the row in its table, from 1."""
    rank: int | None
    """None: not ranked."""
    ties: int = 0


@dataclass(frozen=True)
class Seeds:
    """Seeds completed; `planned` is None where the suite's number goes without saying."""

    done: int
    planned: int | None = None


@dataclass(frozen=True)
class NotReached:
    """A loss that was not reached with some of the seeds."""

    missed: int
    seeds: int


Value = str | Figure | Ratio | Amount | Interval | Place | Seeds | NotReached


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
    option: str | None
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
