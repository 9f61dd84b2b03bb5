"""What was counted and tried in a trial, compared with the job, and what own code leaves unseen. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from selectbench.analysis.metrics import bits_per_byte
from selectbench.analysis.summary import Summary, seeds_words
from selectbench.choices.model import PretrainedModel
from selectbench.record.record import Completed, Record, Watched
from selectbench.suite.suite import Suite
from selectbench.text import some

CAUSAL_TOLERANCE = 1e-4
"""Share of the largest logit, in fp32: kernels that are given the same shape round what comes before alike."""
CLOCK_TOLERANCE = 0.02
"""Share by which two clocks of one machine may differ over a trial."""
IGNORED_RATE = 2.0
"""Times as far at a thousand times the rate: below that the rate has no part in the update."""
FAR_BELOW_XZ = 0.3
"""Share of xz's bits per byte below which a loss is a doubt."""
LEAST_LEARNT = 0.05
"""Share of an untrained model's loss: what has fallen by less knows not even how often tokens occur."""
UNTIMED_SECONDS, UNTIMED_SHARE = 60.0, 0.25
"""Most of a trial's wall time that its start and end may take, in seconds, and further as a share."""

Unverified = tuple[str, str | None]
"""What stays unverified: an identity field or another subject, and the reason; None: not known."""
UNSEEN: Mapping[str, Unverified] = {
    "model": ("own model", "what else its forward pass does"),
    "optimizer": ("own optimizer", "what else its step() and eval() do"),
    "loss": ("own loss", "which tokens it counts, and how"),
}
"""By part of a trial: what nobody could see of own code, said of every row that has some."""
UNTRIED: Unverified = ("causality", "equal calls of the model differ, or it could not be tried")
OWN_CODE = "own code"
PROCESS: Unverified = (OWN_CODE, "what it changes in its trial's process")
TOKENS, EVALUATION = ("token_stream_sha256", "tokens_per_step"), ("evaluation_set_sha256",)
SCHEDULE, UPDATES = ("learning_rate_shape_sha256", "peak_learning_rate"), ("steps_applied",)
Deviation = tuple[str, str, str]
"""A deviation from the job: what it is about, what the job asks for, and what was observed."""


def deviations(suite: Suite, record: Record) -> Iterator[Deviation]:
    """Deviations of a completed trial from its job, and steps of a script on another number of rows."""
    seen, rows = record.watched, record.script.rows_per_step if record.script else []
    batch = suite.command.global_batch_size if suite.command else None
    if batch is not None and rows and set(rows) != {batch}:
        observed_rows = f"{rows[0]:,}" if rows[0] == rows[-1] else f"{rows[0]:,} to {rows[-1]:,}"
        yield ("global_batch_size", f"{batch:,} rows in every step", f"{observed_rows} rows")
    if seen is None:
        return
    leaks = [(mode, change) for mode, change in (seen.causality or {}).items() if change > CAUSAL_TOLERANCE]
    for mode, change in leaks[:1]:
        yield ("causality", "logits that know no later token", f"a change of {change:.2g} in {mode} mode")
    handed, called = seen.sequences_given, seen.sequences_seen
    # An own loop may call the model more than once for each sequence, as some methods do, or its parts.
    if handed and called and (called % handed if "framework" in seen.own else called != handed):
        yield ("sequences", f"{handed} trained on", f"{called} that the model was called with")
    elif handed and handed == called and seen.same_sequences is False:
        yield ("sequences", "those that the loop was handed", "the model was called with others")
    if seen.evaluations and (seen.evaluations_seen or 0) < seen.evaluations:
        scored = f"{seen.evaluations_seen} that the model was called with"
        yield ("evaluation", f"{seen.evaluations} sequences scored", scored)
    yield from _update_deviations(seen)
    assert isinstance(record.outcome, Completed)
    m = record.outcome.measurement
    seconds = m.startup_seconds + m.training_seconds + m.evaluation_seconds
    if seen.clock_ratio is not None and abs(seen.clock_ratio - 1) > CLOCK_TOLERANCE:
        yield ("clock", "seconds", f"{seen.clock_ratio:.3g} s for each second")
    elif seconds > record.wall_seconds * (1 + CLOCK_TOLERANCE) + 1:
        yield ("clock", f"{record.wall_seconds:.4g} s by the bench's clock", f"{seconds:.4g} s by the trial's")


