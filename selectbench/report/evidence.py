"""What the options ran under, and how the figures came about: GPUs, memory, cost, method. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from selectbench import units
from selectbench.analysis import metrics
from selectbench.analysis.result import GpuRow, Ranking, Row, Unknown
from selectbench.analysis.scripts import REPEAT_RULE
from selectbench.choices.model import OwnModel
from selectbench.gpu.devices import source
from selectbench.record.record import Completed, Record
from selectbench.record.run_folder import MODEL, TRIALS
from selectbench.report import document as doc
from selectbench.report.ranking import figure, known_metrics, unknown_state_lines
from selectbench.suite.command import CommandJob
from selectbench.suite.metrics import GPU_STATE
from selectbench.suite.suite import MachineChoice, Suite
from selectbench.text import one_line

_ENERGY_METHODS: dict[metrics.Method, str] = {
    "counter": "energy counter", "instant_power": "instant power", "average_power": "averaged power",
}  # fmt: skip
_ARITHMETIC_SHARES: dict[metrics.UtilizationName, str] = {
    "mfu": "MFU", "hfu": "HFU", "matmul_rate_share": "share of the measured rate",
}  # fmt: skip
_POWER_CAP_NOTE = "Power cap: share of the readings in which the software power cap held the clocks down"
_MOST_PEAKS = 8
_MODEL_STATES = (
    "Model states are parameters, gradients and optimizer state of one rank (measured: of the rank that keeps "
    "most). Expected is the formula of Rajbhandari et al. 2020, arXiv:1910.02054: what a strategy shards is "
    "divided by the number of ranks, and gradients have the dtype of the weights that the model computes with; "
    "an implementation may keep them in fp32, or buffers beside them."
)
_MEMORY_NOTE: doc.Text = (
    ("Allocated and reserved are the CUDA allocator's own peaks, of the rank with most: the tensors, and the "
    "blocks that it keeps for them, each with the optimizer state in managed memory. Device peak is what the GPU "
    "itself had in use beyond what it held right before the trial, including the CUDA context, libraries' "
    "workspaces and fragmentation. All while training, evaluation excluded. Whether an option fits on a GPU is "
    "shown by "), doc.Literally("must fit"), (", the device peak plus what the GPU holds when idle, which differs "
    "between machines: it must fit in the GPU's total less what the driver reserves."),
)  # fmt: skip
_SPOILED_RULE = (
    "Throttling and sharing spoil speed, energy and cost, sharing the device's memory too: such seeds are left "
    "out of means where there are others, and out of all ratios."
)
_BUSY_RULE = (
    "Such trials are left out of speed, unless an option would be left with fewer than two, or half, of its seeds: "
    "then all count and nothing is said of how many more seeds would do."
)
CLEANING = {
    "unreadable": "not readable", "empty": "empty", "too_short": "too short", "too_long": "too long",
    "duplicate": "the same as another", "in_training": "held out, but in the training text as a whole",
    "surrogates": "broken characters replaced", "unicode": "Unicode normalised",
    "control_characters": "control characters removed", "white_space": "white space collapsed",
}  # fmt: skip
"""What each step of the cleaning removes or changes."""


def _mean(row: Row, name: str) -> doc.Figure:
    return figure(row, name, with_spread=False)


def gpu_section(ranking: Ranking) -> list[doc.Section]:
    """State, clocks, energy, and how much of the arithmetic was used; nothing where no trial had GPU meters."""
    rows = [(row, row.gpu) for row in ranking.rows if row.gpu is not None]
    if not rows:
        return []
    names = ", ".join(dict.fromkeys(name for _, gpu in rows for name in gpu.names))
    blocks: list[doc.Block] = [doc.Paragraph(f"Trained on {names}.")] if names else []
    heads = (*(figure.heading for figure in GPU_STATE), "power cap")
    blocks.append(doc.table("State and clocks of the GPUs", ("option", "state"), heads, (
        [row.option, ", ".join(f"{count} {verdict}" for verdict, count in gpu.states.items()),
         *(doc.Amount(gpu.state[figure.name], figure.show) for figure in GPU_STATE),
         doc.Amount(None if caps is None else caps.get(metrics.POWER_CAP, 0.0), units.share)]
        for row, gpu, caps in ((row, gpu, gpu.clock_limit_shares) for row, gpu in rows)
    )))  # fmt: skip
    blocks.append(doc.table("Power and energy", ("option", "energy from"), ("power", "energy/token"), (
        [row.option, _ENERGY_METHODS[gpu.energy_method] if gpu.energy_method else "not known",
         _mean(row, "mean_power_watts"), _mean(row, "joules_per_token")]
        for row, gpu in rows
    )))  # fmt: skip
    if any(gpu.arithmetic.model_flops_per_token for _, gpu in rows):
        rates = ("FLOPs/token", "peak", "MFU", "HFU", "measured rate", "share of it")
        blocks.append(doc.table("Use of the GPUs' arithmetic", ("option", "products in"), rates, (
            [row.option, work.dtype, doc.Amount(work.model_flops_per_token, units.flops),
             doc.Amount(work.peak_flops_per_second, units.flops_per_second), _mean(row, "mfu"), _mean(row, "hfu"),
             doc.Amount(work.matmul_flops_per_second, units.flops_per_second), _mean(row, "matmul_rate_share")]
            for row, work in ((row, gpu.arithmetic) for row, gpu in rows)
        )))  # fmt: skip
    notes = [*unknown_state_lines(ranking), *_unknown_lines(rows), _POWER_CAP_NOTE]
    return [doc.Section("gpu", "GPU", [*blocks, doc.Listing([f"{note}." for note in notes])])]


def _unknown_lines(rows: Sequence[tuple[Row, GpuRow]]) -> list[str]:
    """Why energy and shares of the arithmetic are not known; one line where one cause hides several shares."""
    energy = _trials_by_reason((row.option, gpu.energy_unknown) for row, gpu in rows)
    lines: dict[tuple[str, str], list[str]] = {}
    for share, name in _ARITHMETIC_SHARES.items():
        causes = _trials_by_reason((row.option, gpu.arithmetic.unknown.get(share, [])) for row, gpu in rows)
        for reason_and_trials in causes.items():
            lines.setdefault(reason_and_trials, []).append(name)
    return [
        *(f"Energy is not known: {reason} ({trials})" for reason, trials in energy.items()),
        *(f"Not known: {', '.join(names)}: {reason} ({trials})" for (reason, trials), names in lines.items()),
    ]


def _trials_by_reason(unknown: Iterable[tuple[str, Sequence[Unknown]]]) -> dict[str, str]:
    """By reason, the options with their seeds: `bf16, seed 0, 1; fp32, seed 0`."""
    trials: dict[str, list[str]] = {}
    for option, causes in unknown:
        for cause in causes:
            trials.setdefault(cause.reason, []).append(f"{option}, seed {', '.join(map(str, cause.seeds))}")
    return {reason: "; ".join(options) for reason, options in trials.items()}


def memory_sections(ranking: Ranking) -> Iterator[doc.Section]:
    """Memory of GPUs where completed trials had meters; of ranks where several ran or states were measured."""
    rows = [(row, row.gpu.memory) for row in ranking.rows if row.gpu is not None and row.n]
    if rows:
        heads = ("allocated", "reserved", "device peak over idle", "idle before", "must fit", "the GPU's total",
                 "driver's reserve")  # fmt: skip
        names = ("peak_memory_bytes", "peak_memory_reserved_bytes", "peak_device_memory_bytes")
        gpu_table = doc.table("Memory of a GPU", ("option",), heads, (
            [row.option, *(_mean(row, name) for name in names),
             *(doc.Amount(size, units.size)
               for size in (m.idle_bytes, m.peak_bytes, m.total_bytes, m.driver_reserved_bytes))]
            for row, m in rows
        ))  # fmt: skip
        yield doc.Section("memory", "Memory", [gpu_table, doc.Paragraph(_MEMORY_NOTE)])
    ranks = [(row.option, row.memory) for row in ranking.rows if row.memory is not None]
    if any(len(m.peak_bytes_by_rank) > 1 or m.measured_model_state_bytes is not None for _, m in ranks):
        by_rank: list[list[doc.Cell]] = []
        for option, m in ranks:
            peaks = m.peak_bytes_by_rank
            known_peaks = [peak for peak in peaks if peak is not None]
            peaks_text = doc.joined(peaks, units.size, ", ")
            if len(peaks) > _MOST_PEAKS and known_peaks:
                peaks_text = doc.joined((min(known_peaks), max(known_peaks)), units.size)
            states = (m.expected_model_state_bytes, m.measured_model_state_bytes)
            states_text = doc.joined(() if states == (None, None) else states, units.size, " / ")
            by_rank.append([option, str(len(peaks) or units.DASH), peaks_text, states_text])
        right = ("ranks", "peak of each rank", "model states, expected / measured")
        rank_table = doc.table("Peaks and model states of the ranks", ("option",), right, by_rank)
        yield doc.Section("ranks", "Memory by rank", [rank_table, doc.Paragraph(_MODEL_STATES)])


def cost_section(suite: Suite, ranking: Ranking) -> list[doc.Section]:
    """What the job costs at the suite's prices; empty where the suite names none."""
    if suite.cost is None:
        return []
    prices = [
        f"{units.usd(suite.cost.usd_per_gpu_hour)} per GPU and hour" if suite.cost.usd_per_gpu_hour else "",
        f"{units.usd(suite.cost.usd_per_kwh)} per kWh" if suite.cost.usd_per_kwh else "",
    ]
    costs = doc.table("Cost at the suite's prices", ("option",), ("a billion tokens", "the job"), (
        [row.option, _mean(row, "usd_per_billion_tokens"), _mean(row, "usd_of_job")] for row in ranking.rows
    ))  # fmt: skip
    rule = doc.Paragraph(f"Prices: {' and '.join(filter(None, prices))}. {metrics.COST_RULE}")
    return [doc.Section("cost", "Cost", [costs, rule])]


