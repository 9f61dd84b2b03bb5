"""The formula of each metric of the catalogue, and which trials' GPUs were in a state to be believed."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from operator import attrgetter
from typing import Literal, NamedTuple, TypeVar

from selectbench import units
from selectbench.choices import AnyChoices, Choices
from selectbench.choices.choice import is_own
from selectbench.gpu.devices import peak_flops_per_second
from selectbench.record.record import Architecture, Completed, GpuMeters, Measurement, Meters, RankMemory, Record
from selectbench.suite.metrics import METRICS, SECONDS_TO_LOSS
from selectbench.suite.suite import Cost, Suite

# Formulas over what the worker itself measured. What cannot be computed is None, never infinity and never zero.

T = TypeVar("T")
MemoryKind = Literal["cuda_allocated", "cpu_pss_growth"]


def finite(formula: Callable[..., float | None], *arguments: object) -> float | None:
    """The formula's value, or None where it divides by zero or is more than a float holds."""
    try:
        value = formula(*arguments)
        return float(value) if value is not None and math.isfinite(value) else None
    except (OverflowError, ZeroDivisionError):
        return None


def finite_of_each(formula: Callable[[T], float | None], trials: Mapping[int, T]) -> dict[int, float]:
    """`finite` of each trial by its seed; those without a value are left out."""
    return {seed: value for seed, trial in trials.items() if (value := finite(formula, trial)) is not None}


def tokens_per_second(m: Measurement) -> float | None:
    """timed_steps x tokens_per_step / timed_seconds: tokens trained per second by the whole job."""
    tokens = m.timed_steps * m.tokens_per_step if m.timed_tokens is None else m.timed_tokens
    return tokens / m.timed_seconds if m.timed_steps and tokens else None


def peak_memory_bytes(m: Measurement) -> float | None:
    """CUDA: the allocator's peak and managed state. CPU: peak growth of proportional set size; 0 is not known."""
    allocated = with_managed_state(m.peak_memory_allocated_bytes, m)
    return (allocated if allocated is not None else m.peak_pss_growth_bytes) or None


def with_managed_state(allocator_bytes: int | None, m: Measurement | RankMemory) -> int | None:
    """A figure of torch's allocator and the optimizer state in managed memory, which it does not count."""
    return None if allocator_bytes is None else allocator_bytes + (m.managed_state_bytes or 0)


def memory_kind(m: Measurement) -> MemoryKind | None:
    """Which of the two `peak_memory_bytes` is; None where neither was measured."""
    if m.peak_memory_allocated_bytes is not None:
        return "cuda_allocated"
    return "cpu_pss_growth" if m.peak_pss_growth_bytes is not None else None


def final_perplexity(m: Measurement) -> float | None:
    """exp(final_loss), per token of the job's own tokenizer (Jelinek et al. 1977)."""
    return None if m.final_loss is None else math.exp(m.final_loss)


def excess_loss(m: Measurement) -> float | None:
    """final_loss less what the true source has on the same tokens; nats per token.

    Cross-entropy is entropy and divergence (Cover and Thomas 2006, theorem 5.4.3), and a divergence is not below 0:
    on a sample the difference may be, by chance.
    """
    return None if m.final_loss is None or m.source_loss is None else m.final_loss - m.source_loss


def bytes_per_second(m: Measurement) -> float | None:
    """Training tokens per second by the bytes of text that a held-out token stands for."""
    speed, size = tokens_per_second(m), bytes_per_token(m)
    return None if speed is None or size is None else speed * size


def bytes_per_token(m: Measurement) -> float | None:
    """UTF-8 bytes of held-out text that a token stands for: how well the tokenizer fits the text."""
    return None if not m.heldout_bytes or not m.heldout_tokens else m.heldout_bytes / m.heldout_tokens


def bits_per_byte(m: Measurement) -> float | None:
    """final_loss x heldout_tokens / (heldout_bytes x ln 2): bits per UTF-8 byte of held-out text.

    Source: Gao et al. 2020, arXiv:2101.00027, section 3.1; it does not depend on the tokenizer.
    """
    if m.final_loss is None or m.heldout_tokens is None or m.heldout_bytes is None:
        return None
    return m.final_loss * m.heldout_tokens / (m.heldout_bytes * math.log(2))


def skipped_share(m: Measurement) -> float | None:
    """Share of the job's optimizer steps that fp16's gradient scaling skipped, 0 to 1."""
    return m.steps_skipped / (m.steps_applied + m.steps_skipped)


