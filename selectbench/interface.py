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
from selectbench.launch.preparation import Request, budget_of, prepare_all, preview
from selectbench.launch.publish import COMMAND, StoredRun, compare_runs, read_run
from selectbench.launch.site import read_site
from selectbench.launch.trial import StopRequest
from selectbench.planning.duration import Outlook
from selectbench.record.record import Completed, Failed, Record
from selectbench.record.run_folder import PAGE, find_run
from selectbench.report import document as doc
from selectbench.report import terminal
from selectbench.report.files import render_csv, render_html
from selectbench.report.sections import report, summary
from selectbench.suite.document import Problems, Written, parse_value
from selectbench.suite.metrics import SECONDS_TO_LOSS, metrics_of
from selectbench.suite.problems import validate
from selectbench.suite.suite import Suite

if TYPE_CHECKING:
    from types import FrameType

    import pandas as pd

Kind = Literal["trials", "options", "curves", "scores", "references"]
AnySuite = str | Path | Mapping[str, Any]
"""A suite file, a shipped suite's name, YAML text, or a mapping as such a text has it."""
_NOTEBOOK_SECTIONS = (
    "ranking",
    "warnings",
    "verdicts",
    "constraints",
    "pictures",
    "scores",
    "references",
    "failures",
)
"""Sections of a report that notebooks show."""


class NotebookView:
    """What a notebook shows of something: its documents by the page's renderer, and by the terminal's."""

    def _documents(self, medium: Literal["terminal", "page"]) -> Sequence[doc.Document]:
        raise NotImplementedError

    def _repr_html_(self) -> str:
        return "\n".join(render_html(document, is_fragment=True) for document in self._documents("page"))

    def __repr__(self) -> str:
        console = terminal.HarmlessConsole(file=StringIO(), width=100, force_jupyter=False, color_system=None)
        for document in self._documents("terminal"):
            terminal.print_document(console, document)
        return console.file.getvalue().rstrip()  # type: ignore[attr-defined, no-any-return]

    def __str__(self) -> str:
        return repr(self)


class NotebookRanking(NotebookView, Ranking):
    """A ranking with a view for notebooks."""

    def _documents(self, medium: Literal["terminal", "page"]) -> Sequence[doc.Document]:
        return [summary(self, medium)]


