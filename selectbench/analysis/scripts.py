"""What is asked of observed scripts alone: whether the job repeats, what seeds do, and what is equal as rounded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from selectbench import units
from selectbench.analysis.summary import Summary
from selectbench.record.record import Completed, Record
from selectbench.record.run_folder import last_attempts
from selectbench.suite.command import CommandChoices
from selectbench.suite.suite import Suite

LOSS_REPEATS = 1e-5
"""Relative tolerance of losses on a CPU, where sums over threads may round otherwise; none on a GPU."""
REPEAT_RULE = (
    "Before the contest the baseline's command was started once more with the first seed, for a few steps: initial "
    "weights, tokens and learning rates of both starts must be equal, and on a CPU the losses."
)


def repeated_trials(suite: Suite, records: Sequence[Record]) -> tuple[Record | None, Record | None]:
    """The short trial of the check, and the contest's trial that it repeats; None: missing or not completed."""
    last = [r for r in last_attempts(list(records)).values() if isinstance(r.outcome, Completed)]
    of_baseline = [r for r in last if r.trial.option == suite.baseline and r.trial.seed == suite.seeds[0]]
    short = next((r for r in of_baseline if r.phase == "repeat"), None)
    return short, next((r for r in of_baseline if r.phase == "contest"), None)


def first_difference(suite: Suite, records: Sequence[Record]) -> str | None:
    """Where two starts of one job first differ, in words; None: they do not, or it is not known."""
    short, full = repeated_trials(suite, records)
    if short is None or full is None or short.identity is None or full.identity is None:
        return None
    if short.identity.initial_weights_sha256 != full.identity.initial_weights_sha256:
        return "the initial weights differ"
    if short.script is None or full.script is None:
        return None
    for number, (a, b) in enumerate(zip(short.script.first_steps, full.script.first_steps, strict=False), start=1):
        if (a.tokens, a.token_digest) != (b.tokens, b.token_digest):
            return f"the tokens of step {number} differ"
        if a.rates != b.rates:
            return f"the learning rates of step {number} differ"
        if suite.device == "cuda" or a.loss is None or b.loss is None:
            continue
        if abs(a.loss - b.loss) > LOSS_REPEATS * max(abs(a.loss), abs(b.loss)):
            return f"the losses of step {number} differ ({a.loss:.6g} and {b.loss:.6g})"
    return None


def script_warnings(suite: Suite, records: Sequence[Record], summaries: Sequence[Summary]) -> list[str]:
    """Warnings that the job does not repeat, or that seeds or options change too little; for scripts alone."""
    if suite.command is None:
        return []
    lines = []
    if (where := first_difference(suite, records)) is not None:
        lines.append(
            f"the job does not repeat: started twice with seed {suite.seeds[0]}, {where}; differences between "
            "options may be such chance (does the script seed torch, its data order and its workers?)"
        )
    elif not suite.quick and repeated_trials(suite, records)[0] is None:
        lines.append("whether the job repeats is not known: a trial of the check did not complete")
    baseline = next(summary for summary in summaries if summary.name == suite.baseline)
    return [*lines, *_hidden_training(summaries), *_no_effect(summaries, baseline), *_equal_seeds(baseline)]


LONG_PAUSES = 0.2
"""Share of the timed steps' time from which pauses are worth a warning."""


def _hidden_training(summaries: Sequence[Summary]) -> Iterator[str]:
    """Options that train on held-out rows, or whose pauses are so long that training may hide in them."""
    rows, shares = dict[str, int](), dict[str, float]()
    for summary in summaries:
        identities = [record.identity for record in summary.completed.values() if record.identity]
        rows[summary.name] = max((identity.heldout_rows_trained or 0 for identity in identities), default=0)
        timed = [m for m in summary.measurements.values() if m.timed_seconds]
        shares[summary.name] = max(((m.pause_seconds or 0.0) / m.timed_seconds for m in timed), default=0.0)
    if words := ", ".join(f"{name} on {trained:,} rows" for name, trained in rows.items() if trained):
        yield f"held-out tokens are trained on ({words}): the final loss says nothing of new text"
    if paused := [f"{name} {share:.0%}" for name, share in shares.items() if share > LONG_PAUSES]:
        yield (
            f"validation and saving, which no speed has, took more than {LONG_PAUSES:.0%} of the timed steps' time "
            f"({', '.join(paused)}): is nothing else done between `model.eval()` and the next training step?"
        )


def _no_effect(summaries: Sequence[Summary], baseline: Summary) -> Iterator[str]:
    """Options that declare changes that no seed shows."""
    for summary in summaries:
        choices = summary.option.choices
        declared = choices.may_change if isinstance(choices, CommandChoices) and summary is not baseline else []
        pairs = [
            (trial, base) for seed, record in summary.completed.items() if seed in baseline.completed
            if (trial := record.identity) is not None and (base := baseline.completed[seed].identity) is not None
        ]  # fmt: skip
        seen = [name for name in declared if any(getattr(a, name) not in (None, "") for a, _ in pairs)]
        if seen and all(getattr(a, name) == getattr(b, name) for a, b in pairs for name in seen):
            text = f"declares {', '.join(seen)}, and is as the baseline {baseline.name} in it"
            yield f"{summary.name}: {text}: did its arguments reach the script?"


def repeats_in_answer(suite: Suite, records: Sequence[Record]) -> str:
    """A sentence for the answer, after a space, that the job does not repeat; '' where it does."""
    is_other = suite.command is not None and first_difference(suite, records) is not None
    return " The job does not repeat when it is started twice (see the warnings)." if is_other else ""


def _equal_seeds(baseline: Summary) -> Iterator[str]:
    starts: dict[tuple[object, ...], list[int]] = {}
    for seed, record in baseline.completed.items():
        if record.identity is not None and (weights := record.identity.initial_weights_sha256) is not None:
            for key in ((weights, record.identity.token_stream_sha256), (weights,)):
                starts.setdefault(key, []).append(seed)
    alike = {key: ", ".join(map(str, seeds)) for key, seeds in starts.items() if len(seeds) > 1 and None not in key}
    if equal := next((seeds for key, seeds in alike.items() if len(key) == 2), None):
        yield (
            f"seeds {equal} began with the same weights and read the same tokens: the script does nothing with "
            "{seed}, so that the spread between seeds is the machine's alone"
        )
    else:
        yield from (
            f"seeds {seeds} began with the same weights, as a pretrained model does" for seeds in alike.values()
        )


def pause_notes(summary: Summary) -> list[str]:
    """Time of a script's own validation and saving, which no figure of speed includes; [] without any."""
    longest = units.seconds(max((m.pause_seconds or 0.0 for m in summary.measurements.values()), default=0.0))
    note = f"its own validation and saving took up to {longest} a trial, outside the timed steps"
    return [note] if any(m.pause_seconds for m in summary.measurements.values()) else []


def equal_when_rounded(record: Record, reference: Record) -> Mapping[str, str]:
    """Fields that differ between two trials though their content is equal, with the convention used."""
    digest, other_digest = (r.script and r.script.weights_bf16_sha256 for r in (record, reference))
    if digest is None or digest != other_digest:
        return {}
    return {"initial_weights_sha256": "equal by shapes when rounded to bf16, under other names or dtypes"}
