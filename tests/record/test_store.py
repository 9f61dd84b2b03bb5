"""records.jsonl: what is written is read, and what cannot be read is named."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_records import make_failure, make_record
from msgspec.structs import replace

from selectbench.errors import UserError
from selectbench.record.record import decimate
from selectbench.record.run_folder import (
    RECORDS,
    append_record,
    last_attempts,
    line_with_checksum,
    read_lines,
    read_records,
)


def test_what_is_appended_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    written = [make_record("a", seed) for seed in range(3)]
    for record in written:
        append_record(path, record)
    assert read_records(path) == (written, [])


def test_any_digit_that_changes_is_noticed_and_lines_without_a_checksum_are_counted(tmp_path: Path) -> None:
    path, old = tmp_path / "records.jsonl", RECORDS.write(make_record("a", 1))
    line = line_with_checksum(make_record("a", 0))
    digits = [place for place, byte in enumerate(line[: line.rindex(b'"crc32"')]) if chr(byte).isdigit()]
    for place in digits:
        other = b"%d" % ((line[place] - 47) % 10)
        path.write_bytes(line[:place] + other + line[place + 1 :] + b"\n" + line + b"\n" + old + b"\n")
        records, notes, unchecked = read_lines(path)
        assert (records, unchecked) == ([make_record("a", 0), make_record("a", 1)], 1)
        assert [note.partition(" left out: ")[0] for note in notes] == ["records.jsonl:1:"]
    assert len(digits) > 100


def test_a_record_that_another_program_wrote_is_left_out_until_its_checksum_is_taken_out(
    tmp_path: Path,
) -> None:
    path, content = tmp_path / "records.jsonl", json.loads(line_with_checksum(make_record("a", 0)))
    path.write_text(json.dumps(content) + "\n")
    records, notes = read_records(path)
    assert (records, len(notes)) == ([], 1)
    assert "take `crc32` out of it" in notes[0]
    path.write_text(json.dumps({key: value for key, value in content.items() if key != "crc32"}) + "\n")
    records, notes, unchecked = read_lines(path)
    assert ([record.trial.option for record in records], notes, unchecked) == (["a"], [], 1)


def test_a_pipe_in_place_of_the_records_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "records.jsonl")
    with pytest.raises(UserError, match="it is no file"):
        read_records(tmp_path / "records.jsonl")


def test_a_missing_file_has_no_records(tmp_path: Path) -> None:
    assert read_records(tmp_path / "records.jsonl") == ([], [])


@pytest.mark.parametrize("kept", [1, 40, 200])
def test_a_torn_line_is_named_and_the_next_record_is_whole(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "records.jsonl"
    first, second = make_record("a", 0), make_record("a", 1)
    append_record(path, first)
    with path.open("ab") as stream:
        stream.write(RECORDS.write(second)[:kept])
    append_record(path, second)
    records, notes = read_records(path)
    assert records == [first, second]
    assert len(notes) == 1
    assert notes[0].startswith("records.jsonl:2: left out")


def test_foreign_lines_are_named(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    path.write_text('{"loss": 3}\n[1, 2]\n\n"text"\n\x00\n')
    records, notes = read_records(path)
    assert records == []
    assert [note.split(":")[1] for note in notes] == ["1", "2", "4", "5"]
    assert "not a record of selectbench" in notes[0]


STOPPED = "the process that wrote it was stopped while writing"
AGAIN = "; `selectbench run` runs a trial again that no other line tells of"


def test_only_a_last_line_without_an_end_was_torn(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    line = RECORDS.write(make_record("a", 0))
    path.write_bytes(b"rubbish\n" + line + b"\n" + line[:40])
    assert read_records(path)[1] == [
        f"records.jsonl:1: left out: not JSON{AGAIN}",
        f"records.jsonl:3: left out: not a whole line of JSON ({STOPPED}){AGAIN}",
    ]


def test_many_lines_that_do_not_fit_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    path.write_bytes(b"rubbish\n" * 5000 + RECORDS.write(make_record("a", 0)) + b"\n")
    records, notes = read_records(path)
    assert len(records) == 1
    assert notes[9:] == [
        f"records.jsonl:10: left out: not JSON{AGAIN}",
        "records.jsonl: and 4,990 more lines that do not fit",
    ]


def test_an_older_schema_is_read_and_named_or_left_out_and_named(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    old = json.loads(RECORDS.write(make_record("a", 0)))
    old["schema_version"] = 0
    older = {key: value for key, value in old.items() if key != "wall_seconds"}
    path.write_text(json.dumps(old) + "\n" + json.dumps(older) + "\n")
    records, notes = read_records(path)
    assert len(records) == 1
    assert "schema version 0" in notes[0]
    assert "wall_seconds" in notes[1]


def test_a_newer_schema_is_left_out_and_named(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    newer = {**json.loads(RECORDS.write(make_record("a", 0))), "schema_version": 99}
    path.write_text(json.dumps(newer) + "\n")
    records, notes = read_records(path)
    assert records == []
    assert "schema version 99 is newer" in notes[0]


def test_a_key_of_another_version_does_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    path.write_bytes(RECORDS.write(make_record("a", 0)).removesuffix(b"}") + b',"novelty":1}\n')
    assert read_records(path) == ([make_record("a", 0)], [])
    late = make_failure("a", 0, "timeout", "not done")
    path.write_bytes(RECORDS.write(late).replace(b'"detail":', b'"cpu_seconds":20.5,"detail":') + b"\n")
    assert read_records(path) == ([late], [])


def test_where_nothing_can_be_written_it_says_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot write"):
        append_record(tmp_path / "missing" / "records.jsonl", make_record("a", 0))
    with pytest.raises(UserError, match="cannot write: No space left"):
        append_record(Path("/dev/full"), make_record("a", 0))


def test_the_last_attempt_counts(tmp_path: Path) -> None:
    first = make_record("a", 0)
    second = replace(first, attempt=2)
    again = replace(second, started_at="2026-01-03T00:00:00Z")
    assert list(last_attempts([first, second]).values()) == [second]
    for order in ([first, second, again], [again, second, first], [second, again, first]):
        assert list(last_attempts(order).values()) == [again]


def test_an_interrupted_attempt_takes_no_completed_ones_place() -> None:
    completed, other = make_record("a", 0), make_failure("a", 0, "crashed")
    interrupted = replace(make_failure("a", 0, "interrupted"), attempt=2)
    third = replace(completed, attempt=3)
    assert list(last_attempts([completed, interrupted]).values()) == [completed]
    assert list(last_attempts([interrupted, completed]).values()) == [completed]
    assert list(last_attempts([other, interrupted]).values()) == [interrupted]
    assert list(last_attempts([completed, interrupted, third]).values()) == [third]


@given(st.lists(st.integers()), st.integers(min_value=2, max_value=50))
def test_decimating_keeps_the_ends_and_the_order(values: list[int], most: int) -> None:
    kept = decimate(list(enumerate(values)), most)
    assert len(kept) == min(len(values), most)
    assert kept == sorted(set(kept))
    if values:
        assert (kept[0], kept[-1]) == ((0, values[0]), (len(values) - 1, values[-1]))