class Observed(NamedTuple):
    """What metrics are derived from: one completed trial's raw values, and what of the suite a formula needs."""

    measurement: Measurement
    meters: Meters | None
    choices: AnyChoices
    """The option's."""
    device: Literal["cpu", "cuda"]
    world_size: int | None
    """Ranks that took part, one GPU each; None: the trial does not say."""
    cost: Cost | None
    """The suite's prices."""

    @property
    def gpus(self) -> list[GpuMeters]:
        """The trial's GPUs as they were metered; empty where they were not."""
        return self.meters.gpus if self.meters else []


def observe(record: Record, suite: Suite, choices: AnyChoices | None = None) -> Observed:
    """What is known of a trial of any phase; `choices`: its option's. Raises ValueError for one that failed."""
    if not isinstance(record.outcome, Completed):
        raise ValueError(f"trial {record.trial.trial_id} failed: it has no metrics")
    choices = choices or suite.option(record.trial.tunes or record.trial.option).choices
    ranks = record.identity.world_size if record.identity else None
    return Observed(record.outcome.measurement, record.meters, choices, suite.device, ranks, suite.cost)


def peak_device_memory_bytes(o: Observed) -> float | None:
    """The most in use while training less what was in use right before the trial, of the GPU that needed most.

    The CUDA context, libraries' workspaces and fragments are in it, which no allocator counts, and so is managed
    memory: every update brings it onto the GPU, where it stays until the GPU is full. None where any GPU does not
    tell, or its memory was not idle before: more was freed by others than the trial took.
    """
    pairs = [(gpu.peak_device_memory_bytes, gpu.idle_memory_bytes) for gpu in o.gpus]
    known = [peak - idle for peak, idle in pairs if peak is not None and idle is not None and peak >= idle]
    return max(known) if known and len(known) == len(pairs) else None


# The energy of a trial's GPUs inside its timed windows, and which of the driver's figures it comes from.

Method = Literal["counter", "instant_power", "average_power"]
BY_TRUST: tuple[Method, ...] = ("counter", "instant_power", "average_power")
"""From the most direct figure to the least."""
SHORTEST_SECONDS = 5.0
"""Metered for less, the counter's step of about 0.1 s and the power readings' lag weigh too much."""
AGREEMENT = 0.10
"""Counter and integrated instant power must agree so closely, as a share of the larger."""

ENERGY_RULE = (
    "Energy is what the GPUs' energy counters, else their power over time, tell of the timed windows, summed over "
    f"a trial's GPUs. It is not known below {SHORTEST_SECONDS:g} s, where counter and power differ by more than "
    f"{AGREEMENT:.0%}, and on a slice of a board (MIG). Joules per token = mean power / tokens per second."
)


class Energy(NamedTuple):
    """The energy of one trial: either its figures are known or the reason why not."""

    mean_power_watts: float | None
    """Sum over the GPUs of joules over metered seconds: the whole job's."""
    method: Method | None
    """The least direct that any GPU's figure comes from."""
    reason: str | None
    """Why nothing is known."""


def energy(meters: Meters | None) -> Energy:
    """The energy that the trial's GPUs took inside the timed windows."""
    gpus = meters.gpus if meters else []
    reason = None if gpus else (meters and meters.problem) or "the trial's GPUs were not metered"
    if reason := reason or next(filter(None, map(_why_energy_unknown, gpus)), None):
        return Energy(None, None, reason)
    best = [(gpu.metered_seconds, *next(iter(_joules_by_method(gpu).items()))) for gpu in gpus]
    power = sum(joules / seconds for seconds, _, joules in best)
    method = max((method for _, method, _ in best), key=BY_TRUST.index)
    return Energy(power, method, None)


def _joules_by_method(gpu: GpuMeters) -> dict[Method, float]:
    """The joules that the driver reports of a GPU, by method, the most direct one first."""
    figures = (gpu.counter_joules, gpu.instant_power_joules, gpu.average_power_joules)
    return {method: value for method, value in zip(BY_TRUST, figures, strict=True) if value is not None}


def _why_energy_unknown(gpu: GpuMeters) -> str | None:
    """Why one GPU's energy is not known, or None where it is."""
    counter, power = gpu.counter_joules, gpu.instant_power_joules
    if gpu.is_mig:
        return "a MIG slice has no meters of its own: the board's are for all its slices"
    if gpu.metered_seconds < SHORTEST_SECONDS:
        return f"metered for {units.seconds(gpu.metered_seconds)}, less than {SHORTEST_SECONDS:g} s"
    if not _joules_by_method(gpu):
        return "the driver reports neither energy nor power"
    if counter is not None and power is not None and abs(counter - power) > AGREEMENT * max(counter, power):
        return f"the energy counter says {units.joules(counter)}, integrated power {units.joules(power)}"
    return None


