"""Lines of JSON: what is written comes back as it was, and what would not is refused with its place."""

from __future__ import annotations

import math
import zlib
from datetime import date
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from made_records import MEASUREMENT, make_failure, make_meters, make_record
from msgspec import json
from msgspec.structs import replace

from selectbench.choices import Choices
from selectbench.errors import UserError
from selectbench.gpu.devices import TorchDevice
from selectbench.record import record
from selectbench.record import record as inside
from selectbench.record import record as meters
from selectbench.record import record as sentences
from selectbench.record.record import LOSSES, SETTINGS, SOFTWARE, Completed, Record, Recorded, Trial
from selectbench.record.run_folder import RECORDS, append_record, read_records
from selectbench.record.wire import (
    EVENTS,
    MESSAGES,
    ORDERS,
    AnyMessage,
    CommandOrder,
    Event,
    GaveUp,
    Measure,
    Order,
    Progress,
)  # fmt: skip
from selectbench.suite.job import Job
from selectbench.suite.load import field_texts

LOSS = b'"final_loss":5.5'


def measured(**changes: Any) -> Record:
    return replace(make_record("a", 0), outcome=Completed(measurement=replace(MEASUREMENT, **changes)))


def order() -> Order:
    settings = {"optimizer": {"name": "adamw", "lr": 1e-3}, "micro_batch_size": 2}
    job = {
        "model": {"family": "gpt2", "n_layer": 1, "n_embd": 8, "n_head": 1}, "tokenizer": {"bpe": 300},
        "seq_len": 16, "global_batch_size": 2, "max_steps": 8, "data": {"text": ["-"]},
    }  # fmt: skip
    return Order(
        trial=Trial(
            trial_id="t", option="a", seed=0, settings=SETTINGS.as_json(settings), tried={"optimizer.lr": 1},
        ),
        job=Job.model_validate(job), choices=Choices.model_validate(settings), device="cpu", threads=1,
        world_size=1, data_folder="d", trial_folder="t", weights_folder="w", min_timed_seconds=0.0,
    )  # fmt: skip


@pytest.mark.parametrize("found", [make_record("a", 0, meters=make_meters({})), make_failure("a", 0, "oom")])
def test_a_record_comes_back(found: Record) -> None:
    assert RECORDS.read(RECORDS.write(found)) == found


def test_an_order_comes_back_with_its_job_and_choices() -> None:
    assert ORDERS.read(ORDERS.write(order())) == order()


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    ("place", "found"),
    [
        ("outcome.measurement.first_loss", lambda number: measured(first_loss=number)),
        ("outcome.measurement.final_loss", lambda number: measured(final_loss=number)),
        ("outcome.measurement.step_seconds[1]", lambda number: measured(step_seconds=[0.2, number])),
        ("resolved_config.clip", lambda number: replace(make_record("a", 0), resolved_config={"clip": number})),
    ],
)
def test_no_number_that_is_not_finite_is_written(tmp_path: Path, number: float, place: str, found: Any) -> None:
    with pytest.raises(ValueError) as raised:
        append_record(tmp_path / "records.jsonl", found(number))
    assert str(raised.value) == f"Record can't be written: {number} would be read back as None - at `$.{place}`"
    assert not (tmp_path / "records.jsonl").exists()


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_no_loss_curve_with_such_a_number_is_made(number: float) -> None:
    with pytest.raises(ValueError, match=r"would be read back as None - at `\$\[1\]\[1\]`"):
        LOSSES.as_json([(0, 7.5), (1, number)])


def test_a_loss_curve_comes_back_and_a_damaged_one_is_left_out_or_told_when_asked_for(
    tmp_path: Path,
) -> None:
    points = [(0, 7.5), (3, 6.25)]
    line = RECORDS.write(replace(make_record("a", 0), loss_curve=LOSSES.as_json(points)))
    wrong = line.replace(b"[3,6.25]", b"[3,6,25]")
    forged = wrong[:-1] + b',"crc32":"%08x"}' % zlib.crc32(wrong)
    path = tmp_path / "records.jsonl"
    path.write_bytes(line + b"\n" + wrong + b"\n" + forged + b"\n")
    (whole, damaged), notes = read_records(path)
    assert whole.training_losses() == points
    (note,) = notes
    assert note.startswith("records.jsonl:2: left out: ")
    assert "does not fit: `loss_curve`: " in note
    with pytest.raises(UserError) as raised:
        damaged.training_losses()
    assert str(raised.value).startswith("the record of option a, seed 0 is damaged: `loss_curve`")
    assert "`$[1]`" in str(raised.value)


