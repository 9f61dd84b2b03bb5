"""What the commands do, for Python and notebooks: `selectbench.run`, `plan`, `load` and `compare`."""

from __future__ import annotations

import json
import signal
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from msgspec.structs import asdict

from selectbench.analysis.gate import Compared
from selectbench.analysis.metrics import derive, observe, state_of
from selectbench.analysis.result import Ranking, ScoreDifference
from selectbench.analysis.summary import Crossing, counted, summarise
from selectbench.errors import ExitCode, UserError
from selectbench.launch.display import Display, NotebookDisplay, make_display
from selectbench.launch.preparation import Outlook, Request, budget_of, prepare_all, preview
from selectbench.launch.publish import COMMAND, StoredRun, compare_runs, read_run
from selectbench.launch.site import read_site
from selectbench.launch.trial import StopRequest
from selectbench.record.record import Completed, Failed, Record
from selectbench.record.run_folder import PAGE, find_run
from selectbench.report.document import Document, Literally, Paragraph, Section
from selectbench.report.files import render_html
from selectbench.report.sections import report, summary
from selectbench.report.terminal import (
    HarmlessConsole,
    compared_document,
    plan_document,
    print_compared,
    print_plan,
    print_ranking,
)
from selectbench.suite.document import Written
from selectbench.suite.metrics import SECONDS_TO_LOSS, names_of
from selectbench.suite.suite import Suite

if TYPE_CHECKING:
    from types import FrameType

    import pandas as pd

Kind = Literal["trials", "options", "curves", "scores"]
AnySuite = str | Path | Mapping[str, Any]
"""A suite file, a shipped suite's name, YAML text, or what such a text means."""
_SHOWN = ("ranking", "warnings", "verdicts", "pictures", "scores", "failures")
"""Sections of a report that a notebook shows."""


class Shown:
    """What a notebook shows of something: its document by the report's renderer, and the terminal's text."""

    def documents(self) -> Sequence[Document]:
        """One below the other."""
        raise NotImplementedError

    def print_to(self, console: HarmlessConsole) -> None:
        """As the command prints it."""
        raise NotImplementedError

    def _repr_html_(self) -> str:
        return "\n".join(render_html(one, is_fragment=True) for one in self.documents())

    def __repr__(self) -> str:
        console = HarmlessConsole(file=StringIO(), width=100, force_jupyter=False, color_system=None)
        self.print_to(console)
        return console.file.getvalue().rstrip()  # type: ignore[attr-defined, no-any-return]

    def __str__(self) -> str:
        return repr(self)


class ShownRanking(Shown, Ranking):
    """A ranking that a notebook shows."""

    def documents(self) -> Sequence[Document]:
        """The table, and what there is to say of it."""
        return [summary(self, "page")]

    def print_to(self, console: HarmlessConsole) -> None:
        """As `report` does."""
        print_ranking(console, self)


