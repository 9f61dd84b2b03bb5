import io
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any, cast

import pytest
from made_records import make_failure, make_record, make_suite, speed
from msgspec.structs import replace
from rich.console import Console

from selectbench import units
from selectbench.launch.display import (
    Display,
    LiveDisplay,
    PlainDisplay,
    RunningTrial,
    TimeLeft,
    make_display,
    picture,
)
from selectbench.launch.run import Stage
from selectbench.record.wire import Evaluating
from selectbench.suite.suite import Suite

DONE = make_record("a", 0, **speed(11_420)).outcome
OOM = make_failure("a", 0, "oom", "CUDA out of memory [red]\nmore").outcome
UNSUPPORTED = make_failure("a", 0, "unsupported").outcome


class Clock:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def suite_of(count: int, **more: object) -> Suite:
    options = ((f"o{i}", {"optimizer": {"name": "adamw", "lr": 1e-3 * (i + 1)}}) for i in range(count))
    return make_suite(*options, **more)


def begin(display: Display, suite: Suite, done: Mapping[str, int]) -> None:
    """The contest of the suite."""
    planned = {option.name: len(suite.seeds) for option in suite.options}
    before = [make_record(option, n, **speed(11_420)) for option, number in done.items() for n in range(number)]
    display.run_started(suite.name, planned, before)


def a_console(width: int = 80, height: int = 24, terminal: bool = False) -> Console:
    return Console(file=io.StringIO(), width=width, height=height, force_terminal=terminal)