def mean_power_watts(o: Observed) -> float | None:
    """Mean power of all the trial's GPUs inside the timed windows."""
    return energy(o.meters).mean_power_watts


def joules_per_token(o: Observed) -> float | None:
    """Mean power over tokens per second: the energy of the metered seconds over the tokens of as many seconds."""
    power = mean_power_watts(o)
    return power / speed if power is not None and (speed := tokens_per_second(o.measurement)) is not None else None


# What the job costs at the suite's prices: rent of the GPUs by their time, and the energy that they took.

_JOULES_PER_KWH, _BILLION = 3.6e6, 1e9
COST_RULE = (
    "Cost = GPUs x hours x the price of an hour + the GPUs' energy in kWh x its price. For a billion tokens the "
    "hours follow from the timed speed; of the job they are its training time, with warm-up and compilation, "
    "without start-up and evaluation. Where one of the prices can't be applied, no cost is shown."
)


def usd_per_billion_tokens(o: Observed) -> float | None:
    """GPUs x 1e9 / tokens_per_second / 3600 x usd_per_gpu_hour + joules_per_token x 1e9 / 3.6e6 x usd_per_kwh."""
    speed = tokens_per_second(o.measurement)
    return None if not speed else usd_for(o, seconds=_BILLION / speed, tokens=_BILLION)


def usd_of_job(o: Observed) -> float | None:
    """The same for the job's own training_seconds and its tokens_per_step x (applied + skipped steps)."""
    m = o.measurement
    return usd_for(o, seconds=m.training_seconds, tokens=m.tokens_per_step * (m.steps_applied + m.steps_skipped))


def usd_for(o: Observed, *, seconds: float, tokens: float) -> float | None:
    """Cost of so many seconds of the trial's GPUs and so many tokens; None where a price cannot be applied."""
    if o.cost is None or why_unpriced(o):
        return None
    rent = electricity = 0.0
    if o.cost.usd_per_gpu_hour is not None:
        assert o.world_size is not None  # else unpriced() had a reason
        rent = o.world_size * seconds / 3600 * o.cost.usd_per_gpu_hour
    if o.cost.usd_per_kwh is not None:
        joules = joules_per_token(o)
        if joules is None:
            return None
        electricity = joules * tokens / _JOULES_PER_KWH * o.cost.usd_per_kwh
    return rent + electricity


def why_unpriced(o: Observed) -> str | None:
    """Why one of the suite's prices can't be applied to the trial, or None where each can or there is none."""
    if o.cost is None:
        return None
    if o.device == "cpu":
        return "the job ran on the cpu, and the suite's prices are those of GPUs"
    if o.cost.usd_per_gpu_hour is not None and o.world_size is None:
        return "usd_per_gpu_hour: the trial does not say how many GPUs took part"
    if o.cost.usd_per_kwh is not None and (reason := energy(o.meters).reason):
        return f"usd_per_kwh: the energy is not known: {reason}"
    return None


# Floating-point operations of training on one token, from the model's shape: of its matrix products alone.

FLOPS_RULE = (
    "FLOPs per token, forward and backward = 6 x the parameters of the matrix products (with the output head) + "
    "12 x sequence length x the heads' width summed over the layers (Chowdhery et al. 2022, arXiv:2204.02311, "
    "appendix B). A causal mask is not discounted; all but matrix products is left out."
)


def model_flops_per_token(a: Architecture) -> float:
    """6 x matmul_parameters + 12 x attention_width x seq_len, forward and backward pass.

    Source: Chowdhery et al. 2022, arXiv:2204.02311 (PaLM), appendix B: 6N + 12LHQT. Two operations for each
    parameter forward and four backward; scores and their product with the values are 4 x width x seq_len
    forward and twice that backward. There is no discount for a causal mask, and recomputation is left out.
    """
    return 6.0 * a.matmul_parameters + 12.0 * a.attention_width * a.seq_len