@dataclass(frozen=True)
class Run(Shown):
    """A run that was read; nothing of it is written."""

    folder: Path
    stored: StoredRun

    @property
    def suite(self) -> Suite:
        """The question."""
        return self.stored.suite

    @property
    def records(self) -> list[Record]:
        """Every attempt of every trial."""
        return self.stored.records

    @property
    def environment(self) -> dict[str, Any]:
        """environment.json."""
        return self.stored.environment

    @cached_property
    def ranking(self) -> ShownRanking:
        """The answer, computed from the records."""
        return ShownRanking.model_construct(**dict(self.stored.ranking()))

    def documents(self) -> Sequence[Document]:
        """The first sections of the run's report, charts among them."""
        stored = self.stored
        parts = (stored.suite, self.ranking, stored.counted, stored.environment)
        whole = report(*parts, COMMAND, "page", stored.unchecked)
        more = Paragraph(("The whole report: ", Literally(str(self.folder / PAGE))))
        shown = [section for section in whole.sections if section.name in _SHOWN]
        return [replace(whole, sections=[*shown, Section("more", "More", [more])])]

    def print_to(self, console: HarmlessConsole) -> None:
        """As `report` does."""
        print_ranking(console, self.ranking)

    def to_pandas(self, what: Kind = "trials") -> pd.DataFrame:
        """Trials (option x seed, missing ones too), options as ranked, curves in long form, differences of scores.

        Metrics are float columns in SI units by their names, NaN where unknown. Raises ValueError for another word.
        """
        import pandas as pd

        makers = {"trials": self._trials, "options": self._options, "curves": self._curves,
                  "scores": self._scores}  # fmt: skip
        if what not in makers:
            raise ValueError(f"to_pandas({what!r}): expected one of {', '.join(map(repr, makers))}")
        columns, rows = makers[what]()
        frame = pd.DataFrame(rows, columns=columns)
        numbers = [name for name in columns if _is_number(name, names_of(self.suite.job))]
        return frame.astype(dict.fromkeys(numbers, "float64"))

    def __repr__(self) -> str:
        done = sum(row.n for row in self.ranking.rows)
        return f"Run({str(self.folder)!r}: {done} completed trials of {len(self.suite.options)} options)"

    def _counting(self) -> dict[tuple[str, int], Record]:
        return {(r.trial.option, r.trial.seed): r for r in counted(self.records)}

    def _trials(self) -> tuple[list[str], list[dict[str, Any]]]:
        found, planned = self._counting(), {row.option: row.planned for row in self.ranking.rows}
        reached = {summary.name: summary.reached for summary in summarise(self.suite, self.records)[0]}
        rows: list[dict[str, Any]] = []
        for number, seed in enumerate(self.suite.seeds):
            for option in [option.name for option in self.suite.options]:
                if (option, seed) in found:
                    crossing = reached.get(option, {}).get(seed)
                    rows.append(self._trial(found[option, seed], crossing))
                elif number < planned[option]:
                    rows.append({"option": option, "seed": seed, "status": "missing"})
        return [*_TRIAL, *names_of(self.suite.job)], rows

    def _trial(self, record: Record, crossing: Crossing | None) -> dict[str, Any]:
        state = state_of(record)
        row: dict[str, Any] = {
            "option": record.trial.option, "seed": record.trial.seed, "round": record.round, "status": "completed",
            "gpu_state": state.verdict if state else None, "wall_seconds": record.wall_seconds,
            "started_at": record.started_at, "trial_id": record.trial.trial_id,
        }  # fmt: skip
        if isinstance(record.outcome, Failed):
            outcome = record.outcome
            return row | {"status": "failed", "failure_kind": outcome.kind, "failure_detail": outcome.detail}
        seconds = None if crossing is None else crossing.seconds
        return row | derive(observe(record, self.suite)) | {SECONDS_TO_LOSS: seconds}

    def _options(self) -> tuple[list[str], list[dict[str, Any]]]:
        rows = []
        for row in self.ranking.rows:
            own: dict[str, Any] = {name: getattr(row, name) for name in _OPTION}
            for name, metric in row.metrics.items():
                own |= {name: metric.value, f"{name}_ratio": metric.ratio_to_baseline,
                        f"{name}_ratio_low": metric.ratio_low, f"{name}_ratio_high": metric.ratio_high}  # fmt: skip
            rows.append(own)
        figures = [
            f"{name}{part}"
            for name in names_of(self.suite.job)
            for part in ("", "_ratio", "_ratio_low", "_ratio_high")
        ]
        return [*_OPTION, *figures], rows

    def _scores(self) -> tuple[list[str], list[dict[str, Any]]]:
        return list(ScoreDifference.model_fields), [found.model_dump() for found in self.ranking.score_differences]

    def _curves(self) -> tuple[list[str], list[dict[str, Any]]]:
        rows: list[dict[str, Any]] = []
        for (option, seed), record in self._counting().items():
            if not isinstance(record.outcome, Completed):
                continue
            own = {"option": option, "seed": seed}
            rows += [
                {**own, "kind": "training", "step": step, "loss": loss} for step, loss in record.training_losses()
            ]
            rows += [{**own, "kind": "heldout", **asdict(point)} for point in record.evaluation_curve]
        return ["option", "seed", "kind", "step", "tokens", "training_seconds", "loss"], rows


_TRIAL = ("option", "seed", "round", "status", "failure_kind", "failure_detail", "gpu_state", "wall_seconds",
          "started_at", "trial_id")  # fmt: skip
_OPTION = ("option", "rank", "status", "eligible", "n", "planned", "pareto")
_NUMBERS = frozenset({"wall_seconds", "tokens", "training_seconds", "loss", "difference", "low", "high", "p"})


def _is_number(column: str, metrics: Sequence[str]) -> bool:
    stem = column.removesuffix("_low").removesuffix("_high").removesuffix("_ratio")
    return column in _NUMBERS or stem in metrics


def load(run: str | Path, results: str | Path = "results") -> Run:
    """The run of a folder, or of `SUITE@latest` or `SUITE@previous` in `results`. Raises UserError."""
    folder = find_run(run, Path(results))
    return Run(folder, read_run(folder))


@dataclass(frozen=True, repr=False)
class Plan(Shown):
    """What a run would do."""

    outlook: Outlook

    @property
    def seconds(self) -> float | None:
        """What all trials are expected to take; None: not known."""
        known = [cost.seconds for cost in self.outlook.costs]
        return None if None in known else sum(seconds for seconds in known if seconds is not None)

    def documents(self) -> Sequence[Document]:
        """The options, what each trial does, what it takes, and what cannot run here."""
        own = self.outlook
        return [plan_document(own.plan, own.estimate, own.notes, own.costs)]

    def print_to(self, console: HarmlessConsole) -> None:
        """As `plan` does."""
        own = self.outlook
        print_plan(console, own.plan, own.estimate, own.notes, own.costs, own.slurm)


class Comparison(Shown, list[Compared]):
    """Runs against one of the same suite, in the order in which they were named."""

    def documents(self) -> Sequence[Document]:
        """One for each run."""
        return [compared_document(one) for one in self]

    def print_to(self, console: HarmlessConsole) -> None:
        """As `compare` does."""
        for one in self:
            print_compared(console, one)