def output(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_plain_lines_name_start_progress_and_end() -> None:
    console, clock = a_console(), Clock()
    display = PlainDisplay(console, clock)
    begin(display, make_suite("a", seeds=[0, 1]), {})
    display.trial_started("a", 0, 1, 2)
    display.phase_changed("train")
    for second in range(25):
        clock.now = second
        display.progress(second, 50, 7.0 - second / 10, 1000.0)
        display.tick()
    clock.now = 50
    display.trial_ended("a", 0, DONE, 50.0)
    display.trial_started("a", 1, 2, 2)
    display.trial_ended("a", 1, OOM, 1.0)
    display.close()
    assert output(console).splitlines() == [
        "precision: 2 trials",
        "trial 1 of 2: a, seed 0: started",
        "trial 1 of 2: a, seed 0: train 10/50, loss 6.000, 1,000 tokens/s; 1 min 30 s left",
        "trial 1 of 2: a, seed 0: train 20/50, loss 5.000, 1,000 tokens/s; 1 min 20 s left",
        "a, seed 0: completed, 11,420 tokens/s, loss 5.500 in 50 s; 1 of 2 done; 50 s left",
        "trial 2 of 2: a, seed 1: started; 50 s left",
        "a, seed 1: failed: oom: CUDA out of memory [red] in 1 s; 2 of 2 done; 0 s left",
    ]


def test_each_lane_is_told_of_by_its_number() -> None:
    console, clock = a_console(), Clock()
    display = PlainDisplay(console, clock)
    display.lanes = 2
    begin(display, make_suite("a", "b", seeds=[0, 1]), {})
    for lane, option in ((0, "a"), (1, "b")):
        with display.on_lane(lane):
            display.trial_started(option, lane, 1 + 2 * lane, 4)
            display.phase_changed("train")
    clock.now = 20
    for lane in (0, 1):
        with display.on_lane(lane):
            display.progress(10 + lane, 40, 5.0, 1000.0)
            display.tick()
    assert "lane 1: trial 1 of 4: a, seed 0: train 10/40, loss 5.000, 1,000 tokens/s" in output(console)
    assert "lane 2: trial 3 of 4: b, seed 1: train 11/40" in output(console)
    console = a_console(width=60)
    console.print(picture(display, 60, 24))
    lines = output(console).splitlines()
    assert [line[:30] for line in lines if "lane" in line] == [
        "lane 1: trial 1 of 4: a, seed ", "lane 2: trial 3 of 4: b, seed "
    ]  # fmt: skip
    assert max(map(len, lines)) <= 60
    with display.on_lane(1):
        display.trial_ended("b", 1, DONE, 40.0)
    assert list(display.runs) == [0]
    assert display.done == 1


def test_a_resumed_run_counts_what_was_done_before() -> None:
    console = a_console()
    display = PlainDisplay(console, Clock())
    begin(display, make_suite("a", ("b", {"precision": {"name": "tf32"}})), {"a": 3, "b": 1})
    display.trial_started("b", 1, 5, 6)
    display.trial_ended("b", 1, DONE, 7.0)
    assert "precision: 6 trials, 4 of them done before" in output(console)
    assert "5 of 6 done; 11 s left" in output(console)  # b's took 15 s before


def test_a_resumed_run_shows_the_speed_and_failures_of_what_was_done_before() -> None:
    state = Display(Clock())
    before = [make_record("a", 0, **speed(11_420)), *(make_failure(option, 1, "oom") for option in ("a", "b"))]
    state.run_started("precision", {"a": 3, "b": 3}, before)
    console = a_console()
    console.print(picture(state, 80, 24))
    rows = [line.split() for line in output(console).splitlines()]
    assert ["a", "2/3", "1", "11,420"] in rows
    assert ["b", "1/3", "1", "-"] in rows


@pytest.mark.parametrize("live", [False, True])
def test_what_is_unsupported_is_said_once_of_each_option(live: bool) -> None:
    console = a_console(width=120, terminal=live)
    display = LiveDisplay(console, Clock()) if live else PlainDisplay(console, Clock())
    begin(display, make_suite("a", "b", "c", seeds=[0, 1, 2]), {})
    for seed in (0, 1, 2):
        for option in ("a", "b"):
            display.trial_ended(
                option, seed, make_failure(option, seed, "unsupported", "needs a cuda device").outcome, 0.0
            )
        display.trial_ended("c", seed, OOM, 1.0)
    display.close()
    text = output(console)
    for option in ("a", "b"):
        line = f"{option}: unsupported: needs a cuda device; none of its trials is run"
        assert text.count(line) == text.count(f"{option}: unsupported") == 1
        assert f"{option}, seed" not in text
    assert text.count("failed: oom") == 3
    assert "3 of 3" in text  # trials that never run are not counted
    assert "precision: 9 trials" in text or live


def test_what_was_unsupported_before_a_resume_is_not_counted() -> None:
    state = Display(Clock())
    before = [replace(make_failure("a", 0, "unsupported"), wall_seconds=0.0), make_record("b", 0, **speed(100))]
    state.run_started("precision", {"a": 3, "b": 3}, before)
    assert (state.done, state.planned, list(state.tallies)) == (1, 3, ["b"])


def test_the_time_left_of_a_stage_before_the_contest_says_so() -> None:
    console, clock = a_console(), Clock()
    display = PlainDisplay(console, clock)
    display.run_started("precision", {"a": 2}, [], before_contest=True)
    display.trial_started("a", 0, 1, 2)
    display.trial_ended("a", 0, DONE, 10.0)
    assert "1 of 2 done; 10 s left before the contest" in output(console)
    display.run_started("precision", {"a": 2}, [])
    display.trial_ended("a", 0, DONE, 10.0)
    assert output(console).rstrip().endswith("1 of 2 done; 10 s left")


@pytest.mark.parametrize(("before", "left"), [({"o0": 3, "o1": 1}, 20.0), ({"o0": 2, "o1": 2}, 20.0)])
def test_trials_to_come_after_a_resume(before: dict[str, int], left: float) -> None:
    state = Display(Clock())
    begin(state, suite_of(2), before)
    state.time_left.walls = {"o0": [10.0], "o1": [10.0]}
    assert state.time_left.seconds() == left


def running(
    option: str, elapsed: float, *reports: tuple[int, float], of: int = 100
) -> tuple[list[RunningTrial], float]:
    """A trial whose clock began with it, and the moment; `reports`: steps done and the moment."""
    first, last = (reports[0], reports[-1]) if reports else (None, None)
    return [RunningTrial(option, seed=0, number=1, of=1, began=0.0, steps=of, first=first, last=last)], elapsed


def test_time_left_takes_each_options_own_mean_then_the_running_trial_then_the_others() -> None:
    left = TimeLeft({"slow": 2, "fast": 2, "new": 1})
    assert left.seconds(*running("slow", 0.0)) is None
    assert left.seconds(*running("slow", 30.0, (0, 0.0), (50, 30.0))) == 5 * 60 - 30
    left.ended("slow", 100.0, completed=True)
    left.ended("fast", 10.0, completed=True)
    assert left.seconds(*running("slow", 0.0)) == 100 + 10 + 55
    assert left.seconds(*running("slow", 40.0, (0, 0.0), (50, 40.0))) == 60 + 10 + 55
    # Over the mean of its option: what its own steps still take.
    assert left.seconds(*running("slow", 120.0, (0, 0.0), (75, 120.0))) == 40 + 10 + 55
    # Half of the new one's steps in 20 s; it is expected as long as that, though no trial of it has ended.
    assert left.seconds(*running("new", 20.0, (0, 0.0), (50, 20.0))) == 20 + 100 + 10
    assert left.seconds() == 100 + 10 + 55


def slow_run(state: Display, clock: Clock, seconds_per_step: float, told: Callable[[], None]) -> None:
    """Two options with a trial of 24 s each, then one of 60 steps that take so long each, told as they end."""
    for option in ("o0", "o1"):
        state.trial_started(option, 0, 1, 3)
        state.phase_changed("train")
        clock.now += 24
        state.trial_ended(option, 0, DONE, 24.0, 0.0)
    state.trial_started("o2", 0, 3, 3)
    state.phase_changed("train")
    start = clock.now
    for second in range(int(60 * seconds_per_step)):
        clock.now = start + second
        if second % seconds_per_step == 0:
            state.progress(int(second // seconds_per_step), 60, 5.0, 100.0)
        told()


def test_a_trial_ten_times_slower_than_the_others_tells_its_own_time_left() -> None:
    clock = Clock()
    state = Display(clock)
    begin(state, suite_of(3, seeds=[0]), {})
    said: list[str] = []
    slow_run(state, clock, 4.0, lambda: said.append(state.time_left_text()))
    # From its second report on, four seconds after the first, what is left of 240 s; never the others' 24 s.
    assert [text for second, text in enumerate(said) if second % 4 == 0 and second > 0] == [
        f"{units.duration(240 - second)} left" for second in range(4, 240, 4)
    ]
    # Before that it can't be known; the others' time counts down, and what is over it counts up again.
    assert said[0] == "24 s left"


def test_plain_lines_tell_a_slow_trial_its_own_time_left() -> None:
    console, clock = a_console(), Clock()
    display = PlainDisplay(console, clock)
    begin(display, suite_of(3, seeds=[0]), {})
    slow_run(display, clock, 40.0, display.tick)
    lines = [line.rpartition("; ")[2] for line in output(console).splitlines() if "train" in line]
    assert len(lines) > 200
    # 60 steps of 40 s, a line every 10 s after the start.
    assert [lines[i - 1] for i in (8, 61, 121)] == [f"{units.duration(2400 - 10 * i)} left" for i in (8, 61, 121)]


def test_the_time_left_stands_still_where_a_report_is_overdue() -> None:
    trial, _ = running("a", 0.0, (0, 0.0), (10, 10.0))
    assert [trial[0].steps_left_seconds(now) for now in (10.0, 10.5, 11.0, 60.0)] == [90, 89.5, 89, 89]


def test_compiling_before_the_first_report_is_no_part_of_the_pace() -> None:
    left = TimeLeft({"a": 2})
    trial = running("a", 103.0, (3, 93.0), (13, 103.0))
    assert left.seconds(*trial) == 87 + (103 + 87)


def test_what_completed_trials_took_after_their_last_step_is_still_to_come() -> None:
    clock = Clock()
    state = Display(clock)
    begin(state, make_suite("a"), {})
    state.trial_started("a", 0, 1, 3)
    state.phase_changed("train")
    state.progress(0, 60, None, None)
    clock.now = 30.0
    state.progress(60, 60, None, None)
    state.phase_changed("evaluate")
    clock.now = 40.0
    state.trial_ended("a", 0, DONE, 40.0, 0.0)
    state.trial_started("a", 1, 2, 3)
    state.phase_changed("train")
    state.progress(0, 60, None, None)
    clock.now = 55.0
    state.progress(30, 60, None, None)
    assert state.time_left_text() == "1 min 05 s left"  # 15 s of steps, 10 of evaluation, and a third trial of 40
    clock.now = 70.0
    state.progress(60, 60, None, None)
    clock.now = 76.0
    assert state.time_left_text() == "44 s left"
    state.progress(60, 60, None, None)  # of steps added for timing: told, and no further step
    clock.now = 100.0
    assert state.time_left_text() == "40 s left"  # it is over its time and has no steps left: the third trial alone


def test_the_start_of_a_trial_server_is_paid_once() -> None:
    clock = Clock()
    state = Display(clock)
    begin(state, make_suite("a"), {})
    state.trial_started("a", 0, 1, 3)
    clock.now = 30.0  # of imports
    state.phase_changed("train")
    state.progress(0, 60, None, None)
    clock.now = 35.0
    state.progress(30, 60, None, None)
    assert state.time_left_text() == "25 s left"  # half of this trial, and two more of ten seconds
    state.trial_ended("a", 0, DONE, 40.0, 30.0)
    assert state.time_left_text() == "20 s left"


def test_trials_that_could_not_run_say_nothing_of_the_others() -> None:
    left = TimeLeft({"tf32": 2, "fp32": 2})
    left.ended("tf32", 0.0, completed=False)
    assert left.seconds() is None
    left.ended("fp32", 10.0, completed=True)
    assert left.seconds() == 10.0


@pytest.mark.parametrize(("width", "height"), [(80, 24), (160, 40), (30, 8), (12, 6)])
@pytest.mark.parametrize("options", [1, 3, 200])
def test_the_picture_fits_the_terminal(width: int, height: int, options: int) -> None:
    clock = Clock()
    state = Display(clock)
    begin(state, suite_of(options), {})
    running = f"o{options // 2}"
    state.trial_started(running, 2, 1, 3 * options)
    state.phase_changed("train")
    state.progress(0, 60, None, None)
    clock.now = 10
    state.progress(30, 60, 5.4, 11_234.0)
    console = a_console(width, height)
    console.print(picture(state, width, height))
    lines = output(console).splitlines()
    assert len(lines) < height
    assert all(len(line) <= width for line in lines)
    assert height < 8 or any(line.startswith(f"> {running}") for line in lines)
    assert any(line.startswith("train 30/60") for line in lines)
    if width >= 80:
        assert "train 30/60, loss 5.400, 11,234 tokens/s" in output(console)
        assert "left" in output(console)


def test_the_live_table_counts_and_keeps_failures_and_leaves_one_line() -> None:
    console, clock = a_console(terminal=True), Clock()
    display = LiveDisplay(console, clock)
    begin(display, make_suite("a", seeds=[0, 1]), {})
    display.trial_started("a", 0, 1, 2)
    display.trial_ended("a", 0, OOM, 1.0)
    display.trial_started("a", 1, 2, 2)
    clock.now = 1.0
    display.phase_changed("train")
    display.progress(30, 60, 5.4, None)
    display.tick()
    display.trial_ended("a", 1, DONE, 2.0)
    display.close()
    display.close()
    text = output(console)
    assert "a, seed 0: failed: oom: CUDA out of memory [red]" in text
    assert "train 30/60" in text
    assert "2/2" in text
    assert text.rstrip().endswith("2 of 2 trials have an outcome, 1 failed")


def test_the_live_table_is_drawn_at_most_eight_times_a_second() -> None:
    console, clock = a_console(terminal=True), Clock()
    display = LiveDisplay(console, clock)
    begin(display, make_suite("a", seeds=[0]), {})
    display.trial_started("a", 0, 1, 1)
    for step in range(1000):
        clock.now = step / 1000
        display.progress(step, 1000, None, None)
        display.tick()
    display.close()
    assert 5 <= output(console).count("trial 1 of 1") <= 10


def test_a_terminal_gets_the_live_table_and_a_file_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    assert isinstance(make_display(a_console(terminal=True)), LiveDisplay)
    assert isinstance(make_display(a_console()), PlainDisplay)
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(make_display(a_console(terminal=True)), PlainDisplay)


def test_progress_before_any_trial_and_closing_before_the_start_are_harmless() -> None:
    for display in (LiveDisplay(a_console(terminal=True)), PlainDisplay(a_console())):
        display.progress(1, 2, None, None)
        display.tick()
        display.close()


HIDE, SHOW = "\x1b[?25l", "\x1b[?25h"
"""What a terminal is told of its cursor."""


def test_every_stage_of_a_run_draws_and_the_terminal_is_given_back() -> None:
    console = a_console(terminal=True)
    display = LiveDisplay(console, Clock())
    for stage in ("a lr=0.1", "a"):
        begin(display, make_suite(stage, seeds=[0]), {})
        display.trial_started(stage, 0, 1, 1)
        display.trial_ended(stage, 0, DONE, 1.0)
    display.close()
    text = output(console)
    assert "trial 1 of 1: a lr=0.1" in text
    assert text.count("trial 1 of 1: a,") == 1
    assert text.count(HIDE) == text.count(SHOW) == 1
    assert text.rindex(SHOW) > text.rindex(HIDE)


def evaluating_display() -> tuple[Clock, Display]:
    """Half of a trial's 60 steps took 30 s; its evaluation begins. Another trial of the option follows."""
    clock = Clock()
    state = Display(clock)
    begin(state, make_suite("a", seeds=[0, 1]), {})
    state.trial_started("a", 0, 1, 2)
    state.phase_changed("train")
    state.progress(0, 60, None, None)
    for step in (15, 30):
        clock.now = float(step)
        state.progress(step, 60, None, None)
    state.phase_changed("evaluate")
    return clock, state


def shown_seconds(state: Display) -> float:
    seconds = state.seconds_left()
    assert seconds is not None
    return seconds


def test_an_evaluation_shows_how_far_it_is_and_the_time_left_does_not_rise_in_it() -> None:
    clock, state = evaluating_display()
    seen = [shown_seconds(state)]
    for second in range(40):
        clock.now = 30.0 + second
        if second % 4 == 3:
            state.handle(Evaluating(done=second, of=40, what="sequences"))
        seen.append(shown_seconds(state))
    assert seen == sorted(seen, reverse=True)
    assert state.running is not None
    assert state.running.figures().startswith("evaluate 39/40 sequences")
    state.handle(Evaluating(done=1, of=8, what="texts"))
    assert state.running.figures().startswith("evaluate 1/8 texts")


def test_a_trial_that_is_saved_after_its_evaluation_makes_the_time_left_rise_in_neither() -> None:
    clock, state = evaluating_display()
    seen = [shown_seconds(state)]
    for phase in ("evaluate", "save"):
        state.phase_changed(phase)
        for _ in range(30):
            clock.now += 1.0
            seen.append(shown_seconds(state))
    assert seen == sorted(seen, reverse=True)


def test_an_evaluation_on_the_way_is_expected_again() -> None:
    """30 s for 30 steps, 10 s of evaluation: what is left is 30 s of steps and a third as much again."""
    clock, state = evaluating_display()
    clock.now = 40.0
    state.phase_changed("train")
    assert state.running is not None
    state.progress(31, 60, None, None)
    assert state.running.steps_left_seconds(40.0) == pytest.approx(29 * 40 / 31)
    clock.now = 55.0
    state.progress(45, 60, None, None)
    assert state.running.steps_left_seconds(55.0) == pytest.approx(15 * (1 + 10 / 45))


def test_trials_that_can_not_run_here_have_no_number_of_their_own() -> None:
    names = {
        "a0": None,
        "b0": "needs a cuda device",
        "c0": None,
        "a1": None,
        "b1": "needs a cuda device",
        "c1": None,
    }
    trials: list[Any] = [SimpleNamespace(trial=SimpleNamespace(trial_id=name, option=name)) for name in names]
    plan = SimpleNamespace(trials=trials, planned=lambda name: SimpleNamespace(unsupported=names[name]))
    to_run = [(trial, 1) for trial in trials[1:]]  # the first one has its outcome
    numbers, of = Stage("contest", cast("Any", SimpleNamespace(plan=plan)), to_run, 1, []).numbers()
    assert of == 4
    assert [numbers[name] for name in ("c0", "a1", "c1")] == [2, 3, 4]