def hardware_flops_per_token(a: Architecture, recomputed: bool) -> float:
    """The same and, where activations are `recomputed`, the second forward pass through the blocks.

    That adds 2 x block_matmul_parameters + 4 x attention_width x seq_len: the head is outside the blocks, and
    torch ends a block's second pass once all that the backward pass needs is there. What a fused attention
    kernel or torch.compile computes again of its own accord is left out.
    """
    second_pass = 2.0 * a.block_matmul_parameters + 4.0 * a.attention_width * a.seq_len
    return model_flops_per_token(a) + (second_pass if recomputed else 0.0)


# How much of the GPUs' arithmetic a trial used: of the data sheet's peak, and of a rate measured on them.
#
# A share of a peak in one precision says nothing of a share in another: it never decides between options.

UtilizationName = Literal["mfu", "hfu", "matmul_rate_share"]
SHARES: tuple[UtilizationName, ...] = ("mfu", "hfu", "matmul_rate_share")

MFU_RULE = (
    "MFU = tokens per second x FLOPs per token / the sum of the GPUs' data-sheet peaks, dense, in the dtype of the "
    "matrix products. HFU counts what activation checkpointing computes again, too; the share of the measured rate "
    "is of what doctor --calibrate reached. They don't compare rows of different precisions, and are not known "
    "above 100 %, by a data sheet for a slice (MIG), and for own loops and models of unknown FLOPs."
)
IMPOSSIBLE = "above 100 %: the peak or the formula does not fit this GPU"
IMPOSSIBLE_RATE = "above 100 %: the measured rate or the formula does not fit this GPU"


class Utilization(NamedTuple):
    """Use of one trial's GPUs together: the share, or the reason why it is not known."""

    share: float | None
    reason: str | None


def flops_per_token(o: Observed, share: UtilizationName) -> float | None:
    """Operations of training on one token; None: the model's work does not follow from its shape."""
    shape = o.measurement.architecture
    if shape is None:
        return None
    if share == "hfu":
        recomputed = isinstance(o.choices, Choices) and o.choices.activation_checkpointing.enabled
        return hardware_flops_per_token(shape, recomputed)
    return model_flops_per_token(shape)


def flops_per_second(o: Observed, share: UtilizationName) -> float | None:
    """The rate that a share is of, of all GPUs together; None: one is not known, or there are none."""
    rates = [_gpu_flops_per_second(o, gpu, share) for gpu in o.gpus]
    known = [rate for rate in rates if rate]
    return sum(known) if known and len(known) == len(rates) else None


def _gpu_flops_per_second(o: Observed, gpu: GpuMeters, share: UtilizationName) -> float | None:
    dtype = o.choices.matmul_dtype
    if share == "matmul_rate_share":
        return gpu.matmul_flops_per_second.get(dtype)
    return None if gpu.is_mig else peak_flops_per_second(gpu.name, dtype)


def utilization(o: Observed, share: UtilizationName) -> Utilization:
    """tokens_per_second x flops_per_token / flops_per_second of the trial."""
    dtype = o.choices.matmul_dtype
    gpu = next((gpu for gpu in o.gpus if not _gpu_flops_per_second(o, gpu, share)), None)
    reason = None
    if not isinstance(o.choices, Choices):
        reason = "what a command computes is not counted"
    elif is_own(o.choices.framework.name):
        reason = "what an own training loop computes is not seen"
    elif o.measurement.architecture is None:
        reason = "this model's work does not follow from its shape"
    elif not o.gpus:
        reason = (o.meters and o.meters.problem) or "the trial's GPUs were not metered"
    elif o.world_size is not None and o.world_size != len(o.gpus):
        reason = f"{len(o.gpus)} GPUs of {o.world_size} ranks were metered"
    elif gpu is not None and share == "matmul_rate_share":
        reason = f"no {dtype} rate was measured on {gpu.name} (doctor --calibrate does)"
    elif gpu is not None:
        unknown = f"no data sheet's peak of {gpu.name} in {dtype} is known"
        reason = "a MIG slice has no data sheet" if gpu.is_mig else unknown
    speed = finite(lambda: tokens_per_second(o.measurement))
    work, rate = flops_per_token(o, share), flops_per_second(o, share)
    if reason is not None or speed is None or work is None or rate is None:
        return Utilization(None, reason or "no step was timed")
    if speed * work / rate > 1:
        return Utilization(None, IMPOSSIBLE_RATE if share == "matmul_rate_share" else IMPOSSIBLE)
    return Utilization(speed * work / rate, None)


# Whether a trial's GPUs or cores were in a state in which its figures may be believed, by rules fixed in advance.

Verdict = Literal["clean", "throttled", "shared", "busy", "unknown"]
UNCLEAN = ("throttled", "shared", "busy")