@dataclass(frozen=True)
class Run(NotebookView):
    """A run that was read from its folder, where nothing is written."""

    folder: Path
    stored: StoredRun

    @property
    def suite(self) -> Suite:
        """The run's suite."""
        return self.stored.suite

    @property
    def records(self) -> list[Record]:
        """Every attempt of every trial."""
        return self.stored.records

    @property
    def environment(self) -> dict[str, Any]:
        """The content of the run's environment.json."""
        return self.stored.environment

    @cached_property
    def ranking(self) -> NotebookRanking:
        """The ranking, computed from the records."""
        return NotebookRanking.model_construct(**dict(self.stored.ranking()))

    def _documents(self, _: Literal["terminal", "page"]) -> Sequence[doc.Document]:
        stored = self.stored
        parts = (stored.suite, self.ranking, stored.counted, stored.environment)
        whole = report(*parts, COMMAND, "page", stored.unchecked)
        more = doc.Paragraph(("The whole report: ", doc.Literally(str(self.folder / PAGE))))
        sections = [section for section in whole.sections if section.name in _NOTEBOOK_SECTIONS]
        return [replace(whole, sections=[*sections, doc.Section("more", "More", [more])])]

    def to_pandas(self, what: Kind = "trials") -> pd.DataFrame:
        """Trials (option x seed, missing ones too), ranking.csv, curves in long form, scores, or references.

        `scores` are differences from the baseline's, `references` models behind an API. Metrics are float columns
        in SI units by their names, NaN where unknown. Raises UserError for another word.
        """
        import pandas as pd

        if what == "options":
            text, dtypes = StringIO(render_csv(self.ranking, guards=False)), {"option": "str"}
            frame = pd.read_csv(text, dtype=dtypes, keep_default_na=False, na_values=[""])
            return frame.rename(columns=lambda name: name.removesuffix("_to_baseline"))
        makers = {"trials": self._trials, "curves": self._curves, "scores": self._scores,
                  "references": self._references}  # fmt: skip
        if what not in makers:
            raise UserError(f"to_pandas({what!r}): expected one of {', '.join(map(repr, get_args(Kind)))}")
        columns, rows = makers[what]()
        frame = pd.DataFrame(rows, columns=columns)
        numbers = _FLOAT_COLUMNS.union(f"{name}{end}" for name in metrics_of(self.suite.job) for end in _SCORE_ENDS)
        return frame.astype({name: "float64" for name in columns if name in numbers})

    def __repr__(self) -> str:
        done = sum(row.n for row in self.ranking.rows)
        return f"Run({str(self.folder)!r}: {done} completed trials of {len(self.suite.options)} options)"

    def _trials(self) -> _Rows:
        planned = {row.option: row.planned for row in self.ranking.rows}
        reached = {summary.name: summary.reached for summary in summarise(self.suite, self.records)[0]}
        records = {(record.trial.option, record.trial.seed): record for record in counted(self.records)}
        rows: list[dict[str, Any]] = []
        for number, seed in enumerate(self.suite.seeds):
            for option in [option.name for option in self.suite.options]:
                trial = {"option": option, "seed": seed}
                if record := records.get((option, seed)):
                    crossing = reached.get(option, {}).get(seed)
                    rows.append(trial | self._trial(record, crossing and crossing.seconds))
                elif number < planned[option]:
                    rows.append(trial | {"status": "missing"})
        return [*_TRIAL_COLUMNS, *metrics_of(self.suite.job)], rows

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
        return list(ScoreDifference.model_fields), [d.model_dump() for d in self.ranking.score_differences]

    def _references(self) -> _Rows:
        fields = [name for name in Reference.model_fields if name not in ("scores", "samples")]
        scores = dict.fromkeys(name for reference in self.ranking.references for name in reference.scores)
        rows = [
            reference.model_dump(include=set(fields))
            | {f"{name}{end}": getattr(score, end.lstrip("_") or "value")
               for name, score in reference.scores.items() for end in _SCORE_ENDS}
            for reference in self.ranking.references
        ]  # fmt: skip
        return [*fields, *(f"{name}{end}" for name in scores for end in _SCORE_ENDS)], rows

    def _curves(self) -> _Rows:
        rows: list[dict[str, Any]] = []
        for record in counted(self.records):
            if isinstance(record.outcome, Completed):
                trial = {"option": record.trial.option, "seed": record.trial.seed}
                losses = record.training_losses()
                rows += [{**trial, "kind": "training", "step": step, "loss": loss} for step, loss in losses]
                rows += [{**trial, "kind": "heldout", **asdict(point)} for point in record.evaluation_curve]
        return ["option", "seed", "kind", "step", "tokens", "training_seconds", "loss"], rows


_Rows = tuple[list[str], list[dict[str, Any]]]
"""A table: its columns, and rows with values by column."""
_TRIAL_COLUMNS = ("option", "seed", "round", "status", "failure_kind", "failure_detail", "gpu_state",
                  "wall_seconds", "started_at", "trial_id")  # fmt: skip
