"""Numbers with their units, as a person reads them. None prints as a dash."""

from __future__ import annotations

import re

DASH = "-"
"""Printed for an unknown number."""
WIDEST = 4.0
"""Upper over lower end of an interval around 1 beyond which its ratio says nothing."""
NOT_MEASURABLE = "not measurable here"
"""Printed for such a ratio."""

_FLOPS = ((1e12, "TFLOP"), (1e9, "GFLOP"), (1e6, "MFLOP"), (1e3, "kFLOP"))
_BINARY = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


def significant(value: float | None, digits: int = 4) -> str:
    """A number with so many significant digits; with a power of ten from 1e7 on and below 1e-4."""
    if value is None:
        return DASH
    if value == 0:
        return "0"
    exponent = int(f"{value:.{digits - 1}e}".partition("e")[2])  # of the rounded value: 99.997 is 100.0
    if exponent >= 7 or exponent < -4:
        return f"{value:.{digits - 1}e}"
    return f"{value:,.{max(0, digits - 1 - exponent)}f}"


def count(value: float | None) -> str:
    """A whole number with thousands separated, `11,420`; below 100 with four significant digits."""
    if value is None:
        return DASH
    if isinstance(value, int) or 99.995 <= abs(value) < 1e15:
        return f"{value:,.0f}" if abs(value) < 1e15 else f"{float(value):.3e}"
    return significant(value)


def short(value: float | None) -> str:
    """A count in few characters, for an axis: `20 k`, `1.5 M`."""
    if value is None:
        return DASH
    for scale, unit in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")):
        if abs(value) >= scale:
            return f"{value / scale:.3g}{unit}"
    return f"{value:.3g}"


def ratio(value: float | None) -> str:
    """`1.07x`; three significant digits where two decimals would show fewer than one."""
    if value is None:
        return DASH
    return f"{value:.2f}x" if 0.1 <= abs(value) < 1e4 or value == 0 else f"{significant(value, 3)}x"


def contains_1(low: float | None, high: float | None) -> bool:
    """Whether a ratio's interval leaves open which side of 1 it is on; so does none, and `high` None: too large."""
    return low is None or (low <= 1 and (high is None or high >= 1))


def is_measurable(low: float | None, high: float | None) -> bool:
    """Whether a ratio's interval means anything or lies to one side of 1; `high` None beside a `low`: too large."""
    if low is None or not contains_1(low, high):
        return True
    return high is not None and low > 0 and high / low <= WIDEST


def ratio_and_range(value: float | None, low: float | None, high: float | None) -> tuple[str, str]:
    """`1.25x` and `1.20x to 1.31x`, with as many decimals as keep the ends apart; no range without an interval."""
    if value is not None and not is_measurable(low, high):
        return NOT_MEASURABLE, ""
    if value is None or low is None or high is None or low == high:
        return ratio(value), ""
    digits = next((n for n in (2, 3, 4) if _end(low, n) != _end(high, n)), 4)
    return _end(value, digits), f"{_end(low, digits)} to {_end(high, digits)}"


def _end(value: float, digits: int) -> str:
    return f"{value:.{digits}f}x" if 0.1 <= abs(value) < 1e4 else ratio(value)


def difference_and_range(value: float, low: float | None, high: float | None, unit: str) -> tuple[str, str]:
    """`-0.030 nats` and `-0.041 to -0.019`, with as many decimals as keep the ends apart."""
    if low is None or high is None or low == high:
        return f"{_signed(value, 3)} {unit}", ""
    digits = next((n for n in (3, 4) if _signed(low, n) != _signed(high, n)), 4)
    ends = [_signed(end, digits) for end in (low, high)]
    return f"{_signed(value, digits)} {unit}", " to ".join(ends) if ends[0] != ends[1] else ""


def _signed(value: float, digits: int) -> str:
    return f"{value:+.{digits}f}" if round(value, digits) else "0"


def size(value: float | None) -> str:
    """Bytes in binary units: `512 B`, `1.50 GiB`."""
    if value is None:
        return DASH
    power = 0
    while abs(value) >= 1024 and power < len(_BINARY) - 1:
        value, power = value / 1024, power + 1
    if power == 0:
        return f"{value:.0f} B"
    return f"{value:,.0f} {_BINARY[power]}" if abs(value) >= 100 else f"{significant(value, 3)} {_BINARY[power]}"


