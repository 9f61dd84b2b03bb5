"""Speed against memory: filled where no other row dominates, a cross where the row is not eligible."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from html import escape

from selectbench import units
from selectbench.analysis.row import Ranking, Row
from selectbench.report.escape import one_line
from selectbench.report.page.chart import Chart
from selectbench.report.page.svg import LEFT, WIDTH, Picture, wants_log, x_scale, y_scale

_NOTE = (
    "Up and to the left is better. Filled: no other option is shown to be better in speed, memory, energy or "
    "quality without being worse in another by more than matters. Hollow: some option is."
)
_CROSS = " Cross: not eligible, as it fails a constraint or it is open whether it holds one."
_RADIUS, _ARM, _LINE, _LETTER = 6.0, 5.0, 14.0, 7.2
_MOST_LABELS = 30
Box = tuple[float, float, float, float]


@dataclass
class _Room:
    """What of the picture is taken."""

    boxes: list[Box] = field(default_factory=list)

    def is_free(self, box: Box) -> bool:
        left, top, right, bottom = box
        inside = left >= LEFT and right <= WIDTH and top >= 0
        return inside and not any(
            left < other[2] and other[0] < right and top < other[3] and other[1] < bottom for other in self.boxes
        )


def pareto(ranking: Ranking) -> Chart | None:
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
    note = _NOTE + ("" if all(row.eligible for _, _, row in points) else _CROSS)
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
        _name(picture, room, picture.x(memory), picture.y(speed), one_line(row.option, 24))


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


def _name(picture: Picture, room: _Room, x: float, y: float, words: str) -> None:
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
