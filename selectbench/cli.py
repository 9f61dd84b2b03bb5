"""The commands. Results go to standard output, everything else to standard error; no logic here."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from selectbench import __version__

if TYPE_CHECKING:
    from rich.console import Console

    from selectbench.analysis.result import Ranking
    from selectbench.launch.publish import StoredRun
    from selectbench.launch.run import Result
    from selectbench.launch.site import SlurmRun

app = typer.Typer(
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Train the same language-model job under each choice on this machine, and see which one to take.",
)  # fmt: skip

Switch = partial(typer.Option, metavar="")
SuiteArgument = Annotated[str, typer.Argument(metavar="SUITE", help="A suite file, or a shipped suite's name.")]
ProfileOption = Annotated[
    str | None, typer.Option("--profile", metavar="NAME", help="A profile of the suite; by device if not given.")
]
SetOption = Annotated[
    list[str], typer.Option("--set", metavar="PATH=VALUE", help="Change a setting: job.max_steps=20.")
]
AxisOption = Annotated[
    list[str],
    typer.Option("--axis", metavar="PATH=A,B", help="Replace the options by a grid: precision=fp32,bf16_mixed."),
]
SeedsOption = Annotated[str | None, typer.Option("--seeds", metavar="0,1", help="One round for each seed.")]
QuickOption = Annotated[bool, Switch("--quick", help="Speed and memory only, one seed, few steps.")]
GpusOption = Annotated[
    str | None,
    typer.Option("--gpus", metavar="LIST", help="GPUs by number or UUID, even if in use; default: idle ones."),
]
BudgetOption = Annotated[
    str | None, typer.Option("--budget", metavar="TIME", help="Cut rounds, never schedules, to fit: 2h, 90min.")
]
SiteOption = Annotated[
    str | None,
    typer.Option("--site", metavar="FILE", help="What of the run is the site's: Slurm, lanes, prices."),
]
LanesOption = Annotated[
    str | None,
    typer.Option("--lanes", metavar="N", help="Run trials side by side on N equal parts of the machine, or auto."),
]
NoScreenOption = Annotated[
    bool, Switch("--no-screen", help="Every option takes part, whatever the suite's `screen` says.")
]
ResultsOption = Annotated[Path, typer.Option("--results", metavar="DIR", help="Where runs are kept.")]
NodesOption = Annotated[int, typer.Option("--nnodes", metavar="N", help="Machines that run each trial together.")]
JsonOption = Annotated[bool, Switch("--json", help="Print the result as JSON to standard output.")]
RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="A run's folder, SUITE@latest, or SUITE@previous.")]
SlurmRunArgument = Annotated[str, typer.Argument(metavar="RUN", help="The folder of a run under Slurm.")]


def _console(*, stderr: bool = False) -> Console:
    from selectbench.report.terminal import HarmlessConsole

    return HarmlessConsole(stderr=stderr)


def _notify(line: str) -> None:
    """Print one line to standard error, without wrapping it."""
    _console(stderr=True).print(line, markup=False, highlight=False, soft_wrap=True)


def _version(is_set: bool) -> None:
    if is_set:
        typer.echo(f"selectbench {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, Switch("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None: ...


@app.command()
def run(
    suite: SuiteArgument,
    results: ResultsOption = Path("results"),
    profile: ProfileOption = None,
    settings: SetOption = [],  # noqa: B006
    axes: AxisOption = [],  # noqa: B006
    seeds: SeedsOption = None,
    quick: QuickOption = False,
    gpus: GpusOption = None,
    budget: BudgetOption = None,
    no_screen: NoScreenOption = False,
    site: SiteOption = None,
    lanes: LanesOption = None,
    no_interference_check: Annotated[
        bool,
        Switch(
            "--no-interference-check", help="Do not try whether lanes disturb each other: speeds claim nothing."
        ),
    ] = False,
    wait: Annotated[bool, Switch("--wait", help="Wait until enough GPUs, or the CPU, are free.")] = False,
    extend: Annotated[
        str | None,
        typer.Option("--extend", metavar="RUN", help="Add --seeds to a complete run: its folder, or @latest."),
    ] = None,
    fresh: Annotated[bool, Switch("--fresh", help="Start a new run even where one can be resumed.")] = False,
    retry_failed: Annotated[
        bool, Switch("--retry-failed", help="Run failed trials again, and what mended code touches.")
    ] = False,
    rerun_unclean: Annotated[
        bool, Switch("--rerun-unclean", help="Run trials of a busy CPU or of throttled or shared GPUs again.")
    ] = False,
    reuse: Annotated[
        bool, Switch("--reuse", help="Show a complete run of the same, where there is one, and run nothing.")
    ] = False,
    detach: Annotated[bool, Switch("--detach", help="Under Slurm: submit, and do not wait for it.")] = False,
    round_number: Annotated[
        int | None,
        typer.Option("--round", metavar="K", help="SUITE is a run under Slurm, of which this round alone is run."),
    ] = None,
    nodes: NodesOption = 1,
    node: Annotated[
        int | None, typer.Option("--node-rank", metavar="R", help="Which of them this is, from 0.")
    ] = None,
    rdzv: Annotated[
        str | None, typer.Option("--rdzv", metavar="HOST:PORT", help="Where the first of them is found.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Run a suite's trials, rank the options and write the report. An incomplete run is resumed."""
    from selectbench.errors import ExitCode, UserError
    from selectbench.launch.channel import take_secret
    from selectbench.launch.display import ask_rerun, make_display
    from selectbench.launch.nodes import Nodes, node_request
    from selectbench.launch.preparation import Request, budget_of, prepare_all
    from selectbench.launch.run import Retried, run_agent, submit
    from selectbench.launch.run import run as run_suite
    from selectbench.launch.site import attached, read_site
    from selectbench.record.run_folder import ROUNDS

    if fresh and reuse:
        raise UserError("--fresh runs anew and --reuse shows what there is: leave one of them out")
    console = _console(stderr=True)
    settings = settings + ["screen=null"] * no_screen
    request = Request(
        suite, profile, settings, axes, seeds, quick, gpus, wait, budget_of(budget), results, site, lanes,
        not no_interference_check, extend, nodes,
    )  # fmt: skip
    notify, multi_node = partial(console.print, markup=False, highlight=False), node_request(nodes, node, rdzv)
    rerun, retried = partial(ask_rerun, console, reuse=reuse), Retried(retry_failed, rerun_unclean)
    slurm = None if round_number is None else attached(Path(suite))
    if slurm is not None:
        request = replace(request, suite=str(slurm.suite_file))
    elif read_site(site, lanes).launcher == "slurm":
        slurm_run = submit(request, results, notify, fresh=fresh, retried=retried, again=rerun)
        if detach:
            notify(_attach_and_cancel(slurm_run))
            raise typer.Exit
        _follow(slurm_run, as_json)
    elif detach:
        raise UserError("--detach: only Slurm runs a run without this process: --site FILE with `launcher: slurm`")
    if multi_node is not None and multi_node.node > 0:
        secret = take_secret()
        request = replace(request, extend=None, budget_seconds=None)  # which rounds there are, the bench says
        prepared = prepare_all(request, notify)
        runs = results / prepared.suite.name if slurm is None else slurm.folder / ROUNDS
        status = run_agent(multi_node, prepared, runs, secret, notify)
        # At the first task that fails srun ends the others, of which the bench still has its job queued again.
        raise typer.Exit(ExitCode.OK if slurm is not None and status == ExitCode.INTERRUPTED else status)
    with nullcontext() if multi_node is None else Nodes(multi_node, notify) as other_nodes:
        result = run_suite(
            replace(prepare_all(request, notify), round=round_number), results, lambda: make_display(console),
            fresh=fresh, retried=retried, again=rerun, nodes=other_nodes, slurm=slurm, notify=notify,
        )  # fmt: skip
        if other_nodes is not None:
            other_nodes.status = result.exit_code
    if slurm is not None:
        notify(f"round {round_number} is {'cut off' if result.exit_code == ExitCode.INTERRUPTED else 'complete'}")
        raise typer.Exit(result.exit_code)
    _show_result(result, as_json)
    if result.exit_code == ExitCode.INTERRUPTED:
        console.print("interrupted; the same command goes on where this run stopped", highlight=False)
    raise typer.Exit(result.exit_code)


