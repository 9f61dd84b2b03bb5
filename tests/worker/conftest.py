"""A tiny real job: prepared text, a two-layer model, and the events that a trial sends."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Literal

import pytest

from selectbench.choices import Choices
from selectbench.choices.model import Bpe
from selectbench.data.prepare import prepare
from selectbench.launch.trial import StopRequest, TrialEnd, TrialRunner, TrialServer
from selectbench.record.record import SETTINGS, Trial
from selectbench.record.wire import Finished, Order
from selectbench.suite.job import Job
from selectbench.suite.sources import TextFiles
from selectbench.suite.suite import Limits
from selectbench.worker.trial import run_trial

GPT2 = {"family": "gpt2", "n_layer": 2, "n_embd": 32, "n_head": 2}
LLAMA = {"family": "llama", "num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4,
         "num_key_value_heads": 2, "intermediate_size": 64}  # fmt: skip
ADAMW = {"name": "adamw", "lr": 3e-3}


@pytest.fixture(scope="session")
def data_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tokens of several short texts with a structure to learn."""
    root = tmp_path_factory.mktemp("corpus")
    for number in range(40):
        lines = (f"line {i} of text {number}: {i} times {number} is {i * number}, and so on." for i in range(40))
        (root / f"{number}.txt").write_text("\n".join(lines), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SELECTBENCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        return prepare(TextFiles(text=[str(root / "*.txt")]), Bpe(bpe=300)).folder


class Trials:
    """Makes orders for the tiny job and runs them in this process."""

    def __init__(self, data_folder: Path, trial_folder: Path) -> None:
        self.data_folder, self.trial_folder = data_folder, trial_folder

    def order(
        self, *, seed: int = 0, job: dict[str, Any] | None = None, min_timed_seconds: float = 0.0,
        option: str = "o", code: Sequence[str] = (), device: Literal["cpu", "cuda"] = "cpu", **choices: Any,
    ) -> Order:  # fmt: skip
        settings = {"optimizer": ADAMW, "micro_batch_size": 8, **choices}
        ranks, made = choices.get("world_size", 1), Choices.model_validate(settings)
        content = {
            "model": GPT2, "data": {"text": ["unused"]}, "tokenizer": {"bpe": 300}, "seq_len": 32,
            "global_batch_size": 8, "max_steps": 8, "eval": {"tokens": 1000}, "timing": {"warmup_steps": 2},
            "lr_schedule": {"name": "cosine", "warmup_steps": 2}, **(job or {}),
        }  # fmt: skip
        recorded = SETTINGS.as_json(made.model_dump(mode="json"))
        return Order(
            trial=Trial(trial_id=option, option=option, seed=seed, settings=recorded),
            job=Job.model_validate(content).of(made), choices=made, device=device, threads=1,
            data_folder=str(self.data_folder), trial_folder=str(self.trial_folder),
            min_timed_seconds=min_timed_seconds, world_size=ranks,
            weights_folder=str(self.trial_folder / "weights"), code=list(code),
        )  # fmt: skip

    def events(self, **settings: Any) -> list[Any]:
        events: list[Any] = []
        run_trial(self.order(**settings), events.append)
        return events

    def finished(self, **settings: Any) -> Finished:
        last = self.events(**settings)[-1]
        assert isinstance(last, Finished), last
        return last


@pytest.fixture
def trials(data_folder: Path, tmp_path: Path) -> Trials:
    return Trials(data_folder, tmp_path)


class LaunchedTrials(Trials):
    """Runs the orders as the bench does: in processes forked from a trial server."""

    server: TrialServer
    stop: StopRequest
    limits = Limits(trial_seconds=300)  # a compiled one on a machine that is busy takes two minutes

    def run(self, order: Order) -> TrialEnd:
        """How the trial ended, whatever the outcome."""
        return TrialRunner(self.server, self.limits, self.stop, lambda event: None).run(order)

    def end(self, **settings: Any) -> TrialEnd:
        """The same for an order of these settings."""
        return self.run(self.order(**settings))

    def finished(self, **settings: Any) -> Finished:
        end = self.end(**settings)
        assert end.finished is not None, end.outcome
        return end.finished

    def series(self) -> dict[str, Any]:
        """Of the last trial."""
        content: dict[str, Any] = json.loads((self.trial_folder / "series.json").read_text())
        return content


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TrialServer]:
    with pytest.MonkeyPatch.context() as patch:
        # Where planted code lies, and what the tests themselves were told to import.
        patch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
        modules = [
            "selectbench.worker.trial",
            "transformers.models.gpt2.modeling_gpt2",
            "selectbench.worker.engine_zero",
            "planted_ranks",
        ]
        with closing(TrialServer(modules, tmp_path_factory.mktemp("server") / "log.txt")) as started:
            yield started


@pytest.fixture
def launched(data_folder: Path, tmp_path: Path, server: TrialServer) -> Iterator[LaunchedTrials]:
    yield from _launched(data_folder, tmp_path, server)


@pytest.fixture(scope="module")
def launched_for_all(
    data_folder: Path, tmp_path_factory: pytest.TempPathFactory, server: TrialServer
) -> Iterator[LaunchedTrials]:
    """The same for all tests of a module."""
    yield from _launched(data_folder, tmp_path_factory.mktemp("trials"), server)


def _launched(data_folder: Path, folder: Path, server: TrialServer) -> Iterator[LaunchedTrials]:
    made = LaunchedTrials(data_folder, folder)
    with StopRequest() as stop:
        made.server, made.stop = server, stop
        yield made