# Trained models that were kept: the line that loads each.


_LOADERS = {
    "causal_lm": "AutoModelForCausalLM", "masked_lm": "AutoModelForMaskedLM", "seq2seq": "AutoModelForSeq2SeqLM",
}  # fmt: skip


def loading_lines(suite: Suite, records: Sequence[Record], run: Path = Path()) -> dict[tuple[str, int], str]:
    """The Python that loads each model, by option and seed. `records`: those that count; `run`: its folder."""
    lines = {}
    trials = (r.trial for r in records if r.trial.seed in suite.saved_seeds and isinstance(r.outcome, Completed))
    for trial in trials:
        folder = run / TRIALS / trial.trial_id / MODEL
        if isinstance(suite.job_of(suite.option(trial.option)).model, OwnModel):
            line = f'model.load_state_dict(safetensors.torch.load_file("{folder.as_posix()}/model.safetensors"))'
        else:
            line = f'transformers.{_LOADERS[suite.job.task]}.from_pretrained("{folder.as_posix()}")'
        lines[trial.option, trial.seed] = line
    return lines


def model_section(suite: Suite, records: Sequence[Record]) -> Iterator[doc.Section]:
    """How to load the trained models that were kept; nothing where none was."""
    if lines := loading_lines(suite, records):
        sentence = "In fp32, as the last evaluation saw them, each with its tokenizer; typed in the run's folder:"
        code = (f"# {one_line(option)}, seed {seed}\n{line}" for (option, seed), line in lines.items())
        yield doc.Section("weights", "Trained models", [doc.Paragraph(sentence), doc.Code("\n".join(code))])