def _show_result(result: Result, as_json: bool) -> None:
    from selectbench.launch.publish import read_run, report_text

    stored = read_run(result.folder)
    _show_ranking(result.folder, result.ranking, as_json, stored)
    _add_to_job_summary(lambda: report_text(stored, result.ranking))


def _attach_and_cancel(slurm: SlurmRun) -> str:
    return f"selectbench attach {slurm.folder} shows it, selectbench cancel {slurm.folder} ends it"


def _follow(slurm: SlurmRun, as_json: bool) -> NoReturn:
    """Show a run under Slurm until it is over, then its result."""
    from selectbench.errors import ExitCode
    from selectbench.launch.display import make_display
    from selectbench.launch.run import attend

    try:
        result = attend(slurm, make_display(_console(stderr=True)), _notify)
    except KeyboardInterrupt:
        _notify(f"the run goes on: {_attach_and_cancel(slurm)}")
        raise typer.Exit(ExitCode.INTERRUPTED) from None
    if result is not None:
        _show_result(result, as_json)
    raise typer.Exit(ExitCode.INTERRUPTED if result is None else result.exit_code)


@app.command()
def attach(run: SlurmRunArgument, as_json: JsonOption = False) -> None:
    """Show a run under Slurm while it lasts, then its result. Ctrl-C ends the looking, not the run."""
    from selectbench.launch.site import attached

    _follow(attached(Path(run)), as_json)