def compare(reference: str | Path | Run, *runs: str | Path | Run, results: str | Path = "results") -> Comparison:
    """What differs between runs of a suite, and how every figure changed. Raises UserError."""
    first, *others = (run.folder if isinstance(run, Run) else run for run in (reference, *runs))
    return Comparison(compare_runs(first, others, Path(results)))


def plan(suite: AnySuite, **settings: Any) -> Plan:
    """What a run would do; keywords are those of `request`. Raises UserError."""
    asked = request(suite, **settings)
    return Plan(preview(asked, _display().note))


def run(
    suite: AnySuite, *, fresh: bool = False, retry_failed: bool = False, rerun_unclean: bool = False,
    **settings: Any,
) -> Run:  # fmt: skip
    """Run what has no outcome yet; a complete run of the same is shown, `fresh` runs it anew.

    Other keywords are those of `request`. Raises UserError, and KeyboardInterrupt where the stop button or Ctrl-C
    ended it: the records are whole, and the same call goes on.
    """
    from selectbench.launch.run import run as run_suite  # which not every system has what it needs for

    if threading.current_thread() is not threading.main_thread():
        raise UserError("selectbench.run: the stop button is heard in the main thread alone: call it there")
    asked = request(suite, **settings)
    if read_site(asked.site, asked.lanes).launcher == "slurm":
        raise UserError("selectbench.run: a run under Slurm is submitted by the command, selectbench run --site")
    display = _display()
    result = run_suite(
        prepare_all(asked, display.note), asked.results, lambda: display, fresh=fresh, retry_failed=retry_failed,
        rerun_unclean=rerun_unclean, again=lambda _: "show", notify=display.note, make_stop=_CellStop,
    )  # fmt: skip
    if result.exit_code == ExitCode.INTERRUPTED:
        raise KeyboardInterrupt(f"{result.folder}: every record is kept; the same call goes on where this stopped")
    return Run(result.folder, read_run(result.folder))


def request(
    suite: AnySuite, *, results: str | Path = "results", profile: str | None = None,
    settings: Mapping[str, Any] | Sequence[str] = (), axes: Mapping[str, Sequence[Any]] | Sequence[str] = (),
    seeds: Sequence[int] | str | None = None, quick: bool = False, gpus: str | None = None, wait: bool = False,
    budget: str | None = None, site: str | Path | None = None, lanes: int | str | None = None,
    extend: str | Path | None = None,
) -> Request:  # fmt: skip
    """The command's options as Python has them: `settings={"job.max_steps": 20}`, `seeds=[0, 1]`, `budget="2h"`.

    Raises UserError.
    """
    pairs = settings if not isinstance(settings, Mapping) else [f"{k}={_json(v)}" for k, v in settings.items()]
    grid = axes if not isinstance(axes, Mapping) else [f"{k}={','.join(map(_json, v))}" for k, v in axes.items()]
    return Request(
        _suite(suite), profile, list(pairs), list(grid),
        seeds if seeds is None or isinstance(seeds, str) else ",".join(map(str, seeds)), quick, gpus, wait,
        None if budget is None else budget_of(budget), Path(results), None if site is None else str(site),
        None if lanes is None else str(lanes), extend=None if extend is None else str(extend),
    )  # fmt: skip


def _suite(suite: AnySuite) -> str | Written:
    if isinstance(suite, Mapping):
        return Written(_json(suite), has_lines=False)
    text = str(suite)
    is_text = isinstance(suite, str) and ("\n" in text or (": " in text and not Path(text).is_file()))
    return Written(text) if is_text else text


def _json(value: Any) -> str:
    """What YAML reads as the same. Raises UserError."""
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, default=_plain)
    except (TypeError, ValueError, RecursionError) as error:
        raise UserError(f"suite: not what a YAML file could say: {error}") from None


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return dict(value)
    if callable(item := getattr(value, "item", None)):  # a number of numpy's
        return item()
    raise TypeError(f"{type(value).__name__} is no number, text, list or mapping")


class _CellStop(StopRequest):
    """Pressed again, the stop button changes nothing: what is left takes seconds, and the kernel is to live on.

    Whatever else ends processes ends this one too, once its trials are.
    """

    _ending: int | None = None

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        if self._ending is not None:
            signal.raise_signal(self._ending)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if number != signal.SIGINT:
            self._ending = number
        self.ask(f"{signal.Signals(number).name} to selectbench")


def _display() -> Display:
    """In a notebook an output that is drawn over, else what the command shows."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if shell is None or not hasattr(shell, "kernel"):
        return make_display(HarmlessConsole(stderr=True))
    return NotebookDisplay(_output())


def _output() -> Callable[[str, str], None]:
    from IPython.display import DisplayHandle

    handle = DisplayHandle()
    is_there = False

    def show(page: str, text: str) -> None:
        nonlocal is_there
        data = {"text/html": page, "text/plain": text}
        (handle.update if is_there else handle.display)(data, raw=True)
        is_there = True

    return show