SLOWDOWNS = {
    "hw_slowdown": "hardware slowdown", "hw_thermal_slowdown": "hardware thermal slowdown",
    "sw_thermal_slowdown": "software thermal slowdown", "hw_power_brake_slowdown": "power brake",
}  # fmt: skip
"""Reasons that hold the clocks down from outside the option, by their names in `clock_limit_shares`."""
POWER_CAP = "sw_power_cap"
"""The reason that the option itself brings about."""
THROTTLED_SHARE = 0.02
"""Share of the readings from which one of the slowdowns spoils a trial."""
BUSY_BEFORE = 0.05
"""Utilisation right before a trial from which something else was at work."""

GPU_STATE_RULE = (
    "A trial is shared where another process computed on one of its GPUs, or the GPU was at work for more than "
    f"{BUSY_BEFORE:.0%} of the time right before it; throttled where one of {', '.join(SLOWDOWNS.values())} held "
    f"the clocks down in more than {THROTTLED_SHARE:.0%} of the readings inside the timed windows (the largest "
    "share of any of them and of any GPU; over the whole trial where it failed); unknown where the driver does not "
    "tell these things; else clean. The software power cap is normal at full load and the option's own doing: it "
    "is shown and excludes nothing."
)

WAITED_SHARE = 0.05
"""Share of the time that a trial's threads worked: how long they waited for a core, and others worked on these."""
TAKEN_PER_SECOND = 50.0
"""Times in a second of work that the kernel takes a core from a thread, where it tells no waits. Scheduler ticks of
a core that two threads want take it 100 to 1,000 times."""

CPU_STATE_RULE = (
    "A trial on a CPU is busy where something else kept its cores busy: in the timed windows its threads waited "
    f"for a core for more than {WAITED_SHARE:.0%} of the time that they worked, and others worked on these cores "
    f"for more than {WAITED_SHARE:.0%} of that time, by the kernel's accounts (schedstat, /proc/stat). Where it "
    f"does not tell waits, it took a core from a thread more than {TAKEN_PER_SECOND:g} times in a second of work."
)


class State(NamedTuple):
    """The verdict on one trial."""

    verdict: Verdict
    detail: str
    """What was found, of all its GPUs; '' where they were clean."""

    @property
    def words(self) -> str:
        """`the machine was busy (...)`, `the GPU was throttled (...)`."""
        return f"the {'machine' if self.verdict == 'busy' else 'GPU'} was {self.verdict} ({self.detail})"


def state_of(record: Record) -> State | None:
    """The state of a trial's GPUs by its rule, the worst of any; without GPU meters only whether a CPU was busy."""
    meters = record.meters
    if meters is None or not meters.gpus:
        return _cpu_state(record)
    findings: list[tuple[Verdict, str]] = []
    for number, gpu in enumerate(meters.gpus):
        which = f"GPU {number}: " if len(meters.gpus) > 1 else ""
        findings += [(verdict, f"{which}{words}") for verdict, words in _findings(gpu)]
    findings += [("unknown", meters.problem)] if meters.problem else []
    findings.sort(key=lambda finding: ("shared", "throttled", "unknown").index(finding[0]))
    worst = findings[0][0] if findings else "clean"
    # What is not known is worth a word only where nothing worse was seen.
    details = [words for verdict, words in findings if verdict != "unknown" or worst == "unknown"]
    return State(worst, "; ".join(dict.fromkeys(details)))


def is_unclean(record: Record) -> bool:
    """Whether GPUs were throttled or shared, or a CPU was busy, so that speed, energy and cost mean nothing."""
    state = state_of(record)
    return state is not None and state.verdict in UNCLEAN


def spoils(state: State | None, metric: str, *, counts_busy: bool) -> bool:
    """Whether a trial in this state says nothing of the metric; `counts_busy`: trials of a busy CPU count."""
    if state is None or (state.verdict == "busy" and counts_busy):
        return False
    return state.verdict in METRICS[metric].spoiled_by


