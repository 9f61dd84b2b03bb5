"""The sections on what the options ran under and on how the figures came about. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from selectbench import units
from selectbench.analysis.metrics import (
    COST_RULE,
    ENERGY_RULE,
    FLOPS_RULE,
    GPU_STATE_RULE,
    MFU_RULE,
    POWER_CAP,
    Method,
    UtilizationName,
    state_of,
)
from selectbench.analysis.result import GpuRow, MemoryByRank, Ranking, Row, Unknown
from selectbench.plan.duration import source
from selectbench.record.record import Completed, Record
from selectbench.report.document import (
    Amount,
    Cell,
    Column,
    Figure,
    Listing,
    Literally,
    Paragraph,
    Section,
    Table,
    Text,
)
from selectbench.report.plan import machine_choice_lines, own_warmups
from selectbench.report.ranking import figure, known_columns, unknown_states
from selectbench.suite.suite import Suite

_METHODS: dict[Method, str] = {
    "counter": "energy counter", "instant_power": "instant power", "average_power": "averaged power",
}  # fmt: skip
_SHARES: dict[UtilizationName, str] = {
    "mfu": "MFU", "hfu": "HFU", "matmul_rate_share": "share of the measured rate",
}  # fmt: skip
_POWER_CAP = "Power cap: share of the readings in which the software power cap held the clocks down"
_MOST_PEAKS = 8
_MODEL_STATES = (
    "Model states are parameters, gradients and optimizer state of one rank (measured: of the rank that keeps "
    "most). Expected is the formula of Rajbhandari et al. 2020, arXiv:1910.02054: what a strategy shards is "
    "divided by the number of ranks, and gradients have the dtype of the weights that the model computes with; "
    "an implementation may keep them in fp32, or buffers beside them."
)
_MEMORY: Text = (
    ("Allocated and reserved are the CUDA allocator's own peaks, of the rank with most: the tensors, and the "
    "blocks that it keeps for them, each with what optimizer state lies in managed memory beside it. Device peak "
    "is what the GPU itself had in use, the CUDA context, libraries' workspaces and fragments among it, over what "
    "it held right before the trial. All while training, evaluation excluded. "
    "Whether an option fits in so many GiB is told by "), Literally("must fit"), (": the device peak and what the "
    "GPU holds when idle, since both must fit, in the GPU's total less what the driver reserves. A GPU of another "
    "kind, or a fuller one, holds another amount when idle."),
)  # fmt: skip


def _table(caption: str, left: Sequence[str], right: Sequence[str], rows: Iterable[Sequence[Cell]]) -> Table:
    """`left`, `right`: the headings of columns by how they are aligned."""
    return Table([*map(Column, left), *(Column(head, "right") for head in right)], list(rows), caption)


def _mean(row: Row, name: str) -> Figure:
    return figure(row, name, with_spread=False)


def gpu_section(ranking: Ranking) -> list[Section]:
    """State, clocks, energy, and how much of the arithmetic was used; nothing where no trial had GPU meters."""
    rows = [(row, row.gpu) for row in ranking.rows if row.gpu is not None]
    if not rows:
        return []
    names = list(dict.fromkeys(name for _, gpu in rows for name in gpu.names))
    notes = [*unknown_states(ranking), *_unknown_energy(rows), *_unknown_shares(rows), _POWER_CAP]
    trained_on = [Paragraph(f"Trained on {', '.join(names)}.")] if names else []
    tables = [_conditions(rows), _work(rows), *_arithmetic(rows)]
    return [Section("gpu", "GPU", [*trained_on, *tables, Listing([f"{note}." for note in notes])])]


def _conditions(rows: Sequence[tuple[Row, GpuRow]]) -> Table:
    heads = ("SM clock", "memory clock", "highest temperature", "utilisation", "power cap")
    cells: Iterator[list[Cell]] = (
        [row.option, ", ".join(f"{count} {verdict}" for verdict, count in gpu.states.items()),
         Amount(gpu.mean_sm_clock_hertz, units.megahertz), Amount(gpu.mean_memory_clock_hertz, units.megahertz),
         Amount(gpu.highest_temperature_celsius, units.celsius), Amount(gpu.mean_utilization, units.share),
         _power_cap(gpu.clock_limit_shares)]
        for row, gpu in rows
    )  # fmt: skip
    return _table("State and clocks of the GPUs", ("option", "state"), heads, cells)


def _work(rows: Sequence[tuple[Row, GpuRow]]) -> Table:
    cells: Iterator[list[Cell]] = (
        [row.option, _METHODS[gpu.energy_method] if gpu.energy_method else "not known",
         _mean(row, "mean_power_watts"), _mean(row, "joules_per_token")]
        for row, gpu in rows
    )  # fmt: skip
    return _table("Power and energy", ("option", "energy from"), ("power", "energy/token"), cells)


def _arithmetic(rows: Sequence[tuple[Row, GpuRow]]) -> list[Table]:
    """How much of the GPUs' arithmetic was used; nothing where no row's work is known."""
    if not any(gpu.arithmetic.model_flops_per_token for _, gpu in rows):
        return []
    heads = ("FLOPs/token", "peak", "MFU", "HFU", "measured rate", "share of it")
    cells: Iterator[list[Cell]] = (
        [row.option, gpu.arithmetic.dtype, Amount(gpu.arithmetic.model_flops_per_token, units.flops),
         Amount(gpu.arithmetic.peak_flops_per_second, units.flops_per_second),
         _mean(row, "mfu"), _mean(row, "hfu"),
         Amount(gpu.arithmetic.matmul_flops_per_second, units.flops_per_second), _mean(row, "matmul_rate_share")]
        for row, gpu in rows
    )  # fmt: skip
    return [_table("Use of the GPUs' arithmetic", ("option", "products in"), heads, cells)]


def _power_cap(shares: dict[str, float] | None) -> Amount:
    """Share of the readings under the software power cap."""
    return Amount(None if shares is None else shares.get(POWER_CAP, 0.0), units.share)


def _unknown_energy(rows: Sequence[tuple[Row, GpuRow]]) -> list[str]:
    """A line for each cause, with the options that it is true of."""
    found = _by_reason((row.option, gpu.energy_unknown) for row, gpu in rows)
    return [f"Energy is not known: {reason} ({'; '.join(trials)})" for reason, trials in found.items()]


def _unknown_shares(rows: Sequence[tuple[Row, GpuRow]]) -> list[str]:
    """The same for the shares of the GPUs' arithmetic; those that one cause hides in the same trials together."""
    lines: dict[tuple[str, str], list[str]] = {}
    for share, name in _SHARES.items():
        found = _by_reason((row.option, gpu.arithmetic.unknown.get(share, [])) for row, gpu in rows)
        for reason, trials in found.items():
            lines.setdefault((reason, "; ".join(trials)), []).append(name)
    return [f"Not known: {', '.join(names)}: {reason} ({trials})" for (reason, trials), names in lines.items()]


