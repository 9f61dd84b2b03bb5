"""A run for a notebook: `selectbench.load(folder).to_pandas()`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from msgspec.structs import asdict

from selectbench.analysis.metrics import derive, observe, state_of
from selectbench.analysis.result import Ranking, ScoreDifference
from selectbench.analysis.summary import Crossing, counted, summarise
from selectbench.launch.publish import StoredRun, read_run
from selectbench.record.record import Completed, Failed, Record
from selectbench.record.run_folder import find_run
from selectbench.suite.metrics import SECONDS_TO_LOSS, names_of
from selectbench.suite.suite import Suite

if TYPE_CHECKING:
    import pandas as pd

Kind = Literal["trials", "options", "curves", "scores"]


@dataclass(frozen=True)
class Run:
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
    def ranking(self) -> Ranking:
        """The answer, computed from the records."""
        return self.stored.ranking()

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
