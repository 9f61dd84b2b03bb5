"""Pictures of what was learnt: attention as a grid of squares, the loss of each token as the colour behind it."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from selectbench import units
from selectbench.analysis.row import Ranking
from selectbench.record.inside import Inside
from selectbench.report.counting import Counting
from selectbench.report.escape import clean, one_line
from selectbench.report.learnt import first_looks, said, score_rows
from selectbench.report.score_differences import HEADS, difference_notes, difference_rows

_SQUARE, _LEFT, _TOP = 16.0, 110.0, 96.0
_WORD = 14
_DARKEST_NATS = 8.0
_MOST_MAPS = 3


def learnt(ranking: Ranking, done: Counting) -> dict[str, Any] | None:
    """By the template's names; None where the records hold no look inside and no scores."""
    heads, rows, signatures = score_rows(done)
    looks = first_looks(done)
    if not rows and not looks:
        return None
    return {
        "heads": heads, "rows": [[one_line(cell, 120) for cell in row] for row in rows],
        "signatures": [one_line(line) for line in signatures],
        "difference_heads": HEADS, "difference_notes": difference_notes(ranking),
        "differences": [[one_line(cell, 120) for cell in row] for row in difference_rows(ranking)],
        "samples": [
            {"prompt": one_line(one.prompt, 300), "reference": one_line(one.reference, 300),
             "said": [(one_line(option, 120), one_line(words, 300)) for option, words in one.by_option]}
            for one in said(looks)
        ],
        "coloured": [
            {"option": one_line(option, 120), "tokens": _coloured(inside), "mean": _mean(inside)}
            for option, inside in looks.items() if inside.tokens
        ],
        "maps": [
            {"option": one_line(option, 120), "svg": attention_map(option, inside)}
            for option, inside in list(_with_attention(looks).items())[:_MOST_MAPS]
        ],
    }  # fmt: skip


def _with_attention(looks: Mapping[str, Inside]) -> dict[str, Inside]:
    return {option: inside for option, inside in looks.items() if inside.attention}


def _mean(inside: Inside) -> str:
    return units.significant(sum(inside.token_losses) / len(inside.token_losses), 3)


def _coloured(inside: Inside) -> list[dict[str, str]]:
    """Each token with the share of the darkest colour, in percent."""
    return [
        {"text": _visible(word), "share": f"{min(1.0, nats / _DARKEST_NATS):.0%}", "nats": f"{nats:.2f} nats"}
        for word, nats in zip(inside.tokens, inside.token_losses, strict=True)
    ]


def _visible(word: str) -> str:
    return clean(word.replace("\n", "\u21b5")).replace("\n", " ")[:40]


def attention_map(option: str, inside: Inside) -> str:
    """A square for each pair of tokens, the darker the more is attended to."""
    rows, columns = len(inside.attention), len(inside.attention[0])
    width, height = _LEFT + _SQUARE * columns + 4, _TOP + _SQUARE * rows + 4
    title = escape(one_line(f"Attention of {option}: rows attend to columns"))
    parts = [f'<svg class="picture" viewBox="0 0 {width:.0f} {height:.0f}" role="img"><title>{title}</title>']
    for number, word in enumerate(inside.attention_columns[:columns]):
        x = _LEFT + _SQUARE * (number + 0.7)
        parts.append(
            f'<text class="tick" x="{x:.0f}" y="{_TOP - 6:.0f}" transform="rotate(-60 {x:.0f} {_TOP - 6:.0f})">'
            f"{_short(word)}</text>"
        )
    for number, weights in enumerate(inside.attention):
        y = _TOP + _SQUARE * number
        word = _short(inside.attention_rows[number])
        parts.append(f'<text class="tick" x="{_LEFT - 6:.0f}" y="{y + 12:.0f}" text-anchor="end">{word}</text>')
        parts += [
            f'<rect class="box s0" x="{_LEFT + _SQUARE * place:.0f}" y="{y:.0f}" width="15" height="15" '
            f'style="fill-opacity:{weight:.2f};stroke:none"/>'
            for place, weight in enumerate(weights)
            if weight >= 0.01
        ]
    return "".join(parts) + "</svg>"


def _short(word: str) -> str:
    return escape(one_line(word.replace("\n", "\u21b5").strip() or "\u2423", _WORD))