# How the figures came about, in plain words, from the suite and the records.


_UNCHECKED = (
    "Unchecked lines of records.jsonl: {:,}. Earlier versions wrote no checksum, so that a digit changed in them "
    "would not be noticed."
)


def method_lines(
    suite: Suite, ranking: Ranking, records: Sequence[Record], environment: Mapping[str, Any], unchecked: int = 0
) -> list[str]:
    """How the figures came about. `records`: those that count; `unchecked`: how many records have no checksum."""
    completed = [record for record in records if isinstance(record.outcome, Completed)]
    return [
        _job_sentence(suite), *machine_choice_lines(environment), *_comparison(suite, ranking),
        *_measurement(suite, completed), *_meters(suite, ranking, completed),
        *([_UNCHECKED.format(unchecked)] if unchecked else []),
    ]  # fmt: skip


def _command_sentence(job: CommandJob, suite: Suite) -> str:
    held_out, end = "none", "until it ends by itself"
    if job.eval != "none":
        held_out = f"on held-out tokens of {Path(job.eval.heldout or job.eval.text[0]).name}"
    if job.stop != "natural_end":
        end = f"stopped after {job.stops_after:,} optimizer steps"
    rows = f", {job.global_batch_size:,} rows a step" if job.global_batch_size is not None else ""
    return (
        f"The job: the command `{job.command}`, run unchanged on device {suite.device}, {end}{rows}; evaluation "
        f"{held_out}. What it did was observed inside its own process."
    )


