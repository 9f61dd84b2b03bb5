"""What would run: a plan, what the suite leaves open, and the data, for a terminal and as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from selectbench import units
from selectbench.analysis.tuning import EXTENSIONS
from selectbench.plan.duration import Estimate, StageCost
from selectbench.plan.plan import Plan, PlannedOption
from selectbench.report.document import one_line
from selectbench.report.evidence import CLEANING, choice_text, own_warmups
from selectbench.suite.suite import Suite

if TYPE_CHECKING:
    from selectbench.data.prepared import Look, Prepared

_BAR = 40


def total_seconds(costs: Sequence[StageCost]) -> float | None:
    """Expected seconds of the whole run."""
    return _sum([cost.seconds for cost in costs])


def _sum(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None


def plan_as_json(plan: Plan, estimate: Estimate | None, costs: Sequence[StageCost] = ()) -> str:
    """The plan for other programs."""
    content: dict[str, Any] = {
        "suite": plan.suite.name, "profile": plan.suite.profile, "device": plan.suite.device,
        "baseline": plan.suite.baseline, "parameters": plan.parameters, "tokens_per_trial": plan.tokens,
        "epochs": plan.epochs, "tuned": list(plan.suite.tune.parameters) if plan.suite.tune else [],
        "machine_choices": [one.model_dump(mode="json") for one in plan.suite.left_open.machine_choices],
        "expected_seconds": total_seconds(costs),
        "stages": [asdict(cost) for cost in costs],
        "own_code_sha256": plan.own_code_sha256, "warnings": plan.warnings,
        "options": [_option_as_json(plan, planned, estimate) for planned in plan.options],
        "trials": [{"trial_id": p.trial.trial_id, "option": p.trial.option, "seed": p.trial.seed, "round": p.round}
                   for p in plan.trials],
    }  # fmt: skip
    return json.dumps(content, indent=2)


def _option_as_json(plan: Plan, planned: PlannedOption, estimate: Estimate | None) -> dict[str, Any]:
    job = plan.suite.job.of(planned.option.choices)
    return {
        "option": planned.option.name, "differs_in": planned.option.differs_in,
        "global_batch_size": job.global_batch_size, "max_steps": job.max_steps,
        "warmup_steps": job.lr_schedule.warmup_steps,
        "precision": planned.option.choices.precision.name,
        "micro_batch_size": planned.option.choices.micro_batch_size,
        "expected_peak_memory_bytes": planned.peak_bytes,
        "gradient_accumulation_steps": planned.gradient_accumulation_steps, "world_size": planned.world_size,
        "strategy": planned.option.choices.strategy.model_dump(mode="json"),
        "framework": planned.option.choices.framework.name, "python": planned.option.choices.python,
        "unsupported": planned.unsupported,
        "expected_seconds_per_trial": estimate.seconds.get(planned.option.name) if estimate else None,
    }  # fmt: skip


def print_plan(
    console: Console, plan: Plan, estimate: Estimate | None, notes: list[str], costs: Sequence[StageCost] = ()
) -> None:
    """What would run, for a person."""
    suite = plan.suite
    profile = f", profile {suite.profile}" if suite.profile else ""
    console.print(Text(f"{suite.name}: {suite.question}", style="bold"))
    console.print(Text(f"on the {suite.device}{profile}; baseline {suite.baseline}; seeds {_seeds(suite.seeds)}"))
    epochs = f"{plan.epochs:.2f}" if plan.epochs is not None else "-"
    console.print(
        Text(
            f"model: {units.count(plan.parameters)} parameters; each trial: {_work(plan)} = "
            f"{units.count(plan.tokens)} tokens, {epochs} epochs"
        )
    )
    console.print(Text(f"decided by {suite.decide.objective}{_held(suite.decide.constraints)}"))
    for choice in suite.left_open.machine_choices:
        console.print(Text(choice_text(choice)))
    for line in _of_their_own(suite):
        console.print(Text(line))
    console.print(_table(plan, estimate))
    for planned in plan.options:
        if planned.unsupported:
            console.print(Text(f"{planned.option.name}: unsupported: {planned.unsupported}", style="red"))
    for line in _costs(plan, estimate, costs):
        console.print(Text(line))
    for line in [*plan.warnings, *notes]:
        console.print(Text(f"note: {line}", style="yellow"))


def _work(plan: Plan) -> str:
    """`60 steps x 8 sequences x 128 tokens`; a product for each global batch where options set their own."""
    jobs = [plan.suite.job.of(planned.option.choices) for planned in plan.options]
    products = dict.fromkeys(f"{job.max_steps} steps x {job.global_batch_size}" for job in jobs)
    return f"{' or '.join(products)} sequences x {plan.suite.job.seq_len} tokens"


def _of_their_own(suite: Suite) -> list[str]:
    """Settings that are looked for first, and warm-ups that the suite gives; one that is tuned is not known yet."""
    tuned = f"tuned for each option first: {', '.join(suite.tune.parameters)}" if suite.tune else ""
    warmups = own_warmups(suite)
    return [line for line in (tuned, f"with a warm-up of their own: {warmups}" if warmups else "") if line]


def _held(constraints: list[str]) -> str:
    return f", of the options that hold {' and '.join(constraints)}" if constraints else ", without any constraint"


def _table(plan: Plan, estimate: Estimate | None) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("option", "differs in", "runs as"):
        table.add_column(heading, overflow="fold")
    has_memory = any(planned.peak_bytes is not None for planned in plan.options)
    for heading in ("micro-batch", "accumulation", *(["memory"] if has_memory else []), "per trial"):
        table.add_column(heading, justify="right", no_wrap=True)
    for planned in plan.options:
        seconds = estimate.seconds.get(planned.option.name) if estimate else None
        differs = ", ".join(planned.option.differs_in) or "(baseline)"
        table.add_row(
            Text(planned.option.name),
            Text(differs),
            Text(_layout(planned)),
            str(planned.option.choices.micro_batch_size),
            f"x {planned.gradient_accumulation_steps}",
            *([units.size(planned.peak_bytes)] if has_memory else []),
            "unsupported" if planned.unsupported else units.duration(seconds),
            style="dim" if planned.unsupported else "",
        )
    return table


def _layout(planned: PlannedOption) -> str:
    """`single`, `zero 2 x 4 ranks`, `ddp x 2 ranks, hf_trainer`."""
    choices, ranks = planned.option.choices, planned.world_size
    stage = getattr(choices.strategy, "stage", None)
    strategy = f"{choices.strategy.name} {stage}" if stage else str(choices.strategy.name)
    counted = strategy if strategy == "single" else f"{strategy} x {ranks} rank{'s' if ranks != 1 else ''}"
    return counted if choices.framework.name == "native" else f"{counted}, {choices.framework.name}"


def _seeds(seeds: list[int]) -> str:
    return ", ".join(map(str, seeds))


def _costs(plan: Plan, estimate: Estimate | None, costs: Sequence[StageCost]) -> list[str]:
    """A line for each stage where there are several, and one for all."""
    parts = [_cost(f"{cost.title}: {cost.trials} trials", cost.seconds, cost.usd) for cost in costs[:-1]]
    if parts:
        last = costs[-1]
        parts.append(_cost(f"{last.title}: {last.trials} trials", last.seconds, last.usd))
    if plan.suite.tune is not None and len(plan.suite.tune.parameters) == 1:
        parts.append(f"at most {EXTENSIONS} trials more of each option where a best setting lies on an edge")
    total, usd = total_seconds(costs), _sum([cost.usd for cost in costs])
    head = f"{sum(cost.trials for cost in costs)} trials to run"
    if estimate is None or total is None:
        return [*parts, f"{head}; the first round will tell how long they take"]
    source = "from earlier trials" if estimate.from_records == len(estimate.seconds) > 0 else "a rough estimate"
    return [*parts, f"{_cost(head, total, usd)} in all ({source})"]


def _cost(head: str, seconds: float | None, usd: float | None) -> str:
    parts = [head, f"about {units.duration(seconds)}" if seconds is not None else "",
             units.usd(usd) if usd is not None else ""]  # fmt: skip
    return ", ".join(filter(None, parts))


def data_as_json(found: Sequence[tuple[Prepared, list[str], Look]]) -> str:
    """For other programs; `found`: data, the options that use it, a look at it."""
    content = [
        {**prepared.facts(), "options": options, "training_samples": look.training_samples,
         "heldout_samples": look.heldout_samples, "sha256": look.sha256}
        for prepared, options, look in found
    ]  # fmt: skip
    return json.dumps(content, indent=2, ensure_ascii=False)


def print_data(console: Console, found: Sequence[tuple[Prepared, list[str], Look]]) -> None:
    """Each distinct preparation; most suites have one."""
    for prepared, options, look in found:
        if len(found) > 1:
            console.print(Text(f"{one_line(', '.join(options), 200)}:", style="bold"))
        for line in _data_lines(prepared):
            console.print(Text(line))
        for heading, samples in (("training", look.training_samples), ("held out", look.heldout_samples)):
            for sample in samples:
                console.print(Text(f"{heading}: ", style="bold") + Text(one_line(sample, 300), style="dim"))
        if look.longest_pieces:
            told = ", ".join(repr(piece) for piece in look.longest_pieces)
            console.print(Text("longest pieces: ", style="bold") + Text(one_line(told, 300), style="dim"))
        for name, digest in look.sha256.items():
            console.print(Text(f"sha256 of {name}: {digest}", style="dim"), soft_wrap=True)
        console.print(Text(f"in {prepared.folder}", style="dim"), soft_wrap=True)


def _data_lines(prepared: Prepared) -> list[str]:
    """The counts in words, and the histogram of sizes."""
    found = [*_documents(prepared), *_tokens(prepared)]
    return [*found, *_histogram(prepared.document_sizes)]


def _documents(prepared: Prepared) -> list[str]:
    if not prepared.has_text:
        return []
    kept = prepared.train_documents + prepared.heldout_documents
    gone = sum(prepared.removed.values()) + prepared.removed_documents
    told = (
        f"documents: {prepared.documents_in:,} read = {kept:,} kept ({prepared.train_documents:,} to train on, "
        f"{prepared.heldout_documents:,} held out) + {gone:,} removed"
    )
    found = [told]
    found += [f"  removed: {count:,} {CLEANING.get(step, step)}" for step, count in prepared.removed.items()]
    if prepared.removed_documents:
        found.append(
            f"  removed: {prepared.removed_documents:,} held out, all of whose lines are in the training text"
        )
    found += [f"  changed: {count:,} {CLEANING.get(step, step)}" for step, count in prepared.changed.items()]
    if prepared.removed_lines:
        found.append(f"  held-out lines taken out, as they are in the training text: {prepared.removed_lines:,}")
    return found


def _tokens(prepared: Prepared) -> list[str]:
    told = (
        f"tokens: {prepared.train_tokens:,} to train on, {prepared.heldout_tokens:,} held out; vocabulary of "
        f"{prepared.vocab_size:,}"
    )
    found = [told]
    if prepared.has_text and prepared.train_tokens:
        found.append(
            f"  {units.significant(prepared.train_bytes / prepared.train_tokens, 3)} bytes a token "
            f"({units.size(prepared.train_bytes)} to train on, {units.size(prepared.heldout_bytes)} held out)"
        )
    if prepared.unknown_tokens:
        found.append(f"  unknown to the tokenizer: {prepared.unknown_tokens:,} tokens, whose text is lost")
    if prepared.entropy_rate is not None:
        found.append(f"  entropy of the source: {units.significant(prepared.entropy_rate, 6)} nats per token")
    if not prepared.has_text and prepared.removed_lines:
        found.append(f"  held-out blocks taken out, as they are in the training tokens: {prepared.removed_lines:,}")
    return found


def _histogram(sizes: Sequence[int]) -> list[str]:
    """A bar for each power of two."""
    known = [(power, count) for power, count in enumerate(sizes) if count]
    if not known:
        return []
    most = max(count for _, count in known)
    first, last = known[0][0], known[-1][0]
    rows = [
        f"  below {units.size(2.0**power):>9}  {'#' * round(_BAR * sizes[power] / most):<{_BAR}} {sizes[power]:,}"
        for power in range(first, last + 1)
    ]
    return ["size of the documents that were kept:", *rows]