def _cpu_state(record: Record) -> State | None:
    """A busy CPU's state; None: the trial had its cores alone, nothing is known, it failed or trained on GPUs."""
    m = record.outcome.measurement if isinstance(record.outcome, Completed) else None
    if m is None or not (worked := m.cpu_seconds) or m.peak_memory_allocated_bytes is not None:
        return None
    others = None if m.cores_seconds is None else (m.cores_seconds - worked) / worked
    if others is not None and others <= WAITED_SHARE:  # what its own threads do to each other is the option's doing
        return None
    extra = "" if others is None else f", beside {others:.2g} s of others' work on these cores"
    if m.run_queue_wait_seconds is not None:
        waited = m.run_queue_wait_seconds / worked
        why = f"threads waited for a core {waited:.2g} s for each second of work{extra}"
        return State("busy", why) if waited > WAITED_SHARE else None
    taken = (m.involuntary_switches or 0) / worked
    why = f"a core was taken from threads {taken:.0f} times for each second of work{extra}"
    return State("busy", why) if taken > TAKEN_PER_SECOND else None


def _findings(gpu: GpuMeters) -> list[tuple[Verdict, str]]:
    """Everything that speaks against one GPU's figures, and what could not be observed of it."""
    findings: list[tuple[Verdict, str]] = []
    if gpu.other_processes:
        processes = [f"process {p.pid}" + (f" ({p.name})" if p.name else "") for p in gpu.other_processes]
        findings.append(("shared", f"also used by {', '.join(processes)}"))
    if gpu.idle_utilization is not None and gpu.idle_utilization > BUSY_BEFORE:
        findings.append(("shared", f"at work {gpu.idle_utilization:.0%} of the time before the trial"))
    for name, words in SLOWDOWNS.items():
        share = (gpu.clock_limit_shares or {}).get(name, 0.0)
        if share > THROTTLED_SHARE:  # in tenths of a per cent: 2.04 % must not read as if it were within the bound
            percent = f"{share:.1%}" if share < 0.1 else f"{share:.0%}"
            findings.append(("throttled", f"{words} in {percent} of the readings"))
    hidden = {
        "no readings while it was timed": not gpu.readings,
        "the reasons that hold the clocks down can't be read": gpu.readings > 0 and gpu.clock_limit_shares is None,
        "the list of processes shows not even the trial's own, as in most containers": gpu.other_processes is None,
        gpu.problem or "": bool(gpu.problem),
    }
    return findings + [("unknown", words) for words, missing in hidden.items() if missing]


# The formula of each metric, from what a completed trial observed.

Formula = Callable[[Observed], float | None]


def _of_measurement(formula: Callable[[Measurement], float | None]) -> Formula:
    return lambda observed: formula(observed.measurement)


def _score(name: str) -> Formula:
    return lambda observed: observed.measurement.scores.get(name)


def _share(name: UtilizationName) -> Formula:
    return lambda observed: utilization(observed, name).share


_OF_MEASUREMENTS = (
    tokens_per_second, bytes_per_second, peak_memory_bytes, final_perplexity, bits_per_byte, excess_loss,
    bytes_per_token, skipped_share,
)  # fmt: skip
_OF_TRIALS = (
    peak_device_memory_bytes, joules_per_token, mean_power_watts, usd_per_billion_tokens, usd_of_job
)  # fmt: skip
FORMULAS: dict[str, Formula] = {
    **{name: attrgetter(f"measurement.{m.measured_as}") for name, m in METRICS.items() if m.measured_as},
    **{name: _score(name) for name, metric in METRICS.items() if metric.scored},
    **{formula.__name__: _of_measurement(formula) for formula in _OF_MEASUREMENTS},
    **{formula.__name__: formula for formula in _OF_TRIALS},
    **{share: _share(share) for share in SHARES},
    "peak_memory_reserved_bytes": _of_measurement(lambda m: with_managed_state(m.peak_memory_reserved_bytes, m)),
    SECONDS_TO_LOSS: lambda _: None,  # no trial tells it alone: `summary` does, once the baseline's are known
}
"""The formulas by metric; a metric of `METRICS` without `measured_as` has its own here."""


def formula_of(metric: str) -> Formula:
    """The formula of a metric; own code's metrics are among the scores."""
    return FORMULAS.get(metric) or _score(metric)


def figure_of(record: Record, suite: Suite, metric: str) -> float | None:
    """A trial's figure; None: it failed or has none, or the state of its GPUs spoils it; a busy CPU does not."""
    if not isinstance(record.outcome, Completed) or spoils(state_of(record), metric, counts_busy=True):
        return None
    return finite(formula_of(metric), observe(record, suite))


def derive(observed: Observed) -> dict[str, float | None]:
    """Every metric of a completed trial, by name."""
    own_metrics = [name for name in observed.measurement.scores if name not in METRICS]
    return {name: finite(formula_of(name), observed) for name in (*METRICS, *own_metrics)}