def _job_sentence(suite: Suite) -> str:
    if suite.command is not None:
        return _command_sentence(suite.command, suite)
    job = suite.built
    model = ", ".join(f"{k} {v}" for k, v in job.model.model_dump(exclude_none=True).items())
    others = [
        f"{name} in {own.max_steps:,} steps of {own.global_batch_size:,} after {own.lr_schedule.warmup_steps:,}"
        for name, own in {option.name: suite.job_of(option) for option in suite.options}.items()
        if (own.max_steps, own.lr_schedule.warmup_steps) != (job.max_steps, job.lr_schedule.warmup_steps)
    ]
    train = f" On the same sequences in steps of their own train {'; '.join(others)} of warm-up." if others else ""
    return (
        f"The job: {job.task}, device {suite.device}, model {model}; {job.max_steps:,} optimizer steps of "
        f"{job.global_batch_size:,} sequences of {job.seq_len:,} tokens ({job.tokens_per_step:,} tokens a step, "
        f"{job.tokens_per_step * job.max_steps:,} in all), learning rate {job.lr_schedule.name} after "
        f"{job.lr_schedule.warmup_steps:,} steps of warm-up.{train}"
    )


def machine_choice_text(choice: MachineChoice) -> str:
    """`precision: fp16_mixed, as compute capability 7.5 has no bf16, which needs 8.0 (asked: auto)`."""
    return f"{choice.setting}: {choice.taken}, as {choice.why} (asked: {choice.asked})"


def machine_choice_lines(environment: Mapping[str, Any]) -> list[str]:
    """The settings that the suite left to the machine, and what was taken; empty where it left none."""
    keys, stored = MachineChoice.model_fields, environment.get("machine_choices") or []
    choices = [MachineChoice(**{key: str(choice.get(key, "")) for key in keys}) for choice in stored]
    sentences = " ".join(f"{machine_choice_text(choice)}." for choice in choices)
    return [f"Left to the machine, and the same for every option: {sentences}"] if sentences else []


def _comparison(suite: Suite, ranking: Ranking) -> Iterator[str]:
    """What is the same for every option, and how claims are made."""
    rounds = f"{len(suite.seeds)} seed{'s'[: len(suite.seeds) > 1]}"
    checked = "" if any(row.identity.violations for row in ranking.rows) else "; here no row differs undeclared"
    yield (
        f"Every option trains the same job once per seed ({rounds}), options interleaved. What each trial used is "
        "compared with the baseline's of the same seed and with what was asked for; a difference that no choice "
        f"declares takes a row out of the ranking{checked} (docs/how-it-measures.md)."
    )
    family = ranking.family
    if family is None or not family.tests:
        return
    names = known_metrics(ranking, [*family.thresholds]) or [family.objective]
    thresholds = ", ".join(f"{name} {1 + family.thresholds[name]:.6g}x" for name in names)
    tests = f"{family.tests} test{'s' * (family.tests > 1)}"
    seeds = " and ".join(map(str, family.looks))
    looks = f", and at most 5% over the judgements of this run, with {seeds} seeds" if seeds else ""
    yield (
        f"Options are compared within seeds, by {tests} in all: every option against the baseline by "
        f"{family.objective}, and every constraint. Any claim is false with a probability of at most "
        f"{100 * family.alpha:g}%{looks}. Better or worse also needs a measured ratio beyond the smallest factor "
        f"that matters, up or down: {thresholds} (docs/how-it-decides.md)."
    )


def _measurement(suite: Suite, completed: Sequence[Record]) -> Iterator[str]:
    measured = [r.outcome.measurement for r in completed if isinstance(r.outcome, Completed)]
    timed = [m.timed_seconds for m in measured]
    span = f" (here {units.seconds(min(timed))} to {units.seconds(max(timed))} a trial)" if timed else ""
    if suite.command is not None:
        yield from _observation(suite, span)
        return
    yield (
        f"Speed is taken over synchronised windows{span} after the first {suite.job.timing.warmup_steps} steps; "
        "evaluation, logging and compilation lie outside. Steps added only to lengthen the timing count for no "
        "figure of quality."
    )
    trained_options = {record.trial.option for record in completed} if suite.device == "cuda" else ()
    waiting: dict[str, dict[str, None]] = {}
    for option in (option for option in suite.options if option.name in trained_options):
        for dimension, choice in option.choices.by_dimension().items():
            if choice.waits:
                waiting.setdefault(choice.waits, {})[f"{dimension} {choice.name}"] = None  # type: ignore[attr-defined]
    if libraries := "; ".join(f"{', '.join(names)} {waits}" for waits, names in waiting.items()):
        opening = "Some libraries make the host wait for the device, whatever loop is around them"
        yield f"{opening}; their rows include that time: {libraries}."
    if suite.quick or suite.job.eval == "none":
        yield "Quality was not measured."
        return
    scored = {m.heldout_tokens for m in measured if m.heldout_tokens is not None}
    tokens = f" on {max(scored):,} held-out tokens" if scored else ""
    yield f"Quality is the loss after the last step{tokens}, in fp32 for every option."
    yield "Perplexity is exp of the loss; bits per byte divide it by the text's bytes and ln 2."