def test_no_event_or_order_with_such_a_number_is_sent() -> None:
    with pytest.raises(ValueError, match=r"nan would be read back as None - at `\$\.loss`"):
        EVENTS.write(Progress(step=1, of=2, loss=math.nan, tokens_per_second=None))
    choices = order().choices
    optimizer = choices.optimizer.model_copy(update={"lr": math.inf})
    with pytest.raises(ValueError, match=r"inf would be read back as None - at `\$\.choices\.optimizer\.lr`"):
        ORDERS.write(replace(order(), choices=choices.model_copy(update={"optimizer": optimizer})))


@pytest.mark.parametrize(
    ("place", "found"),
    [
        ("Expected `float | null`, got `str` - at `$.outcome.measurement.first_loss`", measured(first_loss="7.7")),
        ("Expected `int`, got `float` - at `$.outcome.measurement.timed_steps`", measured(timed_steps=0.5)),
        ("Invalid enum value 'tired' - at `$.outcome.kind`",
         replace(make_record("a", 0), outcome=record.Failed(kind="tired", detail=""))),  # type: ignore[arg-type]
    ],
)  # fmt: skip
def test_no_value_of_another_type_is_written(place: str, found: Record) -> None:
    with pytest.raises(ValueError) as raised:
        RECORDS.write(found)
    assert str(raised.value) == place


@pytest.mark.parametrize(
    ("said", "instead"),
    [
        ("Number out of range - at `$.outcome.measurement.final_loss`", b"1e999"),
        ("JSON is malformed: invalid character", b"NaN"),
        ("JSON is malformed: invalid character", b"Infinity"),
        ("Expected `float | null`, got `str` - at `$.outcome.measurement.final_loss`", b'"5.5"'),
        ("Expected `float | null`, got `bool` - at `$.outcome.measurement.final_loss`", b"true"),
    ],
)
def test_no_line_with_such_a_value_is_read(tmp_path: Path, said: str, instead: bytes) -> None:
    line = RECORDS.write(make_record("a", 0))
    assert line.count(LOSS) == 1
    path = tmp_path / "records.jsonl"
    path.write_bytes(line.replace(LOSS, b'"final_loss":' + instead) + b"\n" + line + b"\n")
    records, notes = read_records(path)
    assert records == [make_record("a", 0)]
    (note,) = notes
    assert note.startswith(f"records.jsonl:1: left out: a record of schema version 1 that does not fit: {said}")


@pytest.mark.parametrize(
    ("place", "key", "least"),
    [
        ("outcome.measurement.timed_seconds", b'"timed_seconds":10.0', b"0.0"),
        ("outcome.measurement.peak_pss_growth_bytes", b'"peak_pss_growth_bytes":314572800', b"0"),
        ("outcome.measurement.final_loss", b'"final_loss":5.5', b"0.0"),
        ("outcome.measurement.step_seconds[0]", b'"step_seconds":[0.2', b"0.0"),
        ("evaluation_curve[0].loss", b'"loss":6.5', b"0.0"),
        ("meters.gpus[0].peak_device_memory_bytes", b'"peak_device_memory_bytes":9663676416', b"0"),
    ],
)
def test_no_amount_below_nothing_is_read(tmp_path: Path, place: str, key: bytes, least: bytes) -> None:
    point = record.EvaluationPoint(step=60, tokens=122880, training_seconds=12.5, loss=6.5)
    line = RECORDS.write(replace(make_record("a", 0, meters=make_meters({})), evaluation_curve=[point]))
    assert line.count(key) == 1
    name = key[: key.rindex(b":") + 1] + b"[" * key.count(b"[")
    path = tmp_path / "records.jsonl"
    path.write_bytes(line.replace(key, name + least) + b"\n" + line.replace(key, name + b"-1") + b"\n")
    records, notes = read_records(path)
    assert len(records) == 1
    (note,) = notes
    assert note.startswith("records.jsonl:2: left out: a record of schema version 1 that does not fit: Expected")
    assert note.endswith(f" - at `$.{place}`")
    assert ">= 0" in note


def test_no_amount_below_nothing_is_written_but_a_loss_of_own_code_may_be(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r">= 0.* - at `\$\.outcome\.measurement\.training_seconds`"):
        append_record(tmp_path / "records.jsonl", measured(training_seconds=-1e-9))
    own = measured(first_loss=-1.0, last_loss=-2.0)
    assert RECORDS.read(RECORDS.write(own)) == own


@pytest.mark.parametrize("part", [b'"optimizer"', b'"torch"'])
def test_one_bad_byte_in_a_part_that_stays_json_leaves_out_that_line_alone(tmp_path: Path, part: bytes) -> None:
    own = replace(
        make_record("a", 0), software=SOFTWARE.as_json({"torch": "2"}),
        trial=Trial(trial_id="t", option="a", seed=0, settings=SETTINGS.as_json({"optimizer": {"lr": 1}})),
    )  # fmt: skip
    line, path = RECORDS.write(own), tmp_path / "records.jsonl"
    for bad in (part[:-2] + b'\xff"', part[:-2] + b'\x01"', part[:-1]):
        path.write_bytes(line + b"\n" + line.replace(part, bad) + b"\n" + line + b"\n")
        records, notes = read_records(path)
        assert records == [own, own]
        assert [note.partition(" left out")[0] for note in notes] == ["records.jsonl:2:"]


