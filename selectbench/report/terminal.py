"""What commands print: rankings, plans, data, past runs, measured rates, comparisons and gates."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import accumulate, zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from rich import box
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.table import Table as RichTable
from rich.text import Text

from selectbench import units
from selectbench.analysis.gate import Change, Compared, Gate
from selectbench.analysis.tuning import EXTENSIONS
from selectbench.gpu.devices import MatmulDtype, peak_flops_per_second
from selectbench.planning.duration import Estimate, Outlook, StageCost
from selectbench.planning.plan import Plan, PlannedOption
from selectbench.record.environment import Calibration
from selectbench.record.run_folder import PastRun
from selectbench.report import document as doc
from selectbench.report.evidence import cleaning_lines, machine_choice_text
from selectbench.suite.command import ONE_NODE, CommandChoices, CommandNode, arguments
from selectbench.suite.metrics import METRICS
from selectbench.suite.suite import Suite, besides_the_rate
from selectbench.text import clean, one_line, visible

if TYPE_CHECKING:
    from selectbench.data.prepared import Prepared, Samples

_NAME_MOST = 40
_WIDE_FROM = 100
"""Columns of a terminal from which a ratio has its interval, and names and remarks have more room."""
_RANK_WIDTH = 4
"""Room for a rank of two digits and a space at each side, so that ten rows have the same columns as nine."""
_ROW_STYLES: Mapping[doc.RowKind, str] = {
    "first": "bold green", "failed": "red", "barred": "yellow", "reference": "italic",
    "better": "green", "worse": "bold red", "undecided": "yellow",
}  # fmt: skip
_BAR_WIDTH = 40
_ANSWER_MOST = 150
_LINE_MOST = 1000
_MOST_DIFFERENCES = 25
_VERDICT_KINDS: Mapping[str, doc.RowKind] = {"regression": "worse", "inconclusive": "undecided", "pass": "better"}
"""The kind of row by verdict, the worst first."""
_COMPARISON_NOTE = (
    "Reference and run are geometric means over their common seeds: their ratio is the change, with the 95 % "
    "interval of that change by itself; verdicts hold for all tested changes together. Better or worse needs a p "
    "of at most 5 %, adjusted by Holm for all tested changes, and a change above the metric's threshold. What "
    "differs between whole runs, such as the day, is part of the change."
)


class HarmlessConsole(Console):
    """A console that prints no control characters of the text given to it: a terminal obeys our styles alone."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterator[Segment]:
        """The segments of `Console.render`, without control characters in their text."""
        for segment in super().render(renderable, options):
            is_ours = segment.control or segment.text.isprintable()
            yield segment if is_ours else segment._replace(text=clean(segment.text))


def _print(console: Console, lines: Iterable[str], style: str = "", most: int = _LINE_MOST) -> None:
    for line in lines:
        console.print(Text(line if len(line) <= most else visible(line, most), style=style))


def print_document(console: Console, document: doc.Document) -> None:
    """Prints the title, all blocks and, last, the answer; headings of sections are not shown."""
    title = [document.title, document.question] if document.question else [document.title]
    _print(console, [": ".join(map(one_line, title))], "bold")
    style = ""
    for block in (*document.opening, *(block for section in document.sections for block in section.blocks)):
        if isinstance(block, doc.Table):
            style = "dim"  # what comes after a table is about it
            table, left_out = _rich_table(block, console.width)
            console.print(table)
            _print(console, filter(None, [left_out]), style)
        elif isinstance(block, doc.Listing):
            opening = "warning: " if block.is_warning else ""
            _print(console, [opening + _plain_text(item) for item in block.items], "yellow" if opening else style)
        elif isinstance(block, doc.Paragraph):
            _print(console, [_plain_text(block.text)], "bold" if block.is_strong else style)
    console.print()
    _print(console, [one_line(document.answer)], "bold", most=20 * _LINE_MOST)  # it is cut in a hostile run alone


def _plain_text(text: doc.Text) -> str:
    parts = [text] if isinstance(text, str) else [part if isinstance(part, str) else part.text for part in text]
    return one_line("".join(parts))


