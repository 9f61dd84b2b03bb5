"""How the figures came about, in plain words, from the suite and the records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from selectbench import units
from selectbench.analysis import energy, flops, gpu_state, mfu
from selectbench.analysis.row import Ranking
from selectbench.plan import peaks
from selectbench.record.record import Completed, Record
from selectbench.report.plan import machine_choice_lines, own_warmups
from selectbench.report.ranking import known_columns
from selectbench.suite.suite import Suite

_SPOILED = (
    "Throttling and sharing spoil speed, energy and cost, sharing the device's memory too: such seeds count in no "
    "mean where there are others, and in no ratio."
)


def method(suite: Suite, ranking: Ranking, records: Sequence[Record], environment: Mapping[str, Any]) -> list[str]:
    """Sentences; `records`: those that count; `environment`: environment.json."""
    done = [record for record in records if isinstance(record.outcome, Completed)]
    lines = [_job(suite), *machine_choice_lines(environment), _same_job(suite, ranking)]
    lines += [*_deciding(ranking), _timing(suite, done)]
    lines += _waits(suite, done)
    lines += _evaluation(suite, done)
    lines += _meters(suite, ranking, done)
    return lines


def _job(suite: Suite) -> str:
    job = suite.job
    model = ", ".join(f"{k} {v}" for k, v in job.model.model_dump(exclude_none=True).items())
    return (
        f"The job: {job.task} on the {suite.device}, model {model}; {job.max_steps:,} optimizer steps of "
        f"{job.global_batch_size:,} sequences of {job.seq_len:,} tokens ({job.tokens_per_step:,} tokens a step, "
        f"{job.tokens_per_step * job.max_steps:,} in all), learning rate {job.lr_schedule.name} after "
        f"{job.lr_schedule.warmup_steps:,} steps of warm-up.{_own_batches(suite)}{_own_warmups(suite)}"
    )


def _own_batches(suite: Suite) -> str:
    """What options that set a global batch of their own do instead."""
    own = {o.name: suite.job.of(o.choices) for o in suite.options}
    told = [
        f"{name} {job.max_steps:,} of {job.global_batch_size:,} after {job.lr_schedule.warmup_steps:,}"
        for name, job in own.items()
        if job.global_batch_size != suite.job.global_batch_size
    ]
    if not told:
        return ""
    return (
        " Options with another global batch train on as many tokens, the same sequences in the same order, in "
        f"steps of their own, with warm-up in proportion: {'; '.join(told)}."
    )


def _own_warmups(suite: Suite) -> str:
    told = own_warmups(suite)
    return f" With a warm-up of their own instead: {told}." if told else ""


def _same_job(suite: Suite, ranking: Ranking) -> str:
    rounds = f"{len(suite.seeds)} seed{'s' if len(suite.seeds) > 1 else ''}"
    checked = "" if any(row.identity.violations for row in ranking.rows) else "; here no row differs undeclared"
    return (
        f"Every option trains the same job once per seed ({rounds}), each trial on its own, options interleaved; a "
        "seed fixes initial weights and data order. Each trial records what it used: digests of initial weights "
        "before any cast, of the tokens consumed in every step and of the evaluation set, the shape "
        "of the learning rate, the steps asked for and applied, and the dtypes, kernel, optimizer and ranks found "
        "on the live objects. These are compared with the baseline's of the same seed, and with what was asked "
        "for; the loss and gradient norm of the first step must agree as closely as the dtypes allow. A difference "
        f"that no choice declares takes a row out of the ranking{checked}."
    )


def _deciding(ranking: Ranking) -> list[str]:
    """How claims are made, and how often they may be wrong."""
    family = ranking.family
    if family is None or not family.tests:
        return []
    known = known_columns(ranking, [*family.thresholds]) or [family.objective]
    thresholds = ", ".join(f"{name} {family.thresholds[name]:.2g}" for name in known)
    tests = "1 test was" if family.tests == 1 else f"{family.tests} tests was"
    return [
        (
            "Options are compared within seeds, as logarithms, so that a difference is a ratio. Where their "
            "spreads agree "
            "the spread is pooled over all of them, where they differ each pair leans the more on its own "
            "(moderated t, Smyth 2004), though a noisy option still widens all intervals. "
            f"One family of {tests} declared: every option against the baseline by "
            f"{family.objective}, "
            "and every constraint. Their p are adjusted by Holm's procedure, and the intervals of these ratios "
            "hold "
            "together, so that any claim of the family is false with a probability of at most "
            f"{family.alpha:.0%}. Better "
            "or worse needs both: an adjusted p of at most that, and a difference above the smallest that "
            "matters, as a "
            f"share: {thresholds}. A constraint holds or fails when its interval lies on one side of the bound; "
            "otherwise "
            f"it is undecided. Ranks come from all pairs of options, adjusted likewise."
        ),
    ]


def _timing(suite: Suite, done: Sequence[Record]) -> str:
    timed = [r.outcome.measurement.timed_seconds for r in done if isinstance(r.outcome, Completed)]
    span = f" (here {units.seconds(min(timed))} to {units.seconds(max(timed))} a trial)" if timed else ""
    return (
        f"Speed is taken over synchronised windows{span} after the first {suite.job.timing.warmup_steps} steps; "
        "evaluation, logging and compilation lie outside. Steps added only to lengthen the timing count for no "
        "figure of quality."
    )


def _waits(suite: Suite, done: Sequence[Record]) -> list[str]:
    """What keeps the host from running ahead of a GPU, of the options that completed a trial."""
    if suite.device != "cuda":
        return []
    completed = {record.trial.option for record in done}
    choices = [pair for o in suite.options if o.name in completed for pair in o.choices.each().items()]
    found: dict[str, dict[str, None]] = {}
    for dimension, choice in choices:
        if choice.waits:
            found.setdefault(choice.waits, {})[f"{dimension} {choice.name}"] = None  # type: ignore[attr-defined]
    told = "; ".join(f"{', '.join(names)} {often}" for often, names in found.items())
    if not told:
        return []
    opening = "Some libraries make the host wait for the device, whatever loop is around them; their rows bear it: "
    return [f"{opening}{told}."]


def _evaluation(suite: Suite, done: Sequence[Record]) -> list[str]:
    if suite.quick or suite.job.eval == "none":
        return ["Quality was not measured."]
    measured = [r.outcome.measurement for r in done if isinstance(r.outcome, Completed)]
    scored = {m.heldout_tokens for m in measured if m.heldout_tokens is not None}
    tokens = f" on {max(scored):,} held-out tokens" if scored else ""
    return [
        f"Quality is the loss after the last step{tokens}, in fp32 for every option.",
        "Perplexity is exp of the loss; bits per byte divide it by the text's bytes and ln 2.",
    ]


def _meters(suite: Suite, ranking: Ranking, done: Sequence[Record]) -> list[str]:
    """How the GPUs were watched, or why not; nothing of records that are older than the meters."""
    if any(row.gpu for row in ranking.rows):
        state = f"State of the GPUs: {gpu_state.RULE} {_SPOILED}"
        return [_watching(suite), state, energy.RULE, *_arithmetic(ranking)]
    problems = dict.fromkeys(r.meters.problem for r in done if r.meters and r.meters.problem)
    main = "; peak memory is main memory" if suite.device == "cpu" else ""
    return [f"No GPU meters: {problem}{main}." for problem in problems if problem]


def _arithmetic(ranking: Ranking) -> list[str]:
    """The formulas of utilisation and where the peaks are from, where a row's work is known."""
    rows = [row.gpu for row in ranking.rows if row.gpu and row.gpu.arithmetic.model_flops_per_token]
    sheets = {name: peaks.source(name) for gpu in rows for name in gpu.names}
    sources = "; ".join(f"{name}: {source}" for name, source in sheets.items() if source)
    told = f" Data sheets: {sources}." if sources else ""
    return [flops.RULE, f"{mfu.RULE}{told}"] if rows else []


def _watching(suite: Suite) -> str:
    settings = suite.meters
    return (
        f"The GPUs are watched from outside the trial, their memory every {settings.memory_interval_seconds:g} s "
        f"and all else every {settings.interval_seconds:g} s. A trial begins once their memory is back where it "
        f"was before the first one, or after {settings.settle_seconds:g} s."
    )
