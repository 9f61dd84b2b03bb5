"""What the commands do, for Python and notebooks: `selectbench.run`, `plan`, `load` and `compare`."""

from __future__ import annotations

import json
import signal
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from inspect import Signature, signature
from io import StringIO
from itertools import chain, repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args

from msgspec.structs import asdict

from selectbench.analysis.gate import Compared
from selectbench.analysis.metrics import derive, observe, state_of
from selectbench.analysis.result import Ranking, Reference, ScoreDifference
from selectbench.analysis.summary import counted, summarise
from selectbench.choices.choice import Strict
from selectbench.errors import ExitCode, UserError
from selectbench.launch.display import Display, NotebookDisplay, make_display
from selectbench.launch.preparation import Outlook, Request, budget_of, prepare_all, preview
from selectbench.launch.publish import COMMAND, StoredRun, compare_runs, read_run
from selectbench.launch.site import read_site
from selectbench.launch.trial import StopRequest
from selectbench.record.record import Completed, Failed, Record
from selectbench.record.run_folder import PAGE, find_run
from selectbench.report import document as doc
from selectbench.report import terminal
from selectbench.report.files import render_csv, render_html
from selectbench.report.sections import report, summary
from selectbench.suite.document import Problems, Written, parse_value
from selectbench.suite.metrics import SECONDS_TO_LOSS, names_of
from selectbench.suite.problems import validate
from selectbench.suite.suite import Suite

if TYPE_CHECKING:
    from types import FrameType

    import pandas as pd

Kind = Literal["trials", "options", "curves", "scores", "references"]
AnySuite = str | Path | Mapping[str, Any]
"""A suite file, a shipped suite's name, YAML text, or what such a text means."""
_SHOWN = ("ranking", "warnings", "verdicts", "pictures", "scores", "references", "failures")
"""Sections of a report that a notebook shows."""


class Shown:
    """What a notebook shows of something: its documents by the page's renderer, and by the terminal's."""

    def _documents(self, medium: Literal["terminal", "page"]) -> Sequence[doc.Document]:
        raise NotImplementedError

    def _repr_html_(self) -> str:
        return "\n".join(render_html(one, is_fragment=True) for one in self._documents("page"))

    def __repr__(self) -> str:
        console = terminal.HarmlessConsole(file=StringIO(), width=100, force_jupyter=False, color_system=None)
        for document in self._documents("terminal"):
            terminal.print_document(console, document)
        return console.file.getvalue().rstrip()  # type: ignore[attr-defined, no-any-return]

    def __str__(self) -> str:
        return repr(self)