@pytest.mark.parametrize(
    "where", [b'"resolved_config":null', b'"settings":{}', b'"software":{}', b'"status":"completed"']
)
def test_what_is_nested_too_deeply_is_left_out(tmp_path: Path, where: bytes) -> None:
    line, path = RECORDS.write(make_record("a", 0)), tmp_path / "records.jsonl"
    assert line.count(where) == 1
    for levels in (100, 900, 200_000):
        deep = where.partition(b":")[0] + b":" + b'{"a":' * levels + b"1" + b"}" * levels
        path.write_bytes(line.replace(where, deep) + b"\n" + line + b"\n")
        records, notes = read_records(path)
        assert records == [make_record("a", 0)]
        assert notes[0].startswith("records.jsonl:1: left out: ")
        assert len(notes[0]) < 400


def test_a_line_that_is_no_utf_8_is_named(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    path.write_bytes(RECORDS.write(make_record("a", 0)).replace(b'"option":"a"', b'"option":"\xff"') + b"\n")
    records, notes = read_records(path)
    assert records == []
    assert [note.startswith("records.jsonl:1: left out: not JSON") for note in notes] == [True]


@pytest.mark.parametrize("value", [{3}, b"x", date(2026, 1, 1)])
def test_what_json_would_turn_into_another_type_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match=r"would be read back as .* - at `\$\.a\[0\]`"):
        SETTINGS.write({"a": [value]})


def test_what_a_library_hands_over_is_written_as_plain_json() -> None:
    numbers = measured(first_loss=np.float64(0.1), timed_steps=np.int64(50))
    found = replace(numbers, resolved_config={"betas": (0.9, 0.99)})
    read = RECORDS.read(RECORDS.write(found))
    assert read.resolved_config == {"betas": [0.9, 0.99]}
    measurement = read.outcome.measurement  # type: ignore[union-attr]
    assert (type(measurement.first_loss), type(measurement.timed_steps)) == (float, int)
    assert read.outcome == found.outcome
    with pytest.raises(TypeError, match="a object can't be written as JSON"):
        RECORDS.write(replace(found, software=object()))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "text", [b'{"event":"slept"}', b'{"step":1}', b"[]", b'{"event":"gave_up","kind":"tired"}']
)
def test_what_is_no_event_is_refused(text: bytes) -> None:
    with pytest.raises(ValueError):
        EVENTS.read(text)
    assert EVENTS.read(b'{"event":"gave_up","kind":"oom","detail":""}') == GaveUp(kind="oom", detail="")


def test_the_kind_of_an_outcome_and_of_an_event_is_a_key() -> None:
    assert json.decode(RECORDS.write(make_record("a", 0)))["outcome"]["status"] == "completed"
    assert json.decode(RECORDS.write(make_failure("a", 0, "oom")))["outcome"]["status"] == "failed"
    assert json.decode(EVENTS.write(GaveUp(kind="oom", detail="")))["event"] == "gave_up"


def test_every_key_of_a_record_has_a_text() -> None:
    modules = (inside, meters, record, sentences)
    kinds = {kind for module in modules for kind in vars(module).values() if isinstance(kind, type)}
    recorded = [kind for kind in kinds if issubclass(kind, Recorded) and kind is not Recorded]
    assert {Record, Completed, Trial} < set(recorded)
    for kind in recorded:
        assert set(field_texts(kind)) == set(kind.__struct_fields__), kind


def test_what_a_node_measured_on_gpus_comes_back_as_it_was():
    devices = [TorchDevice("0d1c", "00000000:3B:00.0"), TorchDevice(None, None)]
    measured = Measure(timed_windows=[(1.0, 2.0)], training_window=None, devices=devices)
    assert MESSAGES.read(MESSAGES.write(measured)) == measured


@pytest.mark.parametrize("kind", [Event, AnyMessage, Order, CommandOrder, Record])
def test_all_that_is_said_between_processes_is_made_of_structs(kind):
    """A part of a message is a Struct as all others: a plain dataclass has no documented, checked keys."""
    left, seen = [msgspec.inspect.type_info(kind)], set()
    while left:
        one = left.pop()
        assert not isinstance(one, msgspec.inspect.DataclassType), one.cls
        if isinstance(one, msgspec.inspect.StructType):
            if one.cls in seen:
                continue
            seen.add(one.cls)
            left += [field.type for field in one.fields]
        left += [*getattr(one, "types", ()), *getattr(one, "item_types", ())]
        left += filter(None, (getattr(one, name, None) for name in ("item_type", "key_type", "value_type", "type")))