def _by_reason(unknown: Iterable[tuple[str, Sequence[Unknown]]]) -> dict[str, list[str]]:
    """By reason, the options with their seeds: `bf16, seed 0, 1`."""
    found: dict[str, list[str]] = {}
    for option, causes in unknown:
        for cause in causes:
            found.setdefault(cause.reason, []).append(f"{option}, seed {', '.join(map(str, cause.seeds))}")
    return found


def gpus_by_seed(done: Sequence[Record]) -> list[Section]:
    """One option's GPUs, a row for each trial and GPU; nothing where there were no meters."""
    heads = ("SM clock", "highest temperature", "power cap", "peak memory in use", "in use before")
    rows: list[list[Cell]] = [
        [str(record.trial.seed), str(number), *_state_of(record), Amount(gpu.mean_sm_clock_hertz, units.megahertz),
         Amount(gpu.highest_temperature_celsius, units.celsius), _power_cap(gpu.clock_limit_shares),
         Amount(gpu.peak_device_memory_bytes, units.size), Amount(gpu.idle_memory_bytes, units.size)]
        for record in done
        for number, gpu in enumerate(record.meters.gpus if record.meters else [])
    ]  # fmt: skip
    table = _table("GPUs by trial", ("seed", "GPU", "state", "found"), heads, rows)
    return [Section("gpus", "GPUs by trial", [table])] if rows else []


def _state_of(record: Record) -> tuple[str, str]:
    state = state_of(record)
    return (state.verdict, state.detail) if state else (units.DASH, "")