class ShownRanking(Shown, Ranking):
    """A ranking that a notebook shows."""

    def _documents(self, medium: Literal["terminal", "page"]) -> Sequence[doc.Document]:
        return [summary(self, medium)]


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

    def _documents(self, _: Literal["terminal", "page"]) -> Sequence[doc.Document]:
        stored = self.stored
        parts = (stored.suite, self.ranking, stored.counted, stored.environment)
        whole = report(*parts, COMMAND, "page", stored.unchecked)
        more = doc.Paragraph(("The whole report: ", doc.Literally(str(self.folder / PAGE))))
        shown = [section for section in whole.sections if section.name in _SHOWN]
        return [replace(whole, sections=[*shown, doc.Section("more", "More", [more])])]

    def to_pandas(self, what: Kind = "trials") -> pd.DataFrame:
        """Trials (option x seed, missing ones too), ranking.csv, curves in long form, scores, or references.

        `scores` are differences from the baseline's, `references` models behind an API. Metrics are float columns
        in SI units by their names, NaN where unknown. Raises UserError for another word.
        """
        import pandas as pd

        if what == "options":
            text, named = StringIO(render_csv(self.ranking, guards=False)), {"option": "str"}
            frame = pd.read_csv(text, dtype=named, keep_default_na=False, na_values=[""])
            return frame.rename(columns=lambda name: name.removesuffix("_to_baseline"))
        makers = {"trials": self._trials, "curves": self._curves, "scores": self._scores,
                  "references": self._references}  # fmt: skip
        if what not in makers:
            raise UserError(f"to_pandas({what!r}): expected one of {', '.join(map(repr, get_args(Kind)))}")
        columns, rows = makers[what]()
        frame = pd.DataFrame(rows, columns=columns)
        numbers = _NUMBERS.union(f"{name}{end}" for name in names_of(self.suite.job) for end in _ENDS)
        return frame.astype({name: "float64" for name in columns if name in numbers})

    def __repr__(self) -> str:
        done = sum(row.n for row in self.ranking.rows)
        return f"Run({str(self.folder)!r}: {done} completed trials of {len(self.suite.options)} options)"

    def _trials(self) -> _Rows:
        planned = {row.option: row.planned for row in self.ranking.rows}
        reached = {summary.name: summary.reached for summary in summarise(self.suite, self.records)[0]}
        found = {(record.trial.option, record.trial.seed): record for record in counted(self.records)}
        rows: list[dict[str, Any]] = []
        for number, seed in enumerate(self.suite.seeds):
            for option in [option.name for option in self.suite.options]:
                own = {"option": option, "seed": seed}
                if record := found.get((option, seed)):
                    crossing = reached.get(option, {}).get(seed)
                    rows.append(own | self._trial(record, crossing and crossing.seconds))
                elif number < planned[option]:
                    rows.append(own | {"status": "missing"})
        return [*_TRIAL, *names_of(self.suite.job)], rows

    def _trial(self, record: Record, seconds_to_loss: float | None) -> dict[str, Any]:
        state, outcome = state_of(record), record.outcome
        row = {
            "round": record.round, "status": "completed", "gpu_state": state.verdict if state else None,
            "wall_seconds": record.wall_seconds, "started_at": record.started_at, "trial_id": record.trial.trial_id,
        }  # fmt: skip
        if isinstance(outcome, Failed):
            return row | {"status": "failed", "failure_kind": outcome.kind, "failure_detail": outcome.detail}
        return row | derive(observe(record, self.suite)) | {SECONDS_TO_LOSS: seconds_to_loss}

    def _scores(self) -> _Rows:
        return list(ScoreDifference.model_fields), [one.model_dump() for one in self.ranking.score_differences]

    def _references(self) -> _Rows:
        own = [name for name in Reference.model_fields if name not in ("scores", "samples")]
        scores = dict.fromkeys(name for found in self.ranking.references for name in found.scores)
        rows = [
            found.model_dump(include=set(own))
            | {f"{name}{end}": getattr(score, end.lstrip("_") or "value")
               for name, score in found.scores.items() for end in _ENDS}
            for found in self.ranking.references
        ]  # fmt: skip
        return [*own, *(f"{name}{end}" for name in scores for end in _ENDS)], rows

    def _curves(self) -> _Rows:
        rows: list[dict[str, Any]] = []
        for record in counted(self.records):
            if isinstance(record.outcome, Completed):
                own = {"option": record.trial.option, "seed": record.trial.seed}
                losses = record.training_losses()
                rows += [{**own, "kind": "training", "step": step, "loss": loss} for step, loss in losses]
                rows += [{**own, "kind": "heldout", **asdict(point)} for point in record.evaluation_curve]
        return ["option", "seed", "kind", "step", "tokens", "training_seconds", "loss"], rows


_Rows = tuple[list[str], list[dict[str, Any]]]
"""Columns, and by column what a row has."""
_TRIAL = ("option", "seed", "round", "status", "failure_kind", "failure_detail", "gpu_state", "wall_seconds",
          "started_at", "trial_id")  # fmt: skip
_ENDS = ("", "_low", "_high")
_NUMBERS = frozenset({
    "wall_seconds", "tokens", "training_seconds", "loss", "difference", "low", "high", "p", "usd", "lost_usd",
    "input_tokens", "output_tokens", "bits_per_byte", "byte_perplexity", "latency_median_seconds",
})  # fmt: skip


def load(run: AnyRun, results: str | Path = "results") -> Run:
    """The run of a folder, or of `SUITE@latest` or `SUITE@previous` in `results`. Raises UserError."""
    folder = find_run(_folder(run), Path(results))
    return Run(folder, read_run(folder))


def _folder(run: AnyRun) -> str | Path:
    if isinstance(run, str | Path):
        return run
    if not isinstance(run, Run):
        raise UserError(f"{run!r}: expected a run: its folder, SUITE@latest, or what `run` or `load` gave")
    return run.folder


AnyRun = str | Path | Run


@dataclass(frozen=True, repr=False)
class Plan(Shown):
    """What a run would do."""

    outlook: Outlook

    def _documents(self, _: Literal["terminal", "page"]) -> Sequence[doc.Document]:
        own = self.outlook
        return [terminal.plan_document(own.plan, own.estimate, own.notes, own.costs, own.slurm)]


class Comparison(Shown, list[Compared]):
    """Runs against one of the same suite, in the order in which they were named."""

    def _documents(self, _: Literal["terminal", "page"]) -> Sequence[doc.Document]:
        return list(map(terminal.compared_document, self))


def compare(reference: AnyRun, *runs: AnyRun, results: str | Path = "results") -> Comparison:
    """What differs between runs of a suite, and how every figure changed. Raises UserError."""
    if not runs:
        raise UserError("selectbench.compare: name two runs: the one to compare with, and the others after it")
    return Comparison(compare_runs(_folder(reference), list(map(_folder, runs)), Path(results)))


class Keywords(Strict):
    """The command's options, as Python has them."""

    results: str = "results"
    profile: str | None = None
    settings: dict[str, Any] | None = None
    """`{"job.max_steps": 20}`."""
    axes: dict[str, list[Any]] | None = None
    """`{"precision": ["fp32", "fp16_mixed"]}`."""
    seeds: list[int] | None = None
    quick: bool = False
    gpus: Any = None
    """`[0, 1]`, or as the command has them."""
    wait: bool = False
    budget: str | None = None
    site: str | None = None
    lanes: Any = None
    """A number, or `auto`."""
    extend: str | None = None


