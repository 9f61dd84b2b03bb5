"""Names made harmless and figures with their units, as cells of any table."""

from __future__ import annotations

import re

from selectbench import units
from selectbench.report.document import Amount, Figure, Interval, NotReached, Place, Ratio, Seeds, Value
from selectbench.suite.metrics import METRICS

# Names and log lines come from users: made harmless before they stand in a terminal or a report.


_ESCAPES = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)")


def clean(text: str) -> str:
    """The text without terminal escapes and control characters; line ends stay."""
    if text.isprintable():  # so are most, and an escape begins with a character that is not
        return text
    kept = _ESCAPES.sub("", text).replace("\r\n", "\n").replace("\r", "\n")
    return "".join(c if c == "\n" or c.isprintable() else " " for c in kept)


def one_line(text: str, most: int | None = None) -> str:
    """The text on one line, cut to `most` characters with an ellipsis."""
    line = " ".join(clean(text).split())
    return line if most is None or len(line) <= most else line[: max(0, most - 3)] + "..."


def first_line(text: str, most: int | None = None) -> str:
    """What a detail says before its traceback or log."""
    return one_line(text.strip().partition("\n")[0], most)


# A value as a person reads it, the same in every medium: one line, with its unit.


UNCLEAN_MARK = "†"


def shown(value: Value) -> str:
    """Text is made harmless and put on one line; what is not known is a dash."""
    match value:
        case str():
            return one_line(value)
        case Figure():
            return METRICS[value.metric].show(value.value) + (f" {UNCLEAN_MARK}" if value.is_unclean else "")
        case Ratio():
            return units.ratio_with_range(value.value, value.low, value.high)
        case Amount():
            return value.show(value.value)
        case Interval():
            return f"{value.show(value.low)} to {value.show(value.high)}"
        case Place():
            return _place(value)
        case Seeds():
            return str(value.done) if value.planned is None else f"{value.done} of {value.planned}"
        case NotReached():
            return f"not reached with {value.missed} of {value.seeds} seeds"


def _place(place: Place) -> str:
    """The rank, or all that it may be: `2-6`, as what is not told apart may stand in either order."""
    if place.rank is None:
        return units.DASH
    return f"{place.rank}-{place.rank + place.ties}" if place.ties else str(place.rank)


def spread(figure: Figure) -> str:
    """`±0.71`; two digits are enough where the unit is not part of the figure. Empty where it is not known."""
    deviation, show = figure.standard_deviation, METRICS[figure.metric].unit.show
    if deviation is None:
        return ""
    if deviation == 0 or show in (units.count, units.significant):
        return f"±{units.significant(deviation, 2)}"
    return f"±{show(deviation)}"


def sort_key(value: Value) -> float | int | None:
    """What a reader who sorts a column sorts by; None: the text, or nothing is known."""
    match value:
        case Place():
            return value.number
        case Seeds():
            return value.done
        case Figure() | Ratio() | Amount():
            return value.value
        case _:
            return None
