"""selectbench in Python and in notebooks: a real kernel, its stop button, its death, and what its cells show."""

from __future__ import annotations

import inspect
import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from evidence.readme_table import ROOT
from launch.harness import TINY_SUITE, Workplace, trial_is_running, until
from ruamel.yaml import YAML

import selectbench
from selectbench.errors import UserError

KEPT = next((ROOT / "results" / "precision").glob("*"))
LONG = {"job.max_steps": 100_000, "job.eval": "none"}
CELL = f"import selectbench; run = selectbench.run('tiny.yaml', settings={LONG}); run"


class Kernel:
    """A kernel of its own, as Jupyter starts it, and what its cells gave."""

    def __init__(self, workplace: Workplace) -> None:
        from jupyter_client.manager import KernelManager

        self.manager = KernelManager(kernel_name="python3")
        self.manager.start_kernel(cwd=str(workplace.folder), env=workplace.environment())
        self.client = self.manager.client()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=120)

    @property
    def pid(self) -> int:
        return int(self.manager.provisioner.pid)  # type: ignore[union-attr, attr-defined]

    def start(self, code: str) -> str:
        return str(self.client.execute(code))

    def ended(self, cell: str, seconds: float = 120) -> tuple[str, list[Mapping[str, Any]]]:
        """`ok` or the error's name, and every message that the cell sent, the error last."""
        sent: list[Mapping[str, Any]] = []
        while True:
            message = self.client.get_iopub_msg(timeout=seconds)
            if message["parent_header"].get("msg_id") != cell:
                continue
            sent.append(message)
            if message["msg_type"] == "status" and message["content"]["execution_state"] == "idle":
                break
        errors = [m for m in sent if m["msg_type"] == "error"]
        return (errors[0]["content"]["ename"] if errors else "ok"), [*sent, *errors]

    def run(self, code: str) -> tuple[str, list[Mapping[str, Any]]]:
        return self.ended(self.start(code))

    def close(self) -> None:
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=True)
        self.manager.cleanup_resources()


@contextmanager
def kernel(workplace: Workplace) -> Iterator[Kernel]:
    own = Kernel(workplace)
    try:
        yield own
    finally:
        own.close()


def pages(sent: list[Mapping[str, Any]], kind: str) -> list[str]:
    return [m["content"]["data"]["text/html"] for m in sent if m["msg_type"] == kind]


@pytest.mark.filterwarnings("default::DeprecationWarning", "default::ResourceWarning")
@pytest.mark.slow
class TestKernel:
    def test_a_cell_shows_how_far_it_is_then_the_report_and_again_the_same(self, workplace: Workplace) -> None:
        with kernel(workplace) as own:
            cell = "import selectbench; run = selectbench.run('tiny.yaml'); run"
            status, sent = own.run(cell)
            assert status == "ok"
            shown, drawn = pages(sent, "display_data"), pages(sent, "update_display_data")
            assert len(shown) == 1
            assert any("trial 1 of 4" in page for page in drawn)
            assert "4 of 4 trials have an outcome" in drawn[-1]
            (report,) = pages(sent, "execute_result")
            assert "Every option, the best first" in report
            assert report.count("<figure>") >= 3
            status, sent = own.run(cell)
            assert status == "ok"
            assert "nothing was run" in pages(sent, "display_data")[0]
            assert len(workplace.run_folders()) == 1
            status, sent = own.run("selectbench.run('tiny.yaml', settings={'job.max_stepz': 3})")
            assert status == "UserError"
            (said,) = {"\n".join(m["content"]["traceback"]) for m in sent if m["msg_type"] == "error"}
            assert said.startswith("UserError:\n--set job.max_stepz=3: job.max_stepz: unknown key")
            assert "did you mean 'max_steps'" in said
            assert ".py" not in said
            status, _ = own.run("print(run.ranking, selectbench.compare(run, run.folder.parent))")
            assert status == "UserError"

    def test_the_stop_button_ends_a_cell_and_nothing_outlives_the_kernel(self, workplace: Workplace) -> None:
        self.stopped_then_ended(workplace, signal.SIGKILL)

    @pytest.mark.long
    def test_nothing_outlives_a_kernel_that_is_told_to_end(self, workplace: Workplace) -> None:
        self.stopped_then_ended(workplace, signal.SIGTERM)

    def stopped_then_ended(self, workplace: Workplace, number: signal.Signals) -> None:
        with kernel(workplace) as own:
            cell = own.start(CELL)
            until(trial_is_running(workplace))
            for _ in range(3):  # whoever presses it again changes nothing
                own.manager.interrupt_kernel()
            status, sent = own.ended(cell)
            assert status == "KeyboardInterrupt"
            assert "the same call goes on" in sent[-1]["content"]["evalue"]
            assert [record["outcome"]["kind"] for record in workplace.records()] == ["interrupted"]
            until(lambda: workplace.trial_pids() == [])
            assert own.run("1 + 1")[0] == "ok"
            own.start(CELL)
            until(trial_is_running(workplace))
            own.manager.signal_kernel(number)
            until(lambda: not own.manager.is_alive())
            until(lambda: workplace.trial_pids() == [])
        assert len(workplace.run_folders()) == 1
        assert {record["outcome"]["kind"] for record in workplace.records()} == {"interrupted"}