_Function = TypeVar("_Function", bound=Callable[..., object])


def _takes_keywords(function: _Function) -> _Function:
    """Has help and completion show them."""
    own = list(signature(function).parameters.values())[:-1]
    function.__signature__ = Signature([*own, *signature(Keywords).parameters.values()])  # type: ignore[attr-defined]
    return function


@_takes_keywords
def plan(suite: AnySuite, **keywords: Any) -> Plan:
    """What a run would do. Raises UserError."""
    return Plan(preview(_request(suite, keywords), _display().note))


@_takes_keywords
def run(
    suite: AnySuite, *, fresh: bool = False, retry_failed: bool = False, rerun_unclean: bool = False,
    **keywords: Any,
) -> Run:  # fmt: skip
    """Run what has no outcome yet; a complete run of the same is shown, `fresh` runs it anew.

    Raises UserError, and KeyboardInterrupt where the stop button or Ctrl-C ended it: the records are whole, and
    the same call goes on.
    """
    from selectbench.launch.run import run as run_suite  # which not every system has what it needs for

    if threading.current_thread() is not threading.main_thread():
        raise UserError("selectbench.run: the stop button is heard in the main thread alone: call it there")
    asked, display = _request(suite, keywords), _display()
    if read_site(asked.site, asked.lanes).launcher == "slurm":
        raise UserError("selectbench.run: a run under Slurm is submitted by the command, selectbench run --site")
    try:
        prepared = prepare_all(asked, display.note)
    except KeyboardInterrupt:
        raise _stopped("no trial had begun; the same call goes on") from None
    result = run_suite(
        prepared, asked.results, lambda: display, fresh=fresh, retry_failed=retry_failed,
        rerun_unclean=rerun_unclean, again=lambda _: "show", notify=display.note, make_stop=_CellStop,
    )  # fmt: skip
    if result.exit_code == ExitCode.INTERRUPTED:
        raise _stopped(f"{result.folder}: every record is kept; the same call goes on where this stopped")
    return Run(result.folder, read_run(result.folder))


def _stopped(words: str) -> KeyboardInterrupt:
    """Of which a notebook shows these words alone."""
    error = KeyboardInterrupt(words)
    error._render_traceback_ = lambda: [f"KeyboardInterrupt: {words}"]  # type: ignore[attr-defined]
    return error


def _request(suite: AnySuite, keywords: Mapping[str, Any]) -> Request:
    """As the command line would have it. Raises UserError."""
    problems = Problems()
    node = parse_value(_json(keywords, "keywords"), "keywords", "", problems)
    own: Any = node and validate(Keywords, node, problems)
    problems.raise_if_any()
    settings = [f"{key}={_json(value)}" for key, value in (own.settings or {}).items()]
    axes = [f"{key}={','.join(map(_json, values))}" for key, values in (own.axes or {}).items()]
    gpus, lanes, seeds = (
        ",".join(map(str, value)) if isinstance(value, list) else None if value is None else str(value)
        for value in (own.gpus, own.lanes, own.seeds)
    )
    return Request(
        _suite(suite), own.profile, settings, axes, seeds, own.quick, gpus, own.wait,
        None if own.budget is None else budget_of(own.budget), Path(own.results), own.site, lanes,
        extend=own.extend,
    )  # fmt: skip


def _suite(suite: AnySuite) -> str | Written:
    if isinstance(suite, Mapping):
        return Written(_json(suite), has_lines=False)
    if not isinstance(suite, str | Path) or not str(suite):
        raise UserError(f"{suite!r}: expected a suite: a file, a shipped suite's name, YAML text or a mapping")
    text = str(suite)
    is_text = isinstance(suite, str) and ("\n" in text or (": " in text and not Path(text).is_file()))
    return Written(text) if is_text else text


def _json(value: Any, what: str = "suite") -> str:
    """What YAML reads as the same. Raises UserError."""
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, default=_plain)
    except (TypeError, ValueError, RecursionError) as error:
        raise UserError(f"{what}: not what a YAML file could say: {error}") from None


def _plain(value: Any) -> Any:
    if isinstance(value, Path | Run):
        return str(_folder(value))
    if isinstance(value, Mapping | range):
        return dict(value) if isinstance(value, Mapping) else list(value)
    if callable(told := getattr(value, "tolist", None)):  # numbers and arrays of numpy's
        return told()
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
        return make_display(terminal.HarmlessConsole(stderr=True))
    from IPython.display import DisplayHandle

    handle = DisplayHandle()
    draw = chain([handle.display], repeat(handle.update))
    return NotebookDisplay(lambda page, text: next(draw)({"text/html": page, "text/plain": text}, raw=True))