def is_token_stream_seen(record: Record) -> bool:
    """Whether the model was called with what an own loop was handed, or the loop is none of own code."""
    seen = record.watched
    return seen is not None and ("framework" not in seen.own or bool(seen.same_sequences and seen.sequences_seen))


def _update_deviations(seen: Watched) -> Iterator[Deviation]:
    if (seen.updates_per_step or 0) > 1:
        yield ("updates", "one a step", f"{seen.updates_per_step} a step")
    elif seen.sampled_updates and seen.idle_updates == seen.sampled_updates:
        yield ("updates", "the weights change", f"none changed in {seen.sampled_updates} of its steps")
    elif seen.frozen_parameters:
        yield ("updates", "all weights are trained", f"never changed: {some(seen.frozen_parameters, 3)}")
    if seen.rate_effect is not None and seen.rate_effect < IGNORED_RATE:
        yield ("learning_rate", "updates follow the schedule", "updates do not depend on the rate")


def unverified(record: Record, *, is_causal: bool) -> Iterator[Unverified]:
    """What stays unverified of a trial; nothing for a record that is older than `watched`."""
    seen = record.watched
    if seen is not None and is_causal and len(seen.causality or ()) < 2:
        yield UNTRIED
    if seen is None or not seen.own:
        return
    is_evaluated = record.identity is not None and record.identity.evaluation_set_sha256 is not None
    fields = [
        *(TOKENS if not seen.sequences_seen else ()),
        *(EVALUATION if is_evaluated and seen.evaluations_seen is None else ()),
        *(SCHEDULE if "optimizer" in seen.own and seen.rate_effect is None else ()),
        *(UPDATES if "optimizer" in seen.own and not seen.sampled_updates else ()),
    ]
    yield from ((name, None) for name in fields)
    yield from (PROCESS, *(UNSEEN[part] for part in seen.own if part in UNSEEN))
    if seen.idle_updates and seen.idle_updates != seen.sampled_updates:
        idle = f"{seen.idle_updates} of {seen.sampled_updates} updates looked at changed no weight"
        yield ("own optimizer", idle)
    assert isinstance(record.outcome, Completed)
    seconds, wall = record.outcome.measurement.trial_seconds, record.wall_seconds
    if seconds is not None and wall - seconds > UNTIMED_SECONDS + UNTIMED_SHARE * wall:
        untimed = f"{wall - seconds:.0f} s of {wall:.0f} s are in none of the times that the trial reports"
        yield (OWN_CODE, untimed)


def changed_code(records: Sequence[Record]) -> Mapping[int, list[Deviation]]:
    """Changed files of own code by place in the records: another file than in the first trial that imported it."""
    first_digests: dict[str, str] = {}
    changes = {}
    for place, record in enumerate(records):
        files = (record.watched and record.watched.code_files) or {}
        changed = sorted(name for name, digest in files.items() if first_digests.setdefault(name, digest) != digest)
        if changed:
            changes[place] = [("code", "one code for all trials", f"changed: {some(changed, 3)}")]
    return changes


def contradictions(record: Record, tokens_per_step: int | None) -> Iterator[str]:
    """Where a completed trial's record contradicts itself; `tokens_per_step`: the job's, None: of a script."""
    assert isinstance(record.outcome, Completed)
    m, identity, curve = record.outcome.measurement, record.identity, record.evaluation_curve
    end, start = (curve[-1], curve[0]) if curve else (None, None)
    pairs: list[tuple[str, float | None, str, float | None]] = []
    if tokens_per_step is not None:
        pairs.append(("tokens_per_step", m.tokens_per_step, "the job's", tokens_per_step))
    if identity is not None:
        steps_made = identity.steps_requested
        pairs += [
            ("first_loss", m.first_loss, "first_step_loss", identity.first_step_loss),
            ("steps_applied", m.steps_applied, "in its certificate", identity.steps_applied),
            ("steps applied and skipped", m.steps_applied + m.steps_skipped, "steps made", steps_made),
            *([("the last evaluation's step", end.step, "steps made", steps_made)] if end else []),
        ]
    if start is not None and end is not None:
        pairs += [("final_loss", m.final_loss, "its curve's end", end.loss)]
        pairs += [("initial_loss", m.initial_loss, "its curve's start", start.loss)] if start.step == 0 else []
        if tokens_per_step is not None:
            pairs += [("tokens", p.tokens, f"of {p.step} steps", p.step * m.tokens_per_step) for p in curve]
    for what, value, other_name, other in pairs:
        if value != other:
            yield f"{what} {value}, {other_name} {other}"