def _rich_table(table: doc.Table, width: int) -> tuple[RichTable, str]:
    """A table for a terminal of `width` columns, and a note on what its rows' names leave out, '' for nothing.

    Cells wrap, except figures of a table that may drop columns.
    """
    naming = [place for place, column in enumerate(table.columns) if column.names_row]
    names = [doc.value_text(_bare_value(row[place])) for place in naming for row in table.rows]
    short, left_out = doc.labels(names, _name_room(width >= _WIDE_FROM), _NAME_MOST)
    drops = any(column.droppable for column in table.columns)
    is_short = drops and width < _WIDE_FROM
    cells = [[_cell_text(cell, column, is_short, short) for cell, column in zip(row, table.columns, strict=True)]
             for row in table.rows]  # fmt: skip
    rich = RichTable(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    places = _columns_that_fit(table.columns, cells, width) if drops else range(len(table.columns))
    for column in (table.columns[place] for place in places):
        is_unbroken = column.align == "right" and drops
        rich.add_column(
            column.heading, justify=column.align, no_wrap=is_unbroken,
            overflow="ellipsis" if is_unbroken else "fold", min_width=6 if column.names_row else None,
        )  # fmt: skip
    for row, kind in zip_longest(cells, table.kinds):
        rich.add_row(*(Text(row[place]) for place in places), style=_ROW_STYLES.get(kind, ""))
    return rich, left_out


def _name_room(wide: bool) -> int:
    return 24 if wide else 18


def _bare_value(cell: doc.Cell) -> doc.Value:
    return cell.value if isinstance(cell, doc.Stack) else cell


def _cell_text(cell: doc.Cell, column: doc.Column, is_short: bool, short: Mapping[str, str]) -> str:
    value = _bare_value(cell)
    if isinstance(value, doc.Ratio) and is_short:
        return value.texts(is_short=True)[0]
    return short[doc.value_text(value)] if column.names_row else doc.value_text(value)


def _columns_that_fit(columns: Sequence[doc.Column], cells: Sequence[Sequence[str]], width: int) -> list[int]:
    """Indices of the columns to show: of those that may be dropped the first ones, as many as there is room for."""
    wide = width >= _WIDE_FROM
    widths = [_column_width(column, [row[place] for row in cells], wide) for place, column in enumerate(columns)]
    widths[0] = max(widths[0], _RANK_WIDTH)
    room = width - sum(used for used, column in zip(widths, columns, strict=True) if not column.droppable)
    droppable = [place for place, column in enumerate(columns) if column.droppable]
    used = accumulate(widths[place] for place in droppable)
    dropped = [place for place, total in zip(droppable, used, strict=True) if total > room]
    return [place for place in range(len(columns)) if place not in dropped]


def _column_width(column: doc.Column, cells: Sequence[str], wide: bool) -> int:
    """A column's width in characters, with the space beside it; of long names and remarks, which wrap, a part."""
    longest = max(map(len, (column.heading, *cells)))
    if column.names_row:
        return max(8, 2 + min(_name_room(wide), longest))
    if column.align == "left":
        return 2 + min(24 if wide else 10, longest)
    return longest + 2


# What would run: a plan, and what the suite leaves open.


def _sum_of_known(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None


def plan_as_json(outlook: Outlook) -> str:
    """The plan as JSON, with what its stages cost."""
    plan, costs = outlook.plan, outlook.costs
    content: dict[str, Any] = {
        "suite": plan.suite.name, "profile": plan.suite.profile, "device": plan.suite.device,
        "baseline": plan.suite.baseline, "parameters": plan.parameters, "tokens_per_trial": plan.tokens,
        "epochs": plan.epochs, "tuned": list(plan.suite.tune.parameters) if plan.suite.tune else [],
        "machine_choices": [choice.model_dump(mode="json") for choice in plan.suite.left_open.machine_choices],
        "expected_seconds": _sum_of_known([cost.seconds for cost in costs]),
        "stages": [asdict(cost) for cost in costs],
        "own_code_sha256": plan.own_code_sha256, "warnings": plan.warnings,
        "notes": [*_obstacle_lines(outlook), *outlook.notes], "saved_bytes": plan.saved_bytes, "lanes": plan.lanes,
        "nodes": plan.nodes, "options": [_option_as_json(plan, p, outlook.estimate) for p in plan.options],
        "trials": [{"trial_id": p.trial.trial_id, "option": p.trial.option, "seed": p.trial.seed, "round": p.round}
                   for p in plan.trials],
    }  # fmt: skip
    if outlook.script:
        content["slurm"] = {"told": list(outlook.slurm), "script": outlook.script}
    return json.dumps(content, indent=2)


def _obstacle_lines(outlook: Outlook) -> list[str]:
    return [f"this run cannot start here: {obstacle}" for obstacle in outlook.obstacles]


def _option_as_json(plan: Plan, planned: PlannedOption, estimate: Estimate | None) -> dict[str, Any]:
    option, size = planned.option, planned.size
    first = {"option": option.name, "differs_in": option.differs_in}
    steps = planned.gradient_accumulation_steps
    layout = {"gradient_accumulation_steps": steps, "world_size": planned.world_size}
    last = {
        "python": option.choices.python, "unsupported": planned.unsupported,
        "expected_seconds_per_trial": estimate.seconds.get(option.name) if estimate else None,
    }  # fmt: skip
    if plan.suite.command is not None:
        return {**first, **layout, **last, "arguments": _command(plan, planned)}
    job, choices = plan.suite.job_of(option), option.built
    return {
        **first, "optimizer": choices.optimizer.model_dump(mode="json"),
        "global_batch_size": job.global_batch_size, "max_steps": job.max_steps,
        "warmup_steps": job.lr_schedule.warmup_steps, "precision": choices.precision.name,
        "micro_batch_size": choices.micro_batch_size, "expected_peak_memory_bytes": planned.peak_bytes,
        "parameters": planned.parameters, "vocab_size": size and size.vocab_size,
        "tokenizer_entries": planned.entries, "embedding_parameters": size and size.embeddings, **layout,
        "strategy": choices.strategy.model_dump(mode="json"), "framework": choices.framework.name, **last,
    }  # fmt: skip


def plan_document(outlook: Outlook) -> doc.Document:
    """What would run, and first why it can't."""
    plan, estimate = outlook.plan, outlook.estimate
    *stages, answer = _cost_lines(plan, estimate, outlook.costs)
    unsupported = [f"{o.option.name}: unsupported: {o.unsupported}" for o in plan.options if o.unsupported]
    details = [*unsupported, *_settings_lines(plan.suite), *stages, *outlook.slurm]
    head = (plan.suite.question, answer, not outlook.obstacles)
    return doc.Document(
        plan.suite.name, doc.warnings([*plan.warnings, *outlook.notes]), *head,
        opening=(*(doc.Paragraph(line, is_strong=True) for line in _obstacle_lines(outlook)),
                 doc.Listing(list(_plan_lines(plan))), _plan_table(plan, estimate), doc.Listing(details)),
    )  # fmt: skip


def _plan_lines(plan: Plan) -> Iterator[str]:
    """The job, what decides, what the machine chose, what is kept and what is tuned."""
    suite = plan.suite
    profile = f", profile {suite.profile}" if suite.profile else ""
    yield f"device {suite.device}{profile}; baseline {suite.baseline}; seeds {', '.join(map(str, suite.seeds))}"
    if suite.command is not None:
        yield f"command of {suite.baseline}, seed {suite.seeds[0]}: {_command(plan, plan.planned(suite.baseline))}"
        end = "until it ends by itself" if suite.command.stop == "natural_end" else "and is stopped then"
        yield f"each trial: {suite.command.stops_after} steps, {end}, in {visible(suite.command.directory)}"
    else:
        jobs = [suite.job_of(planned.option) for planned in plan.options]
        products = dict.fromkeys(f"{job.max_steps} steps x {job.global_batch_size}" for job in jobs)
        epochs = f"{plan.epochs:.2f}" if plan.epochs is not None else "-"
        yield f"model: {_model_words(plan.planned(suite.baseline))}"
        tokens = f"{suite.built.seq_len} tokens = {units.count(plan.tokens)} tokens"
        yield f"each trial: {' or '.join(products)} sequences x {tokens}, {epochs} epochs"
        if targets := plan.targets.get(suite.baseline):
            yield targets[1]
    bounds = " and ".join(suite.decide.constraints)
    constraints = f", of the options that hold {bounds}" if bounds else ", without any constraint"
    yield f"decided by {suite.decide.objective}{constraints}"
    if plan.lane_words:
        yield f"trials run side by side on {plan.lane_words}, whole rounds on each"
    if suite.screen:
        yield f"screened first: an option takes part where it holds {' and '.join(suite.screen)}"
    yield from map(machine_choice_text, suite.left_open.machine_choices)
    if suite.saved_seeds:
        of = "every trial" if suite.save == "all" else f"seed {suite.seeds[0]}"
        yield f"trained models are kept of {of}: {units.size(plan.saved_bytes)} in the run's folder"
    if suite.tune:
        yield f"tuned for each option first: {', '.join(suite.tune.parameters)}"


def _command(plan: Plan, planned: PlannedOption) -> str:
    job, choices = plan.suite.command, planned.option.choices
    assert job is not None
    assert isinstance(choices, CommandChoices)
    where = CommandNode(0, plan.nodes, "HOST:PORT") if plan.nodes > 1 and planned.world_size > 1 else ONE_NODE
    return shlex.join(arguments(job, choices, plan.suite.seeds[0], planned.world_size, where))


def _model_words(planned: PlannedOption) -> str:
    """`124,475,904 parameters, 32% in embeddings of 50,304 tokens`."""
    size, parameters = planned.size, planned.parameters
    if size is None or parameters is None:
        return f"{units.count(parameters)} parameters"
    about = "about " if parameters == size.parameters else ""  # a foreign configuration: without biases and norms
    inside = units.whole_percent(size.embeddings / max(1, size.parameters))
    return f"{about}{units.count(parameters)} parameters, {inside} in embeddings of {size.vocab_size:,} tokens"


def _plan_table(plan: Plan, estimate: Estimate | None) -> doc.Table:
    """A row for each option, with the columns of numbers in which some option has one."""
    seconds, rows = estimate.seconds if estimate else {}, []
    for p in plan.options:
        name, steps = p.option.name, p.gradient_accumulation_steps
        rows.append([
            one_line(name, 80), one_line(", ".join(p.option.differs_in) or "(baseline)", 80), _layout(p),
            units.count(p.option.choices.micro_batch_size), units.DASH if steps is None else f"x {steps}",
            units.size(p.peak_bytes), "unsupported" if p.unsupported else units.duration(seconds.get(name)),
        ])  # fmt: skip
    heads = ("option", "differs in", "runs as", "micro-batch", "accumulation", "memory", "per trial")
    known = [n for n, _ in enumerate(heads) if n < 3 or any(row[n] != units.DASH for row in rows)]
    columns = [
        doc.Column(heads[n], "left" if n < 3 else "right", names_row=n == 0, droppable=heads[n] == "accumulation")
        for n in known
    ]
    kinds: list[doc.RowKind] = ["failed" if p.unsupported else "" for p in plan.options]
    return doc.Table(columns, [[row[n] for n in known] for row in rows], "Options", kinds=kinds)


def _settings_lines(suite: Suite) -> Iterator[str]:
    """For each optimizer of another class than the baseline's, what differs besides the learning rate."""
    base = suite.option(suite.baseline).choices
    for option in suite.options:
        if settings := besides_the_rate(option.choices, base):
            yield f"{option.name} besides the learning rate ({suite.baseline} in brackets): {', '.join(settings)}"


def _layout(planned: PlannedOption) -> str:
    """`single`, `zero 2 x 4 ranks`, `ddp x 2 ranks, hf_trainer`."""
    choices, ranks = planned.option.choices, f"{planned.world_size} rank{'s'[: planned.world_size != 1]}"
    if isinstance(choices, CommandChoices):
        return choices.args or ranks
    stage, name = getattr(choices.strategy, "stage", None), str(choices.strategy.name)
    layout = name if name == "single" else f"{name}{f' {stage}' if stage else ''} x {ranks}"
    return layout if choices.framework.name == "native" else f"{layout}, {choices.framework.name}"


def _cost_lines(plan: Plan, estimate: Estimate | None, costs: Sequence[StageCost]) -> Iterator[str]:
    """A line for each stage where there are several, notes on what may be added, and a last line for all stages."""
    for cost in costs if len(costs) > 1 else ():
        yield f"{cost.title}: {', '.join(_cost_words([cost]))}"
    if any(cost.title == "screening" for cost in costs):
        yield "an option that misses a bound is tried once more; one that misses it twice takes no part afterwards"
    if plan.suite.tune is not None and len(plan.suite.tune.parameters) == 1:
        yield f"at most {EXTENSIONS} trials more of each option where a best setting lies on an edge"
    trials, *amounts = _cost_words(costs)
    if estimate is None or any(cost.seconds is None for cost in costs):
        yield f"{trials} to run; the first round will show how long they take"
        return
    source = f"a rough estimate{', at the pace of earlier trials' if estimate.paced else ''}"
    source = "from earlier trials" if estimate.from_records == len(estimate.seconds) > 0 else source
    yield f"{', '.join([f'{trials} to run', *amounts])} in all ({source})"


def _cost_words(costs: Sequence[StageCost]) -> list[str]:
    """Trials, time and cost of stages, as far as they are known."""
    trials, seconds = sum(cost.trials for cost in costs), _sum_of_known([cost.seconds for cost in costs])
    parts = [f"{trials} trial{'s'[: trials != 1]}"]
    parts += [f"about {units.duration(seconds)}"] if seconds is not None else []
    return [*parts, units.usd(usd)] if (usd := _sum_of_known([cost.usd for cost in costs])) is not None else parts


# Prepared data: what was read, kept and removed.


def data_as_json(prepared_data: Sequence[tuple[Prepared, list[str], Samples]]) -> str:
    """Prepared data as JSON: facts, the options that use it, samples of it."""
    content = [
        {**prepared.facts(), "options": options, "training_samples": samples.training_samples,
         "heldout_samples": samples.heldout_samples, "sha256": samples.sha256}
        for prepared, options, samples in prepared_data
    ]  # fmt: skip
    text = json.dumps(content, indent=2, ensure_ascii=False)
    return "".join(c if c.isprintable() or c == "\n" else json.dumps(c)[1:-1] for c in text)


def print_data(console: Console, prepared_data: Sequence[tuple[Prepared, list[str], Samples]]) -> None:
    """Prints each distinct preparation; most suites have one."""
    for prepared, options, samples in prepared_data:
        if len(prepared_data) > 1:
            _print(console, [f"{one_line(', '.join(options), 200)}:"], "bold")
        target_lines = [f"  {samples.targets[1]}"] if samples.targets else []
        target_lines += _histogram_lines(prepared.document_sizes)
        _print(console, [*cleaning_lines(prepared.facts()), *_token_lines(prepared), *target_lines])
        for name, texts in (("training", samples.training_samples), ("held out", samples.heldout_samples)):
            for sample in texts:
                console.print(Text(f"{name}: ", style="bold") + Text(one_line(sample, 300), style="dim"))
        digests = [f"sha256 of {name}: {digest}" for name, digest in samples.sha256.items()]
        for line in (*digests, f"in {prepared.folder}"):
            console.print(Text(line, style="dim"), soft_wrap=True)


def _token_lines(prepared: Prepared) -> Iterator[str]:
    parts = f"{prepared.train_tokens:,} to train on, {prepared.heldout_tokens:,} held out"
    yield f"tokens: {parts}; vocabulary of {prepared.vocab_size:,}"
    if prepared.has_text and prepared.train_tokens:
        parts = f"{units.size(prepared.train_bytes)} to train on, {units.size(prepared.heldout_bytes)} held out"
        yield f"  {units.significant(prepared.train_bytes / prepared.train_tokens, 3)} bytes a token ({parts})"
    if prepared.entropy_rate is not None:
        yield f"  entropy of the source: {units.significant(prepared.entropy_rate, 6)} nats per token"
    if not prepared.has_text and prepared.removed_lines:
        yield f"  held-out blocks taken out, as they are in the training tokens: {prepared.removed_lines:,}"


def _histogram_lines(sizes: Sequence[int]) -> Iterator[str]:
    powers = [power for power, count in enumerate(sizes) if count]
    if powers:
        yield "size of the documents that were kept:"
        for power in range(powers[0], powers[-1] + 1):
            bar = "#" * round(_BAR_WIDTH * sizes[power] / max(sizes))
            yield f"  below {units.size(2.0**power):>9}  {bar:<{_BAR_WIDTH}} {sizes[power]:,}"


# Past runs, and measured rates.


def print_runs(console: Console, runs: Sequence[PastRun], results: Path) -> None:
    """Prints each run's folder in one unbroken line, as other commands take it, then its facts and its answer."""
    if not runs:
        console.print(f"{results}: no runs yet", markup=False, soft_wrap=True)
    for run in runs:
        console.print(Text(one_line(run.folder, 1000), style="bold"), soft_wrap=True)
        trials = None if run.trials_done is None else f"{run.trials_done} of {run.trials_planned} trials"
        facts = [run.suite, run.started_at, run.hardware, trials]
        _print(console, [f"  {', '.join(one_line(fact, 60) for fact in facts if fact)}"], "dim")
        _print(console, [f"  {one_line(run.note or run.answer or 'no ranking yet', _ANSWER_MOST)}"])


def calibration_table(calibrations: Sequence[tuple[Calibration, bool]]) -> RichTable:
    """A row for each device and dtype; the flag says whether later runs will find it."""
    rates = RichTable(title="Large matrix products", title_justify="left", box=None, pad_edge=False)
    for heading in ("device", "dtype", "rate", "of data sheet", "size"):
        rates.add_column(heading, overflow="fold", justify="left" if heading in ("device", "dtype") else "right")
    for calibration, is_stored in calibrations:
        name = calibration.name + ("" if is_stored else " (shown only: shares are of GPUs)")
        for dtype in get_args(MatmulDtype):
            if (rate := calibration.rates.get(dtype)) is not None:
                peak = peak_flops_per_second(calibration.name, dtype)
                share = units.share(None if peak is None else rate.flops_per_second / peak)
                rated = units.flops_per_second(rate.flops_per_second)
                rates.add_row(Text(name), dtype, rated, share, str(rate.size))
                name = ""
    return rates


def observed_table(lines: Sequence[tuple[str, str]]) -> RichTable:
    """What was observed of a training command; `lines`: pairs of a name and words."""
    rows = RichTable(title="Seen of the command", title_justify="left", box=None, pad_edge=False, show_header=False)
    for name, words in lines:
        rows.add_row(Text(name), Text(one_line(words)))
    return rows


# Runs against each other: `compare` with every change, `gate` with its verdict.


def compared_document(compared: Compared) -> doc.Document:
    """What else differs between the runs, the table of changes, warnings, and a summary in one line."""
    blocks = (doc.Listing(_difference_lines(compared)), _change_table(compared), doc.Paragraph(_COMPARISON_NOTE))
    title = f"{one_line(compared.run)} against {one_line(compared.reference)}"
    return doc.Document(
        title, doc.warnings(compared.notes), answer=_summary_sentence(compared), is_decided=True, opening=blocks
    )


def _difference_lines(compared: Compared) -> list[str]:
    lines = []
    for name, differences in (("suite", compared.suite), ("environment", compared.environment)):
        lines += [f"{name}: nothing differs"] if not differences else []
        for difference in differences[:_MOST_DIFFERENCES]:
            values = (difference.reference, difference.run)
            before, after = (units.DASH if value is None else one_line(value, 120) for value in values)
            lines.append(f"{name}: {one_line(difference.path)}: {before} -> {after}")
        more = len(differences) - _MOST_DIFFERENCES
        lines += [f"{name}: and {more} more"] if more > 0 else []
    for name, why in compared.lost.items():
        lines.append(f"lost: {one_line(name)} completed in the reference and not in the run ({why})")
    only = {"only in the reference": compared.only_in_reference, "only in the run": compared.only_in_run}
    return [*lines, *(f"{words}: {one_line(', '.join(names))}" for words, names in only.items() if names)]


def _change_table(compared: Compared) -> doc.Table:
    heads = ("option", "metric", "reference", "run", "change", "verdict", "seeds")
    columns = [doc.Column(head, "left" if head in ("option", "metric", "verdict") else "right") for head in heads]
    kinds: list[doc.RowKind] = ["" if c.decision == "no_difference" else c.decision for c in compared.changes]
    short = doc.labels(list({change.option: None for change in compared.changes}), _NAME_MOST)[0]
    rows: list[list[doc.Cell]] = [
        [short[one_line(c.option)], METRICS[c.metric].heading, doc.Figure(c.metric, c.reference),
         doc.Figure(c.metric, c.run), _change_ratio(c), c.decision.replace("_", " ") if c.p_adjusted is not None
         else "one seed, no spread" if c.seeds < 2 else "shown only", doc.Amount(c.seeds, units.count)]
        for c in compared.changes
    ]  # fmt: skip
    return doc.Table(columns, rows, "Every change", kinds=kinds)


def _change_ratio(change: Change) -> doc.Ratio:
    return doc.Ratio(change.ratio, change.low, change.high, change.metric, change.reference)


def _summary_sentence(compared: Compared) -> str:
    """`2 worse, 1 better, 5 undecided of 12 tested changes`."""
    lost = [f"{one_line(name, 40)} ({why})" for name, why in compared.lost.items()]
    lost_words = f"completed in the reference and not here: {', '.join(lost)}; " if lost else ""
    tested = [change for change in compared.changes if change.p_adjusted is not None]
    if not tested:
        why = "could be tested: one seed shows no spread" if compared.changes else ""
        return f"{lost_words}nothing {why or 'to compare: no option has a figure in both runs'}."
    counts = _counts_text([change.decision for change in tested], ("worse", "better", "undecided"))
    worst = [
        f"{one_line(c.option, 40)} {METRICS[c.metric].title} {doc.value_text(_change_ratio(c))}"
        for c in tested if c.decision == "worse"
    ]  # fmt: skip
    worst_words = f"; worse: {'; '.join(worst)}" if worst else ""
    return f"{lost_words}{counts or 'no change that matters'} of {len(tested)} tested changes{worst_words}"


def _counts_text(verdicts: Sequence[str], order: Iterable[str]) -> str:
    return ", ".join(f"{verdicts.count(kind)} {kind}" for kind in order if kind in verdicts)


def gate_document(gate: Gate) -> doc.Document:
    """The checks, worst first, and the verdict."""
    note = (
        "Intervals are 95 % for each check by itself. A limit holds or fails where that is shown for all checks "
        f"together (p adjusted by Holm, at {100 * gate.alpha:g}%)."
    )
    title = f"{one_line(gate.run)} against {one_line(gate.reference)}"
    counts = _counts_text([check.verdict for check in gate.checks], _VERDICT_KINDS)
    return doc.Document(
        title, doc.warnings(gate.notes), answer=f"{gate.verdict}: {counts or 'no checks'}",
        is_decided=gate.verdict != "inconclusive", opening=(_check_table(gate), doc.Paragraph(note)),
    )  # fmt: skip


def _check_table(gate: Gate) -> doc.Table:
    checks = sorted(gate.checks, key=lambda check: [*_VERDICT_KINDS].index(check.verdict))
    short = doc.labels(list({check.option: None for check in checks}), 60)[0]
    rows = ([short[one_line(c.option)], one_line(c.limit), c.verdict, one_line(c.detail, 200)] for c in checks)
    kinds = [_VERDICT_KINDS[check.verdict] for check in checks]
    return doc.table("Every check", ("option", "limit", "verdict", "found"), (), rows, kinds=kinds)