@app.command()
def cancel(run: SlurmRunArgument) -> None:
    """End a run under Slurm; its records are kept, and the same `run` line goes on with it."""
    from selectbench.launch.site import attached

    slurm = attached(Path(run))
    count = slurm.cancel()
    slurm.gather()
    _notify(f"{slurm.folder}: {count} job{'s' * (count != 1)} ended; every record is kept")


@app.command()
def plan(
    suite: SuiteArgument,
    results: ResultsOption = Path("results"),
    profile: ProfileOption = None,
    settings: SetOption = [],  # noqa: B006
    axes: AxisOption = [],  # noqa: B006
    seeds: SeedsOption = None,
    quick: QuickOption = False,
    gpus: GpusOption = None,
    budget: BudgetOption = None,
    no_screen: NoScreenOption = False,
    site: SiteOption = None,
    lanes: LanesOption = None,
    nodes: NodesOption = 1,
    as_json: JsonOption = False,
) -> None:
    """Show what a run would do: trials, derived settings, what cannot run here, the expected time."""
    from selectbench.launch.preparation import Request, budget_of, preview
    from selectbench.report.terminal import plan_as_json, plan_document, print_document

    settings = settings + ["screen=null"] * no_screen
    request = Request(
        suite, profile, settings, axes, seeds, quick, gpus, False, budget_of(budget), results, site, lanes,
        nodes=nodes,
    )  # fmt: skip
    outlook = preview(request, _notify)
    if as_json:
        typer.echo(plan_as_json(outlook))
    else:
        print_document(_console(), plan_document(outlook))
        if outlook.script:
            typer.echo(f"\n{outlook.script}", nl=False)


@app.command()
def data(
    suite: SuiteArgument,
    profile: ProfileOption = None,
    settings: SetOption = [],  # noqa: B006
    axes: AxisOption = [],  # noqa: B006
    as_json: JsonOption = False,
) -> None:
    """Prepare a suite's data alone and show them: documents in and out, tokens, samples, hashes."""
    from selectbench.launch.preparation import Request, prepared_data
    from selectbench.report.terminal import data_as_json, print_data

    prepared = prepared_data(Request(suite, profile, settings, axes), _notify)
    if as_json:
        typer.echo(data_as_json(prepared))
    else:
        print_data(_console(), prepared)


@app.command()
def report(
    run: RunArgument,
    option: Annotated[str | None, typer.Argument(metavar="OPTION", help="One option's trials.")] = None,
    results: ResultsOption = Path("results"),
    as_json: JsonOption = False,
) -> None:
    """Render a run's ranking and report again, from its records alone."""
    from selectbench.errors import ExitCode, UserError
    from selectbench.launch.publish import publish, read_run, report_text
    from selectbench.launch.site import slurm_run
    from selectbench.record.run_folder import find_run, require_records

    run_folder = find_run(run, results)
    if (slurm := slurm_run(run_folder)) is not None:
        slurm.gather()
    stored = read_run(run_folder)
    require_records(run_folder)
    if option is not None:
        _show_option(stored, option, as_json)
        return
    folder: Path | None = run_folder
    try:
        ranking = publish(run_folder, stored, _notify)
    except UserError as error:  # a run kept where nothing may be written can still be looked at
        ranking, folder = stored.ranking(), None
        _notify(str(error))
    _show_ranking(folder, ranking, as_json, stored)
    _add_to_job_summary(lambda: report_text(stored, ranking))
    if folder is None:
        raise typer.Exit(ExitCode.USER_ERROR)