def is_unscored(record: Record) -> bool:
    """Whether a script's held-out tokens could not be scored, so that nothing is known of its evaluation set."""
    return record.script is not None and "final_loss" in record.script.not_seen


def text_facts(record: Record) -> dict[str, object]:
    """What is equal in all trials with the same tokenizer, as far as known: the evaluation set and its size."""
    assert isinstance(record.outcome, Completed)
    m, facts = record.outcome.measurement, dict[str, object]()
    if record.identity is not None and not is_unscored(record):
        facts["evaluation_set_sha256"] = record.identity.evaluation_set_sha256
    names = ("heldout_tokens", "heldout_bytes", "source_loss")
    return facts | {name: value for name in names if (value := getattr(m, name)) is not None}


def software_of(record: Record) -> dict[str, object]:
    """The versions that a trial ran with, but OpenMP's, whose loaded files depend on the option."""
    versions = record.versions()
    return {f"software: {name}": version for name, version in versions.items() if name != "openmp"}


def plausibility_warnings(suite: Suite, summaries: Sequence[Summary]) -> list[str]:
    """A line for each option whose loss is far below what a general compressor achieves on the text."""
    doubt = f"its final loss is below {FAR_BELOW_XZ:g} of what xz makes of the held-out text: memorised or leaked?"
    lines = []
    for summary in summaries:
        of_text = {
            seed: m for seed, m in summary.measurements.items() if m.heldout_bytes and m.heldout_xz_bits_per_byte
        }
        bits = {s: (bits_per_byte(m), m.heldout_xz_bits_per_byte) for s, m in of_text.items()}
        seeds = [seed for seed, (own, xz) in bits.items() if own is not None and xz and own < FAR_BELOW_XZ * xz]
        if not seeds:
            continue
        may_know = suite.command is not None or isinstance(suite.job_of(summary.option).model, PretrainedModel)
        alarm, why = ("", "Large pretrained models may know it") if may_know else ("ALARM: ", "It began at random")
        lines.append(f"{summary.name}: {alarm}{doubt} {why} ({seeds_words(seeds)})")
    return lines


def learnt_nothing(suite: Suite, summary: Summary) -> dict[int, float]:
    """The untrained model's loss in nats per token, by seed whose final loss is about as large.

    It is the smaller of two: the loss of even odds for every token of the vocabulary, and that of the first step
    of a model that began at random. The share is of what there is to learn, where the source's own loss is known.
    """
    if suite.command is not None:
        return {}
    job = suite.job_of(summary.option)
    entries = job.tokenizer.most_entries if job.tokenizer is not None else job.data.vocabulary
    untrained_losses = {}
    for seed, m in summary.measurements.items():
        identity = summary.completed[seed].identity
        known = [math.log(entries)] if entries is not None else []
        if identity is not None and identity.loss == "cross_entropy" and not isinstance(job.model, PretrainedModel):
            known += [m.first_loss] if m.first_loss is not None else []
        if m.final_loss is None or not known:
            continue
        untrained, floor = min(known), m.source_loss or 0.0
        if untrained > floor and m.final_loss > untrained - LEAST_LEARNT * (untrained - floor):
            untrained_losses[seed] = untrained
    return untrained_losses


def learning_in_answer(suite: Suite, summaries: Sequence[Summary]) -> str:
    """A sentence for the answer, after a space, that options learnt nothing; '' where each learnt something."""
    names = [summary.name for summary in summaries if learnt_nothing(suite, summary)]
    who = "any option" if len(names) == len(summaries) else ", ".join(names)
    return f" Nothing was learnt by {who} (see the warnings): its quality says nothing." if names else ""


def learning_warnings(suite: Suite, summaries: Sequence[Summary]) -> list[str]:
    """An alarm for every option that learnt nothing."""
    lines = []
    for summary in summaries:
        if losses := learnt_nothing(suite, summary):
            seed, untrained = next(iter(losses.items()))
            loss = f"a final loss of {summary.measurements[seed].final_loss:.2f} nats per token"
            untrained_words = f"where an untrained model has {untrained:.2f}"
            seeds = seeds_words(list(losses))
            lines.append(f"{summary.name}: ALARM: nothing was learnt: {loss}, {untrained_words} ({seeds})")
    return lines