def memory_section(ranking: Ranking) -> list[Section]:
    """Memory of GPUs, or nothing where no completed trial had GPU meters."""
    rows = [(row, row.gpu.memory) for row in ranking.rows if row.gpu is not None and row.n]
    if not rows:
        return []
    heads = ("allocated", "reserved", "device peak over idle", "idle before", "must fit", "the GPU's total",
             "driver's reserve")  # fmt: skip
    metrics = ("peak_memory_bytes", "peak_memory_reserved_bytes", "peak_device_memory_bytes")
    cells: Iterator[list[Cell]] = (
        [row.option, *(_mean(row, name) for name in metrics),
         *(Amount(size, units.size)
           for size in (m.idle_bytes, m.peak_bytes, m.total_bytes, m.driver_reserved_bytes))]
        for row, m in rows
    )  # fmt: skip
    return [Section("memory", "Memory", [_table("Memory of a GPU", ("option",), heads, cells), Paragraph(_MEMORY)])]


def memory_by_rank(ranking: Ranking) -> list[Section]:
    """A section, or nothing where no trial had several ranks or could see its model states."""
    known = [(row.option, row.memory) for row in ranking.rows if row.memory is not None]
    if not any(len(m.peak_bytes_by_rank) > 1 or m.measured_model_state_bytes is not None for _, m in known):
        return []
    heads = ("ranks", "peak of each rank", "model states, expected / measured")
    rows = (
        [name, str(len(m.peak_bytes_by_rank) or units.DASH), _peaks(m.peak_bytes_by_rank), _states(m)]
        for name, m in known
    )
    table = _table("Peaks and model states of the ranks", ("option",), heads, rows)
    return [Section("ranks", "Memory by rank", [table, Paragraph(_MODEL_STATES)])]


def _peaks(peaks: Sequence[float | None]) -> str:
    """In the order of ranks; of many only the range."""
    known = [peak for peak in peaks if peak is not None]
    if len(peaks) > _MOST_PEAKS and known:
        return f"{units.size(min(known))} to {units.size(max(known))}"
    return ", ".join(map(units.size, peaks)) or units.DASH


def _states(memory: MemoryByRank) -> str:
    expected, measured = memory.expected_model_state_bytes, memory.measured_model_state_bytes
    if expected is None and measured is None:
        return units.DASH
    return f"{units.size(expected)} / {units.size(measured)}"


def cost_section(suite: Suite, ranking: Ranking) -> list[Section]:
    """What the job costs at the suite's prices; nothing where it names none."""
    if suite.cost is None:
        return []
    prices = [
        f"{units.usd(suite.cost.usd_per_gpu_hour)} per GPU and hour" if suite.cost.usd_per_gpu_hour else "",
        f"{units.usd(suite.cost.usd_per_kwh)} per kWh" if suite.cost.usd_per_kwh else "",
    ]
    rows: Iterator[list[Cell]] = (
        [row.option, _mean(row, "usd_per_billion_tokens"), _mean(row, "usd_of_job")] for row in ranking.rows
    )
    table = _table("Cost at the suite's prices", ("option",), ("a billion tokens", "the job"), rows)
    told = Paragraph(f"Prices: {' and '.join(filter(None, prices))}. {COST_RULE}")
    return [Section("cost", "Cost", [table, told])]


# How the figures came about, in plain words, from the suite and the records.


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
        state = f"State of the GPUs: {GPU_STATE_RULE} {_SPOILED}"
        return [_watching(suite), state, ENERGY_RULE, *_method_arithmetic(ranking)]
    problems = dict.fromkeys(r.meters.problem for r in done if r.meters and r.meters.problem)
    main = "; peak memory is main memory" if suite.device == "cpu" else ""
    return [f"No GPU meters: {problem}{main}." for problem in problems if problem]


def _method_arithmetic(ranking: Ranking) -> list[str]:
    """The formulas of utilisation and where the peaks are from, where a row's work is known."""
    rows = [row.gpu for row in ranking.rows if row.gpu and row.gpu.arithmetic.model_flops_per_token]
    sheets = {name: source(name) for gpu in rows for name in gpu.names}
    sources = "; ".join(f"{name}: {source}" for name, source in sheets.items() if source)
    told = f" Data sheets: {sources}." if sources else ""
    return [FLOPS_RULE, f"{MFU_RULE}{told}"] if rows else []


def _watching(suite: Suite) -> str:
    settings = suite.meters
    return (
        f"The GPUs are watched from outside the trial, their memory every {settings.memory_interval_seconds:g} s "
        f"and all else every {settings.interval_seconds:g} s. A trial begins once their memory is back where it "
        f"was before the first one, or after {settings.settle_seconds:g} s."
    )
