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
"""Relative, on a CPU, where sums over threads may round otherwise. On a GPU losses need not repeat."""
REPEAT_RULE = (
    "Before the contest the baseline's command was started once more with the first seed, for a few steps: initial "
    "weights, tokens and learning rates of both starts must be equal, and on a CPU the losses."
)


def repeat_of(suite: Suite, records: Sequence[Record]) -> tuple[Record | None, Record | None]:
    """The short trial of the check, and the contest's trial that it repeats; None: not there, or not completed."""
    last = [one for one in last_attempts(list(records)).values() if isinstance(one.outcome, Completed)]
    own = [one for one in last if one.trial.option == suite.baseline and one.trial.seed == suite.seeds[0]]
    short = next((one for one in own if one.phase == "repeat"), None)
    return short, next((one for one in own if one.phase == "contest"), None)


def first_difference(suite: Suite, records: Sequence[Record]) -> str | None:
    """Where two starts of one job first differ, in words; None: they do not, or nobody knows."""
    one, other = repeat_of(suite, records)
    if one is None or other is None or one.identity is None or other.identity is None:
        return None
    if one.identity.initial_weights_sha256 != other.identity.initial_weights_sha256:
        return "the initial weights differ"
    if one.script is None or other.script is None:
        return None
    for number, (a, b) in enumerate(zip(one.script.first_steps, other.script.first_steps, strict=False), start=1):
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
    """That the job does not repeat, and that seeds or options change less than they should; of scripts alone."""
    if suite.command is None:
        return []
    lines = []
    if (where := first_difference(suite, records)) is not None:
        lines.append(
            f"the job does not repeat: started twice with seed {suite.seeds[0]}, {where}; differences between "
            "options may be such chance (does the script seed torch, its data order and its workers?)"
        )
    elif not suite.quick and repeat_of(suite, records)[0] is None:
        lines.append("whether the job repeats is not known: a trial of the check did not complete")
    baseline = next(summary for summary in summaries if summary.name == suite.baseline)
    return [*lines, *_much_beside(summaries), *_without_effect(summaries, baseline), *_alike_seeds(baseline)]


LONG_PAUSES = 0.2
"""Of the timed steps' time."""


def _much_beside(summaries: Sequence[Summary]) -> Iterator[str]:
    """Options that train on what their loss is then measured on, or of whose time much may hide in pauses."""
    rows, shares = dict[str, int](), dict[str, float]()
    for own in summaries:
        identities = [record.identity for record in own.completed.values() if record.identity]
        rows[own.name] = max((identity.heldout_rows_trained or 0 for identity in identities), default=0)
        timed = [m for m in own.measurements.values() if m.timed_seconds]
        shares[own.name] = max(((m.pause_seconds or 0.0) / m.timed_seconds for m in timed), default=0.0)
    if told := ", ".join(f"{name} on {trained:,} rows" for name, trained in rows.items() if trained):
        yield f"held-out tokens are trained on ({told}): the final loss says nothing of new text"
    if long := [f"{name} {share:.0%}" for name, share in shares.items() if share > LONG_PAUSES]:
        yield (
            f"validation and saving, which no speed has, took more than {LONG_PAUSES:.0%} of the timed steps' time "
            f"({', '.join(long)}): is nothing else done between `model.eval()` and the next training step?"
        )


def _without_effect(summaries: Sequence[Summary], baseline: Summary) -> Iterator[str]:
    """Changes that an option declares and no seed shows."""
    for summary in summaries:
        choices = summary.option.choices
        declared = choices.may_change if isinstance(choices, CommandChoices) and summary is not baseline else []
        pairs = [
            (ours, theirs) for seed, record in summary.completed.items() if seed in baseline.completed
            if (ours := record.identity) is not None and (theirs := baseline.completed[seed].identity) is not None
        ]  # fmt: skip
        seen = [name for name in declared if any(getattr(a, name) not in (None, "") for a, _ in pairs)]
        if seen and all(getattr(a, name) == getattr(b, name) for a, b in pairs for name in seen):
            told = f"declares {', '.join(seen)}, and is as the baseline {baseline.name} in it"
            yield f"{summary.name}: {told}: did its arguments reach the script?"


def repeats_in_answer(suite: Suite, records: Sequence[Record]) -> str:
    """What the answer must not be read without, with a space before it; '' where the job repeats."""
    is_other = suite.command is not None and first_difference(suite, records) is not None
    return " The job does not repeat when it is started twice (see the warnings)." if is_other else ""


def _alike_seeds(baseline: Summary) -> Iterator[str]:
    found: dict[tuple[object, ...], list[int]] = {}
    for seed, record in baseline.completed.items():
        if record.identity is not None and (weights := record.identity.initial_weights_sha256) is not None:
            for key in ((weights, record.identity.token_stream_sha256), (weights,)):
                found.setdefault(key, []).append(seed)
    alike = {key: ", ".join(map(str, seeds)) for key, seeds in found.items() if len(seeds) > 1 and None not in key}
    if both := next((seeds for key, seeds in alike.items() if len(key) == 2), None):
        yield (
            f"seeds {both} began with the same weights and read the same tokens: the script does nothing with "
            "{seed}, so that the spread between seeds is the machine's alone"
        )
    else:
        yield from (
            f"seeds {seeds} began with the same weights, as a pretrained model does" for seeds in alike.values()
        )


def pause_notes(summary: Summary) -> list[str]:
    """What a script's own validation and saving cost, which no figure of speed has; nothing where it made none."""
    longest = units.seconds(max((m.pause_seconds or 0.0 for m in summary.measurements.values()), default=0.0))
    told = f"its own validation and saving took up to {longest} a trial, outside the timed steps"
    return [told] if any(m.pause_seconds for m in summary.measurements.values()) else []


def equal_when_rounded(ours: Record, theirs: Record) -> Mapping[str, str]:
    """By field in which two trials differ though what it stands for is equal: the convention under which it is."""
    mine, other = (one.script and one.script.weights_bf16_sha256 for one in (ours, theirs))
    if mine is None or mine != other:
        return {}
    return {"initial_weights_sha256": "equal by shapes when rounded to bf16, under other names or dtypes"}