def _observation(suite: Suite, span: str) -> Iterator[str]:
    yield (
        f"Speed is taken over the steps{span} after the first {suite.job.timing.warmup_steps}, from the end of an "
        "update to the end of the next; pauses in which the script evaluated or saved do not count."
    )
    if not suite.quick:
        yield REPEAT_RULE
    if not suite.job.evaluates:
        yield "Quality was not measured."
        return
    yield (
        "Quality is the loss on the held-out tokens after the last step: the script's own call of its model is "
        "repeated with these tokens, in evaluation mode and without autocast, and scored by cross entropy in fp32."
    )


def _meters(suite: Suite, ranking: Ranking, completed: Sequence[Record]) -> Iterator[str]:
    """How the GPUs were watched, or why not; nothing for records that are older than the meters."""
    if not any(row.gpu for row in ranking.rows):
        main = "; peak memory is main memory" if suite.device == "cpu" else ""
        yield from (f"No GPU meters: {problem}{main}." for problem in meter_problems(completed))
        if any(isinstance(r.outcome, Completed) and r.outcome.measurement.cpu_seconds for r in completed):
            yield f"{metrics.CPU_STATE_RULE} {_BUSY_RULE}"
        return
    settings = suite.meters
    yield (
        f"The GPUs are watched from outside the trial, their memory every {settings.memory_interval_seconds:g} s "
        f"and all else every {settings.interval_seconds:g} s. A trial begins once their memory is back where it "
        f"was before the first one, or after {settings.settle_seconds:g} s."
    )
    yield f"State of the GPUs: {metrics.GPU_STATE_RULE} {_SPOILED_RULE}"
    yield metrics.ENERGY_RULE
    rows = [row.gpu for row in ranking.rows if row.gpu and row.gpu.arithmetic.model_flops_per_token]
    sheets = {name: source(name) for gpu in rows for name in gpu.names}
    sources = "; ".join(f"{name}: {sheet}" for name, sheet in sheets.items() if sheet)
    if rows:
        yield metrics.FLOPS_RULE
        yield f"{metrics.MFU_RULE} Data sheets: {sources}." if sources else metrics.MFU_RULE


def meter_problems(records: Sequence[Record]) -> list[str]:
    """Why there were no meters, each cause once."""
    return list(dict.fromkeys(r.meters.problem for r in records if r.meters and r.meters.problem))


def cleaning_lines(facts: Mapping[str, Any]) -> list[str]:
    """What cleaning did to the text, from environment.json's `data`; empty for runs without these facts."""
    if "documents_in" not in facts or not facts["documents_in"]:
        return []
    removed, changed = (
        [f"{count:,} {CLEANING.get(step, step)}" for step, count in (facts.get(key) or {}).items()]
        for key in ("removed", "changed")
    )
    if facts.get("removed_documents"):
        removed.append(f"{facts['removed_documents']:,} held out, all of whose lines are in the training text")
    parts = [f"{facts['documents_in']:,} documents were read"]
    parts += [f"removed: {', '.join(removed)}" if removed else "none was removed"]
    parts += [f"changed: {', '.join(changed)}"] if changed else []
    parts += [f"{facts['train_documents']:,} are trained on and {facts['heldout_documents']:,} held out"]
    if facts.get("removed_lines"):
        parts.append(f"{facts['removed_lines']:,} held-out lines were taken out as the training text has them")
    if facts.get("unknown_tokens"):
        parts.append(f"{facts['unknown_tokens']:,} tokens are unknown to the tokenizer, so that their text is lost")
    return [f"The text: {'; '.join(parts)}."]