def size_per_second(value: float | None) -> str:
    """A rate of bytes: `1.50 MiB/s`."""
    return DASH if value is None else f"{size(value)}/s"


def seconds(value: float | None) -> str:
    """A measured time of seconds or less: `1.23 ms`, `4.56 s`; from 100 s on as `duration`."""
    if value is None:
        return DASH
    if abs(value) >= 100:
        return duration(value)
    if value == 0 or abs(value) >= 1:
        return f"{significant(value, 3)} s"
    return f"{significant(value * 1e3, 3)} ms" if abs(value) >= 1e-3 else f"{significant(value * 1e6, 3)} us"


_TIME = re.compile(r"\s*([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*(d|h|min|m|s)\s*")
_TIME_UNITS = {"s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}


def seconds_of(text: str) -> float | None:
    """The seconds of `2h`, `90min` or `45 s`; None: the text is no time above 0."""
    match = _TIME.fullmatch(text)
    return float(match[1]) * _TIME_UNITS[match[2]] if match is not None and float(match[1]) > 0 else None


def duration(value: float | None) -> str:
    """A time to wait for, in whole seconds: `42 s`, `3 min 05 s`, `2 h 10 min`, `3 d 04 h`."""
    if value is None:
        return DASH
    if value >= 1e10:
        return f"{value:.3e} s"
    whole = max(0, round(value))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86400} d {whole % 86400 // 3600:02d} h"


def joules(value: float | None) -> str:
    """An energy: `12.3 mJ`, `4.56 J`, `7,890 J`."""
    if value is None:
        return DASH
    if value == 0 or abs(value) >= 1:
        return f"{value:,.0f} J" if abs(value) >= 100 else f"{significant(value, 3)} J"
    return f"{significant(value * 1e3, 3)} mJ" if abs(value) >= 1e-3 else f"{significant(value * 1e6, 3)} uJ"


def watts(value: float | None) -> str:
    """A power: `312 W`, `45.6 W`."""
    if value is None:
        return DASH
    return f"{value:,.0f} W" if abs(value) >= 100 else f"{significant(value, 3)} W"


def usd(value: float | None) -> str:
    """A price in US dollars: `12.34 USD`; three significant digits below 1."""
    if value is None:
        return DASH
    return f"{value:,.2f} USD" if abs(value) >= 1 or value == 0 else f"{significant(value, 3)} USD"


def share(value: float | None) -> str:
    """A share of 1 as a percentage: `41.2%`; two significant digits below 1 %."""
    if value is None:
        return DASH
    return f"{value:.1%}" if abs(value) >= 0.01 or value == 0 else f"{significant(value * 100, 2)}%"


def confidence(alpha: float) -> str:
    """The confidence level of intervals that miss in a share of `alpha`: `96%`, `99.75%`."""
    return f"{100 * (1 - alpha):g}%"


def whole_percent(value: float | None) -> str:
    """A share of 1 as a whole percentage: `41%`."""
    return DASH if value is None else f"{value:.0%}"


def score_difference(value: float | None) -> str:
    """`+1.23`: two decimals, as scores lie between 0 and 100; no difference is `0`."""
    if value is None:
        return DASH
    return f"{value:+.2f}" if value else "0"


def flops(value: float | None) -> str:
    """An amount of arithmetic: `600.0 GFLOP`, `137.5 kFLOP`."""
    if value is None:
        return DASH
    scale, unit = next(((s, u) for s, u in _FLOPS if value >= s), _FLOPS[-1])
    return f"{significant(value / scale)} {unit}"


def flops_per_second(value: float | None) -> str:
    """A rate of arithmetic: `989.4 TFLOP/s`."""
    return DASH if value is None else f"{flops(value)}/s"


def megahertz(value: float | None) -> str:
    """A clock given in hertz: `1,980 MHz`."""
    if value is None:
        return DASH
    return f"{value / 1e6:,.0f} MHz"


def celsius(value: float | None) -> str:
    """A temperature: `64 °C`."""
    return DASH if value is None else f"{value:.0f} °C"