@app.command()
def compare(
    reference: Annotated[str, typer.Argument(metavar="RUN", help="The run that the others are compared with.")],
    runs: Annotated[list[str], typer.Argument(metavar="RUN...", help="One or more runs of the same suite.")],
    results: ResultsOption = Path("results"),
    as_json: JsonOption = False,
    as_markdown: Annotated[bool, Switch("--markdown", help="Print Markdown, to paste.")] = False,
) -> None:
    """Say what differs between runs of a suite, and how every option's figures changed."""
    from selectbench.launch.publish import compare_runs
    from selectbench.report.files import render_markdown
    from selectbench.report.terminal import compared_document, print_document

    compared = compare_runs(reference, runs, results)
    documents = list(map(compared_document, compared))
    if as_json:
        _echo_json(compared)
    elif as_markdown:
        typer.echo("\n".join(map(render_markdown, documents)), nl=False)
    else:
        for document in documents:
            print_document(_console(), document)
    _add_to_job_summary(lambda: "\n".join(map(render_markdown, documents)))


@app.command()
def gate(
    run: RunArgument,
    against: Annotated[str, typer.Option("--against", metavar="RUN", help="The reference run.")],
    limits: Annotated[
        list[str],
        typer.Option(
            "--limit", metavar="LIMIT", help="tokens_per_second >= 0.97x reference; the suite's `gate` if none."
        ),
    ] = [],  # noqa: B006
    results: ResultsOption = Path("results"),
    any_machine: Annotated[bool, Switch("--any-machine", help="Gate runs of different machines.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Hold a run to limits against another: exits with 0 pass, 1 regression, 4 inconclusive, 2 wrong use."""
    from selectbench.launch.publish import GATE_EXIT, gate_run
    from selectbench.report.files import render_markdown
    from selectbench.report.terminal import gate_document, print_document

    gated = gate_run(run, against, limits, results, any_machine=any_machine)
    document = gate_document(gated)
    if as_json:
        _echo_json(gated)
    else:
        print_document(_console(), document)
    _add_to_job_summary(lambda: render_markdown(document))
    raise typer.Exit(GATE_EXIT[gated.verdict])


@app.command("list")
def list_runs(results: ResultsOption = Path("results"), as_json: JsonOption = False) -> None:
    """Find past runs, the newest first."""
    from selectbench.launch.publish import past_runs
    from selectbench.report.terminal import print_runs

    runs = past_runs(results)
    if as_json:
        _echo_json(runs)
        return
    print_runs(_console(), runs, results)


def _echo_json(value: object) -> None:
    from pydantic_core import to_jsonable_python

    from selectbench.text import json_text

    typer.echo(json_text(to_jsonable_python(value)), nl=False)


def _add_to_job_summary(text: Callable[[], str]) -> None:
    """Add the text to the CI job's summary, where there is one."""
    from selectbench.launch.publish import add_to_job_summary

    if (problem := add_to_job_summary(text)) is not None:
        _notify(problem)


def _show_option(stored: StoredRun, option: str, as_json: bool) -> None:
    from rich.markdown import Markdown

    from selectbench.report.files import render_markdown
    from selectbench.report.sections import option_report

    ranking = stored.ranking()
    text = render_markdown(option_report(stored.suite, ranking, stored.records, option))
    if as_json:
        (row,) = (row for row in ranking.rows if row.option == option)
        _echo_json(row)
        return
    console = _console()
    console.print(Markdown(text) if console.is_terminal else text, markup=False, highlight=False, soft_wrap=True)


def _show_ranking(folder: Path | None, ranking: Ranking, as_json: bool, stored: StoredRun) -> None:
    from selectbench.launch.publish import ranking_text
    from selectbench.record.run_folder import PAGE, REPORT
    from selectbench.report.evidence import loading_lines
    from selectbench.report.sections import summary
    from selectbench.report.terminal import print_document
    from selectbench.text import one_line

    if as_json:
        typer.echo(ranking_text(ranking), nl=False)
        return
    console = _console()
    print_document(console, summary(ranking))
    if folder is None:
        return
    lines = [f"report: {folder / name}" for name in (REPORT, PAGE) if (folder / name).is_file()]
    loading = loading_lines(stored.suite, stored.counted, folder)
    best = [(trial, line) for row in ranking.rows for trial, line in loading.items() if trial[0] == row.option]
    lines += [f"trained model of {one_line(option)}, seed {seed}:\n{line}" for (option, seed), line in best[:1]]
    for line in lines:
        console.print(line, soft_wrap=True, markup=False, highlight=False)


@app.command()
def doctor(
    calibrate: Annotated[
        bool, Switch("--calibrate", help="Measure how fast matrix products run on each idle GPU; keep it.")
    ] = False,
    gpus: GpusOption = None,
    site: Annotated[
        str | None,
        typer.Option("--site", metavar="FILE", help="Measure the site's nodes, and name the odd one out."),
    ] = None,
) -> None:
    """Say what this machine can run, and how to mend what it cannot."""
    from selectbench.doctor import calibrate as calibrate_gpus
    from selectbench.doctor import check_site, diagnose, render, supported_choices
    from selectbench.errors import ExitCode, UserError
    from selectbench.machine import inspect_machine

    if calibrate:
        from selectbench.report.terminal import calibration_table

        _console().print(calibration_table(calibrate_gpus(gpus, _notify)))
        return
    if site is not None:
        from selectbench.launch.site import read_site

        tables, are_alike = check_site(read_site(site, None), _notify)
        _console().print(tables)
        raise typer.Exit(ExitCode.OK if are_alike else ExitCode.USER_ERROR)
    if gpus is not None:
        raise UserError(f"--gpus {gpus}: only --calibrate takes GPUs; doctor looks at all that are visible")
    findings = diagnose()
    _console().print(render(findings, supported_choices(inspect_machine())))
    raise typer.Exit(
        ExitCode.USER_ERROR if any(finding.status == "broken" for finding in findings) else ExitCode.OK
    )


@app.command()
def schema() -> None:
    """Print the JSON Schema of suite files, for editors."""
    from selectbench.suite.load import json_schema

    _echo_json(json_schema())


@app.command()
def init(
    path: Annotated[Path, typer.Argument(metavar="FILE", help="The file to write.")] = Path("suite.yaml"),
    source: Annotated[str | None, typer.Option("--from", metavar="NAME", help="A shipped suite.")] = None,
    command: Annotated[
        str | None,
        typer.Option("--from-command", metavar="COMMAND", help="Run this training a few steps, and compare it."),
    ] = None,
) -> None:
    """Write a commented suite to start from; an existing file is left alone."""
    import shutil

    from selectbench.errors import UserError
    from selectbench.suite.load import scripts_of, template

    if path.exists():
        raise UserError(f"{path}: exists already; name another file")
    if not path.parent.is_dir():
        raise UserError(f"{path}: there is no folder {path.parent}")
    if command is not None and source is not None:
        raise UserError("--from copies a shipped suite and --from-command makes one: leave one of them out")
    text = (template(source) if command is None else _observed_suite(command, path)).replace(
        "suite.yaml", path.name
    )
    try:
        with path.open("x", encoding="utf-8", newline="\n") as stream:
            stream.write(text)
        scripts = scripts_of(source)
        if scripts is not None and not (target := path.parent / scripts.name).exists():
            shutil.copytree(scripts, target, ignore=shutil.ignore_patterns("__pycache__"))
    except FileExistsError:
        raise UserError(f"{path}: exists already; name another file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot write: {error.strerror}") from None
    typer.echo(f"{path} written; next: selectbench plan {path}")


def _observed_suite(command: str, path: Path) -> str:
    from selectbench.launch.command import observe, observed_lines, suite_text
    from selectbench.report.terminal import observed_table

    observed = observe(command, _notify)
    _console().print(observed_table(observed_lines(observed)))
    return suite_text(command, observed, path.absolute().parent)