def test_a_suite_is_a_path_a_name_a_text_or_a_mapping(
    workplace: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(workplace.folder)
    told = [
        str(selectbench.plan(suite))
        for suite in ("tiny.yaml", Path("tiny.yaml"), TINY_SUITE, YAML(typ="safe").load(TINY_SUITE))
    ]
    assert "2 of 4" not in told[0]
    assert "4 trials to run" in told[0]
    assert set(told[1:]) == {told[0]}
    assert "precision" in str(selectbench.plan("precision", profile="cpu", seeds=[0], quick=True))
    assert "9 trials" in str(selectbench.plan(TINY_SUITE, axes={"micro_batch_size": [1, 2, 4]}, seeds=range(3)))
    assert "<table" in selectbench.plan(TINY_SUITE)._repr_html_()


@pytest.mark.parametrize(
    ("suite", "said"),
    [
        (TINY_SUITE.replace("max_steps", "max_stepz"), "suite:9:3: job.max_stepz: unknown key (did you mean"),
        ({**YAML(typ="safe").load(TINY_SUITE), "seeds": "x"}, 'suite: seeds: found "x", expected a list'),
        ({"job": {1, 2}}, "suite: not what a YAML file could say: set is no number, text, list or mapping"),
        ("presicion", "presicion: there is no such file or shipped suite (did you mean 'precision'?)"),
        ("job: [", "suite:1:7: not valid YAML"),
        (TINY_SUITE.replace("corpus.txt", "gone.txt"), "suite:5:16: job.data.text"),
    ],
    ids=["text", "mapping", "no data", "name", "no YAML", "files"],
)  # fmt: skip
def test_mistakes_are_told_with_their_places(
    suite: Any, said: str, workplace: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(workplace.folder)
    with pytest.raises(UserError, match=re.escape(said)):
        selectbench.plan(suite)
    with pytest.raises(UserError, match=re.escape(said)):
        selectbench.run(suite)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"setings": {}}, "keywords: setings: unknown key (did you mean 'settings'?)"),
        ({"seeds": 3}, "keywords: seeds: found 3, expected a list"),
        ({"budget": 20}, "keywords: budget: found 20, expected text"),
        ({"budget": ""}, "--budget : expected a time with its unit"),
        ({"quick": "yes", "results": 5}, 'keywords: quick: found "yes", expected true or false'),
        ({"axes": {"precision": "fp32"}}, 'keywords: axes.precision: found "fp32", expected a name or a list'),
        ({"settings": "job.max_steps=2"}, 'keywords: settings: found "job.max_steps=2", expected a mapping'),
        ({"seeds": {0, 1}}, "keywords: not what a YAML file could say: set is no number"),
        ({"extend": 7}, "keywords: extend: found 7, expected text"),
    ],
)
def test_wrong_keywords_are_told_as_wrong_keys_are(wrong: dict[str, Any], said: str) -> None:
    for does in (selectbench.plan, selectbench.run):
        with pytest.raises(UserError, match=re.escape(said)):
            does(TINY_SUITE, **wrong)
        assert {"settings", "seeds", "extend"} <= set(inspect.signature(does).parameters)


def test_what_is_no_suite_and_no_run_is_told_as_such() -> None:
    for no_suite in (None, 3, "", ["precision"]):
        with pytest.raises(UserError, match="expected a suite: a file, a shipped suite's name"):
            selectbench.plan(no_suite)  # type: ignore[arg-type]
    kept = selectbench.load(KEPT)
    assert selectbench.load(kept).folder == kept.folder
    for does in (lambda: selectbench.load(5), lambda: selectbench.compare(kept, None)):  # type: ignore[arg-type]
        with pytest.raises(UserError, match="expected a run: its folder, SUITE@latest"):
            does()
    with pytest.raises(UserError, match="name two runs"):
        selectbench.compare(kept)


def test_a_thread_that_no_stop_reaches_runs_nothing(workplace: Workplace) -> None:
    with ThreadPoolExecutor(1) as thread, pytest.raises(UserError, match="main thread"):
        thread.submit(selectbench.run, str(workplace.folder / "tiny.yaml")).result()


def test_what_is_shown_styles_nothing_else_and_asks_for_nothing() -> None:
    run = selectbench.load(KEPT)
    for shown in (run, run.ranking, selectbench.compare(KEPT, *list(KEPT.parent.glob("*"))[1:2])):
        page = shown._repr_html_()
        assert "<script" not in page
        assert " id=" not in page
        assert not re.search(r"(src|href)=|url\(|@import", page)
        for style in re.findall(r"<style>(.*?)</style>", page, re.DOTALL):
            assert style.startswith(".selectbench.selectbench.selectbench{")
            depth = 0
            for number, character in enumerate(style):
                depth += {"{": 1, "}": -1}.get(character, 0)
                assert depth > 0 or number < len(".selectbench" * 3) or number == len(style) - 1
            assert ":root" not in style
            assert not re.search(r"(?<![a-z])body\{", style)
    assert page.count("<table") == 1


def test_importing_it_loads_nothing_that_takes_time() -> None:
    code = "import json, sys, selectbench; print(json.dumps([m for m in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in json.loads(done.stdout)}
    assert not loaded & {"torch", "pandas", "IPython", "numpy", "pydantic", "rich"}
    code = "import sys, selectbench; selectbench.load; print('torch' in sys.modules, 'IPython' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
