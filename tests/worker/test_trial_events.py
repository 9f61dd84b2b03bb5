"""What a trial sends, from its start to its end."""

import json
import resource

import pytest
from msgspec.structs import replace

from selectbench.record.wire import EVENTS, Evaluating, Finished, GaveUp, Phase, Progress, Started
from selectbench.worker import recorder
from selectbench.worker.trial import run_trial


def test_events_begin_with_started_and_end_with_finished(trials):
    events = trials.events()
    assert isinstance(events[0], Started)
    assert isinstance(events[-1], Finished)
    phases = [event.phase for event in events if isinstance(event, Phase)]
    assert phases == ["setup", "train", "evaluate"]
    progress = [event for event in events if isinstance(event, Progress)]
    assert progress[-1].step == progress[-1].of == 8
    assert all(EVENTS.read(EVENTS.write(event)) == event for event in events)


def test_an_evaluation_tells_how_far_it_is(trials, monkeypatch):
    monkeypatch.setattr(recorder, "EVALUATION_EVENT_SECONDS", 0.0)
    told = [event for event in trials.events() if isinstance(event, Evaluating)]
    done = [event.done for event in told]
    assert done == sorted(set(done))
    assert len(done) > 1
    assert done[-1] == told[-1].of
    assert all(EVENTS.read(EVENTS.write(event)) == event for event in told)


def test_loss_falls_and_series_are_written(trials, tmp_path):
    finished = trials.finished(job={"max_steps": 40})
    measurement = finished.measurement
    assert measurement.last_loss < measurement.first_loss - 0.5
    assert measurement.final_loss == finished.evaluation_curve[-1].loss
    series = json.loads((tmp_path / "series.json").read_text())
    assert len(series["loss_nats_per_token"]) == len(series["step_seconds"]) == 40
    assert series["loss_nats_per_token"][-1] == measurement.last_loss
    assert series["learning_rate_share_of_peak"][0] == 0.5
    assert measurement.timed_steps == 38
    assert measurement.compile_seconds is None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["series.json", "weights"]


def test_extra_steps_reach_the_time_and_leave_the_quality_alone(trials):
    short = trials.finished(min_timed_seconds=0.0)
    events = trials.events(min_timed_seconds=0.4)
    long = events[-1]
    assert [event.phase for event in events if isinstance(event, Phase)][-1] == "extra"
    assert long.measurement.timed_seconds >= 0.4
    assert long.measurement.timed_steps > short.measurement.timed_steps
    assert long.measurement.final_loss == short.measurement.final_loss
    assert long.loss_curve == short.loss_curve
    assert long.identity == short.identity


def test_a_job_shorter_than_its_warm_up_is_timed_by_extra_steps(trials):
    measurement = trials.finished(job={"max_steps": 1, "lr_schedule": {"name": "constant"}}).measurement
    assert measurement.timed_steps >= 5
    assert measurement.step_time_median_seconds > 0


def test_evaluations_do_not_disturb_the_training(trials):
    often = trials.finished(job={"eval": {"tokens": 500, "every_steps": 3}})
    never = trials.finished(job={"eval": "none"})
    assert [point.step for point in often.evaluation_curve] == [3, 6, 8]
    assert often.loss_curve == never.loss_curve
    assert never.evaluation_curve == []
    assert never.measurement.final_loss is None
    assert never.identity.evaluation_set_sha256 is None


def test_a_huge_learning_rate_diverges(trials, tmp_path):
    last = trials.events(job={"max_steps": 60, "clip_norm": None}, optimizer={"name": "sgd", "lr": 1000.0})[-1]
    assert isinstance(last, GaveUp)
    assert last.kind == "diverged"
    assert "step" in last.detail
    series = json.loads((tmp_path / "series.json").read_text())
    assert len(series["loss_nats_per_token"]) <= 60


def test_memory_that_cannot_be_had_is_oom(trials):
    # A small model with 2**20 rows of vocabulary: the logits of a batch would be 550 GB in one piece, which
    # torch's CPU allocator is refused; the limit makes that so on machines that promise any amount.
    model = {"family": "gpt2", "n_layer": 1, "n_embd": 8, "n_head": 1, "vocab_size": 1 << 20}
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (64 << 30, before[1]))
    try:
        last = trials.events(job={"model": model, "global_batch_size": 4096}, micro_batch_size=4096)[-1]
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
    assert isinstance(last, GaveUp)
    assert last.kind == "oom"
    assert "allocate" in last.detail or "memory" in last.detail


def test_what_is_not_installed_is_unsupported(trials):
    last = trials.events(attention="flash_attention_2", precision="bf16_mixed")[-1]
    assert isinstance(last, GaveUp)
    assert last.kind == "unsupported"
    assert last.detail.startswith("attention flash_attention_2: ")


def test_other_errors_are_the_callers(trials, tmp_path):
    order = replace(trials.order(), data_folder=str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError):
        run_trial(order, lambda event: None)