_SCORE_ENDS = ("", "_low", "_high")
_FLOAT_COLUMNS = frozenset({
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
class Plan(NotebookView):
    """What a run would do."""

    outlook: Outlook

    def _documents(self, _: Literal["terminal", "page"]) -> Sequence[doc.Document]:
        return [terminal.plan_document(self.outlook)]


class Comparison(NotebookView, list[Compared]):
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


def _with_keywords(function: _Function) -> _Function:
    """Give the function the signature that help and completion show, with `Keywords` in place of `**keywords`."""
    named = list(signature(function).parameters.values())[:-1]
    function.__signature__ = Signature([*named, *signature(Keywords).parameters.values()])  # type: ignore[attr-defined]
    return function


@_with_keywords
def plan(suite: AnySuite, **keywords: Any) -> Plan:
    """What a run would do. Raises UserError."""
    return Plan(preview(_request(suite, keywords), _display().note))


@_with_keywords
def run(
    suite: AnySuite, *, fresh: bool = False, retry_failed: bool = False, rerun_unclean: bool = False,
    **keywords: Any,
) -> Run:  # fmt: skip
    """Run what has no outcome yet; a complete run of the same is shown, `fresh` runs it anew.

    Raises UserError, and KeyboardInterrupt where the stop button or Ctrl-C ended it: the records are whole, and
    the same call goes on.
    """
    from selectbench.launch.run import Retried  # which not every system has what it needs for
    from selectbench.launch.run import run as run_suite

    if threading.current_thread() is not threading.main_thread():
        raise UserError("selectbench.run: the stop button is heard in the main thread alone: call it there")
    request, display = _request(suite, keywords), _display()
    if read_site(request.site, request.lanes).launcher == "slurm":
        raise UserError("selectbench.run: a run under Slurm is submitted by the command, selectbench run --site")
    try:
        prepared = prepare_all(request, display.note)
    except KeyboardInterrupt:
        raise _interruption("no trial had begun; the same call goes on") from None
    result = run_suite(
        prepared, request.results, lambda: display, fresh=fresh, retried=Retried(retry_failed, rerun_unclean),
        again=lambda _: "show", notify=display.note, make_stop=_NotebookStop,
    )  # fmt: skip
    if result.exit_code == ExitCode.INTERRUPTED:
        raise _interruption(f"{result.folder}: every record is kept; the same call goes on where this stopped")
    return Run(result.folder, read_run(result.folder))


def _interruption(words: str) -> KeyboardInterrupt:
    """An interrupt of which notebooks show only these words."""
    error = KeyboardInterrupt(words)
    error._render_traceback_ = lambda: [f"KeyboardInterrupt: {words}"]  # type: ignore[attr-defined]
    return error


def _request(suite: AnySuite, keywords: Mapping[str, Any]) -> Request:
    """The request that the command line would make. Raises UserError."""
    problems = Problems()
    node = parse_value(_json(keywords, "keywords"), "keywords", "", problems)
    options: Any = node and validate(Keywords, node, problems)
    problems.raise_if_any()
    settings = [f"{key}={_json(value)}" for key, value in (options.settings or {}).items()]
    axes = [f"{key}={','.join(map(_json, values))}" for key, values in (options.axes or {}).items()]
    gpus, lanes, seeds = (
        ",".join(map(str, value)) if isinstance(value, list) else None if value is None else str(value)
        for value in (options.gpus, options.lanes, options.seeds)
    )
    return Request(
        _suite(suite), options.profile, settings, axes, seeds, options.quick, gpus, options.wait,
        budget_of(options.budget), Path(options.results), options.site, lanes, extend=options.extend,
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
    """The value as JSON, which YAML reads as the same. Raises UserError."""
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, default=_encode_value)
    except (TypeError, ValueError, RecursionError) as error:
        raise UserError(f"{what}: not what a YAML file could say: {error}") from None


def _encode_value(value: Any) -> Any:
    if isinstance(value, Path | Run):
        return str(_folder(value))
    if isinstance(value, Mapping | range):
        return dict(value) if isinstance(value, Mapping) else list(value)
    if callable(to_list := getattr(value, "tolist", None)):  # numbers and arrays of numpy's
        return to_list()
    raise TypeError(f"{type(value).__name__} is no number, text, list or mapping")


class _NotebookStop(StopRequest):
    """A second press of the stop button changes nothing: stopping takes seconds, and the kernel is to live on.

    Other signals that end processes end this one too, once its trials have ended.
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
    """In a notebook an output that is redrawn, else the command's display."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if shell is None or not hasattr(shell, "kernel"):
        return make_display(terminal.HarmlessConsole(stderr=True))
    from IPython.display import DisplayHandle

    handle = DisplayHandle()
    draw = chain([handle.display], repeat(handle.update))
    return NotebookDisplay(lambda page, text: next(draw)({"text/html": page, "text/plain": text}, raw=True))
