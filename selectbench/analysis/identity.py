"""Whether the options did the same job: settings and identities of their trials held against each other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from operator import attrgetter
from typing import Any, Literal

from selectbench.analysis import watched
from selectbench.analysis.result import IDENTITY, Certificate, NotVerified, Violation
from selectbench.analysis.scripts import equal_when_rounded
from selectbench.analysis.summary import Summary, below_the_floor
from selectbench.choices import Choices
from selectbench.choices.choice import is_own
from selectbench.choices.model import Gpt2, Llama, OwnModel
from selectbench.record.record import Identity
from selectbench.suite.command import CommandChoices
from selectbench.suite.job import LrSchedule, distinct_rates, shape_sha256, shares
from selectbench.suite.suite import Option, Suite

SettingDifferences = list[tuple[str, object, object]]
"""For each setting its path, the recorded value and the suite's."""


def other_settings(summary: Summary) -> dict[int, SettingDifferences]:
    """Recorded settings that differ from the suite's, by seed. Raises UserError where a record's are no mapping."""
    requested = summary.option.choices.model_dump(mode="json")
    by_text, differences = dict[bytes, SettingDifferences](), dict[int, SettingDifferences]()
    for seed, record in summary.completed.items():
        if (text := bytes(record.trial.settings)) not in by_text:
            by_text[text] = list(_differing(record.trial.read_settings(), requested))
        if by_text[text]:
            differences[seed] = by_text[text]
    return differences


def settings_in_words(differences: SettingDifferences, place: int) -> str:
    """`optimizer.lr 0.001`, the first three; place 1: the recorded values, 2: the suite's."""
    return ", ".join(f"{entry[0]} {_setting_words(entry[place])}" for entry in differences[:3])


def _differing(
    recorded: Mapping[str, Any], requested: Mapping[str, Any], path: str = ""
) -> Iterator[tuple[str, Any, Any]]:
    """The recorded settings that differ; keys that a later version added are not compared."""
    for key, value in recorded.items():
        requested_value = requested.get(key)
        if isinstance(value, Mapping) and isinstance(requested_value, Mapping):
            yield from _differing(value, requested_value, f"{path}{key}.")
        elif value != requested_value:
            yield f"{path}{key}", value, requested_value


def _setting_words(value: object) -> str:
    named = value.get("name") if isinstance(value, Mapping) else None
    return str(value if named is None else named)


# Whether the options did the same job: every field of two trials' identities held against each other.
#
# A field is the same, differs as declared (a choice in which the two options differ names it in `may_change`),
# differs undeclared (a violation), or is not verified because a trial could not see it. Comparing is symmetric.

Status = Literal["same", "declared", "violation", "not_verified"]

FIELDS = Identity.__struct_fields__
_VALUES = attrgetter(*FIELDS)
OTHER_TRIALS = "most trials of the run"
"""Named in place of an option to compare with, where an option's other seeds are not like this one."""
RUN_WIDE = frozenset({"evaluation_set_sha256"})
"""Fields that no seed changes: compared over all trials of the run, not within seeds."""
TOLERANCES = {
    "first_step_loss": (1e-4, 1e-2), "first_step_gradient_norm": (1e-3, 5e-2),
    "first_step_update_norm": (1e-3, 5e-2), "first_step_added_loss": (1e-3, 5e-2),
}  # fmt: skip
"""Relative, of what is computed, not counted: where both trials compute in fp32 without TF32, and where one of them
rounds to fewer bits. Sums in another order: cuts of a step into 1 to 8 micro-batches differ by 2e-7 at most (kept
runs, GPT-2 of 1 M parameters), other seeds' losses by 1.3e-4 and more but for one pair, by chance 1.8e-5, whose
norms differ by 3 %. bf16 keeps 8 bits, 0.4 % a rounding; bf16 and fp16 differ from fp32 by 2e-5 in the loss and
2.2e-3 in the norm at most (kept runs); the rest is room for larger models."""

HIDDEN_IF_NONE = frozenset({
    "initial_weights_sha256", "token_stream_sha256", "tokens_per_step", "learning_rate_shape_sha256",
    "first_step_loss", "gradient_dtype", "working_dtype", "compute_dtype", "optimizer_state_dtype", "attention",
    "sdpa_backends", "optimizer", "first_step_gradient_norm", "dropout", "loss",
})  # fmt: skip
"""Fields whose None says that the trial could not see them; in the others None is a value like any."""
OF_SCRIPTS = frozenset({
    "first_step_update_norm", "left_out_parameters", "heldout_rows_trained", "first_step_added_loss",
})  # fmt: skip
"""Fields that most jobs leave out: one None hides them, two say nothing."""

_CHANGED_BY = {
    "micro_batch_size": frozenset({"gradient_accumulation_steps"}),
    "world_size": frozenset({"gradient_accumulation_steps", "world_size"}),
    "global_batch_size": frozenset({
        "tokens_per_step", "steps_requested", "steps_applied", "gradient_accumulation_steps", "token_stream_sha256",
        "learning_rate_shape_sha256", "peak_learning_rate", "first_step_loss", "first_step_gradient_norm",
    }),
    "model": frozenset({
        "initial_weights_sha256", "parameters", "trainable_parameters", "attention", "sdpa_backends", "dropout",
        "first_step_loss", "first_step_gradient_norm", "random_modules", "first_step_added_loss",
    }),
    "tokenizer": frozenset({
        "token_stream_sha256", "evaluation_set_sha256", "initial_weights_sha256", "parameters",
        "trainable_parameters", "first_step_loss", "first_step_gradient_norm",
    }),
    "python": frozenset({"sdpa_backends"}),
}  # fmt: skip
"""What the dimensions that are no choices of the registry may change.

The token stream's digest has one sum for each optimizer step, over every token at its place in the step: another
global batch has another digest, though it reads the same sequences in the same order."""

_MASK_FIELDS = (
    "tokens_per_step", "gradient_accumulation_steps", "world_size", "framework", "attention", "sdpa_backends",
    "compiled", "compute_dtype",
)  # fmt: skip
"""Fields on which the random numbers of dropout depend."""
MASKS = "its masks depend on how a step is cut and computed"
"""Why dropout is not verified where the trials dropped different activations."""
_STEP_CUT = ("tokens_per_step", "gradient_accumulation_steps", "world_size")
_BY_CUT = frozenset({"first_step_gradient_norm", "first_step_added_loss"})
"""Fields that follow from the cut of a step where the model adds a loss of its own: of MoE's balance each
micro-batch has the product of its means (Fedus et al. 2021, arXiv:2101.03961, equation 4), not the step."""
OWN_LOOP: watched.Unverified = ("own loop", "its clipping, optimizer settings, further losses and updates")
LEFT_TO_AN_OWN_LOOP = (
    "token_stream_sha256", "tokens_per_step", "learning_rate_shape_sha256", "peak_learning_rate"
)  # fmt: skip
"""Fields of what an own loop was handed; what the loop did with it is not observed."""


def may_change(option: Option, other: Option) -> frozenset[str]:
    """Identity fields that the choices in which two options differ may legitimately change."""
    declared: set[str] = set()
    names = tuple(_CHANGED_BY)
    for choices in (option.choices, other.choices):
        if isinstance(choices, CommandChoices):  # whose placeholders may have any name
            names = ("micro_batch_size", "world_size", "python")
            declared |= {*choices.may_change}
    changing = [name for name in names if getattr(option.choices, name) != getattr(other.choices, name)]
    if "world_size" in changing and isinstance(option.choices, CommandChoices):
        declared.add("strategy")
    chosen, others = option.choices.by_dimension(), other.choices.by_dimension()
    changed = [choice for name in chosen if chosen[name] != others[name] for choice in (chosen[name], others[name])]
    excused = [*(c.allowed_differences() for c in changed), *map(_CHANGED_BY.__getitem__, changing)]
    return frozenset(declared).union(*excused)


def compare(trial: Identity, reference: Identity, declared: frozenset[str]) -> dict[str, Status]:
    """The status of each field that is not `same` in two trials of one seed; `declared`: fields that may differ."""
    statuses = {
        name: _status(name, trial, reference, name in declared) for name in _fields_to_judge(trial, reference)
    }
    return {name: status for name, status in statuses.items() if status != "same"}


def _fields_to_judge(trial: Identity, reference: Identity) -> list[str]:
    """Fields that need a judgement: those that differ, and those that a trial could not see."""
    always = {"reduction_dtype"} if trial.world_size > 1 or reference.world_size > 1 else set[str]()
    always |= {"dropout"} if _masks_differ(trial, reference) else set()
    return [
        name for name, value, other in zip(FIELDS, _VALUES(trial), _VALUES(reference), strict=True)
        if value != other or name in always or (name in HIDDEN_IF_NONE and (value is None or value == ""))
    ]  # fmt: skip


def _masks_differ(trial: Identity, reference: Identity) -> bool:
    """Whether dropout dropped other activations in one trial than in the other."""
    draws = trial.dropout or reference.dropout or trial.random_modules or reference.random_modules
    return bool(draws) and any(getattr(trial, name) != getattr(reference, name) for name in _MASK_FIELDS)


def _status(name: str, trial: Identity, other: Identity, declared: bool) -> Status:
    value, expected = getattr(trial, name), getattr(other, name)
    if name in HIDDEN_IF_NONE | OF_SCRIPTS and any(v is None or v == "" for v in (value, expected)):
        return "not_verified"
    if name == "reduction_dtype" and any(i.world_size > 1 and i.reduction_dtype is None for i in (trial, other)):
        return "not_verified"
    if name in TOLERANCES:
        tolerance = TOLERANCES[name][0 if _is_fp32(trial) and _is_fp32(other) else 1]
        agrees = abs(value - expected) <= tolerance * max(abs(value), abs(expected))
    else:  # one rank sums nothing, whatever the dtype
        agrees = value == expected or (name == "reduction_dtype" and 1 in (trial.world_size, other.world_size))
    if agrees:
        return "not_verified" if name == "dropout" and _masks_differ(trial, other) else "same"
    adds = trial.first_step_added_loss is not None and other.first_step_added_loss is not None
    if declared or (
        adds and name in _BY_CUT and any(getattr(trial, cut) != getattr(other, cut) for cut in _STEP_CUT)
    ):
        return "declared"
    if name == "first_step_update_norm" and (
        trial.left_out_parameters != other.left_out_parameters
        or _status("first_step_gradient_norm", trial, other, declared) != "same"
    ):  # of other gradients it does not show whether they were clipped alike
        return "not_verified"
    return "not_verified" if name in TOLERANCES and _masks_differ(trial, other) else "violation"


def _is_fp32(identity: Identity) -> bool:
    dtypes = {identity.parameter_dtype, identity.compute_dtype, identity.gradient_dtype or "float32"}
    return dtypes == {"float32"} and not identity.matmul_tf32


def requested_fields(suite: Suite, option: Option, ranks: int, *, shapes_differ: bool) -> dict[str, Any]:
    """Identity fields that job and choices fix on `ranks` ranks; `shapes_differ`: some schedule may differ."""
    if (command := suite.command) is not None:
        steps_made = {} if command.stop == "natural_end" else {"steps_requested": command.stops_after}
        return {"world_size": ranks if (size := option.choices.world_size) == "auto" else size, **steps_made}
    job, choices = suite.job_of(option), option.built
    requested: dict[str, Any] = {"tokens_per_step": job.tokens_per_step, "steps_requested": job.max_steps}
    for choice in choices.by_dimension().values():
        requested |= choice.expected_identity()
    if isinstance(job.model, OwnModel):  # its kernel is its own
        requested.pop("sdpa_backends", None)
    if isinstance(job.model, Gpt2 | Llama):  # other models may return logits in another dtype than they compute
        p = choices.precision
        requested["compute_dtype"] = p.autocast_dtype or p.working_dtype or p.parameter_dtype
    if shapes_differ:
        requested["learning_rate_shape_sha256"] = _schedule_shape(job.lr_schedule, job.max_steps)[0]
    if (rates := choices.optimizer.peak_rates()) is not None:
        largest = _schedule_shape(job.lr_schedule, job.max_steps)[1]
        requested["peak_learning_rate"] = distinct_rates(rate * largest for rate in rates)
    requested["world_size"] = ranks if choices.world_size == "auto" else choices.world_size
    may_skip = any("steps_applied" in choice.may_change for choice in choices.by_dimension().values())
    if choices.global_batch_size is not None and not may_skip:
        requested["steps_applied"] = job.max_steps
    steps = job.gradient_accumulation_steps(choices.micro_batch_size, requested["world_size"])
    return {**requested, "gradient_accumulation_steps": steps}


@cache
def _schedule_shape(schedule: LrSchedule, max_steps: int) -> tuple[str, float]:
    """A schedule's digest, and its largest share of the peak rate: below 1 where no step has the whole rate."""
    step_shares = shares(schedule, max_steps)
    return shape_sha256(step_shares), max(step_shares)


def unmet_requests(requested: Mapping[str, Any], identity: Identity) -> dict[str, Any]:
    """The requested values of the fields in which a trial's identity is known to have another value."""
    return {name: value for name, value in requested.items() if getattr(identity, name) not in (None, value)}


@dataclass
class _Findings:
    """What the comparisons of one option showed, collected over its seeds."""

    declared: set[str] = field(default_factory=set)
    violations: dict[str, Violation] = field(default_factory=dict)
    not_verified: dict[watched.Unverified, None] = field(default_factory=dict)
    unrecorded: list[int] = field(default_factory=list)
    references: dict[str, None] = field(default_factory=dict)
    conventions: dict[str, str] = field(default_factory=dict)
    seeds: int = 0

    def violate(self, name: str, seed: int, **values: Any) -> None:
        """Keeps the values of the first seed; those of the others are in the records."""
        violation = self.violations.setdefault(name, Violation(field=name, seeds=[], **values))
        self.violations[name] = violation.model_copy(update={"seeds": [*violation.seeds, seed]})

    def certificate(self) -> Certificate:
        """The option's certificate: an identity field has one entry among what is not verified, with its reason."""
        reasons: dict[str, str | None] = {}
        for name, reason in self.not_verified:
            reasons[name] = reasons.get(name) or reason
        unseen = [(name, reasons[name]) for name in FIELDS if name in reasons and name not in self.violations]
        unseen += [entry for entry in self.not_verified if entry[0] not in FIELDS]
        if self.unrecorded:
            unseen.append((IDENTITY, f"none recorded for seed {', '.join(map(str, self.unrecorded))}"))
        return Certificate(
            comparable=not self.violations if self.violations or len(self.unrecorded) < self.seeds else None,
            compared_with=list(self.references),
            differs_as_declared=[n for n in FIELDS if n in self.declared and n not in self.violations],
            violations=sorted(
                self.violations.values(), key=lambda v: FIELDS.index(v.field) if v.field in FIELDS else len(FIELDS)
            ),
            not_verified=[NotVerified(field=name, reason=reason) for name, reason in unseen],
            conventions=self.conventions,
        )


def certify(suite: Suite, summaries: Sequence[Summary]) -> dict[str, Certificate]:
    """Every option's certificate by its name, against the baseline or the first that has one of the seed."""
    baseline = next(summary for summary in summaries if summary.name == suite.baseline)
    ordered = [baseline, *(summary for summary in summaries if summary is not baseline)]
    findings = {summary.name: _Findings(seeds=len(summary.completed)) for summary in summaries}
    options = {summary.name: summary.option for summary in ordered}
    trained = [option.choices for option in suite.options if isinstance(option.choices, Choices)]
    shapes_differ = any(o.optimizer.sets_schedule or o.global_batch_size is not None for o in trained)

    @cache
    def requested_of(name: str, ranks: int) -> dict[str, Any]:
        return requested_fields(suite, options[name], ranks, shapes_differ=shapes_differ)

    @cache
    def may_differ(name: str, other: str) -> frozenset[str]:
        return may_change(options[name], options[other])

    for seed in baseline.planned:
        done = {s.name: s for s in ordered if seed in s.completed}
        identities = {name: identity for name, s in done.items() if (identity := s.completed[seed].identity)}
        unmet_by = {n: unmet_requests(requested_of(n, i.world_size), i) for n, i in identities.items()}
        first = next(iter(identities), "")
        odd = _fields_odd_in_reference(first, identities, unmet_by, may_differ)
        for name, other in odd.items():
            value, other_value = (getattr(identities[n], name) for n in (first, other))
            findings[first].violate(name, seed, option=value, baseline=other_value, against=other)
        reference = next(iter(odd.values()), first)
        for name, summary in done.items():
            against = summary if not reference or (odd and name == first) else done[reference]
            _compare_trials(summary, against, seed, unmet_by, may_differ(name, against.name), findings[name])
    for summary in summaries:  # besides, other settings than the suite's, and a loss that nothing can have
        violate = partial(findings[summary.name].violate, baseline=None, against=suite.baseline)
        for seed, differing in other_settings(summary).items():
            violate("settings", seed, asked=settings_in_words(differing, 2), option=settings_in_words(differing, 1))
        for seed, measured in summary.measurements.items():
            if below_the_floor(measured):
                floor = f"at least the source's own {measured.source_loss:.4g} nats per token"
                violate("final_loss", seed, asked=floor, option=measured.final_loss)
    _check_trials(suite, ordered, findings)
    return {name: collected.certificate() for name, collected in findings.items()}


def _fields_odd_in_reference(
    reference: str, identities: Mapping[str, Identity], unmet_by: Mapping[str, Mapping[str, Any]],
    may_differ: Callable[[str, str], frozenset[str]],
) -> dict[str, str]:  # fmt: skip
    """Fields in which all others, two at least, agree and differ from the reference; with one of these others."""
    if len(identities) < 3:
        return {}
    reference_identity = identities[reference]
    agreeing: dict[str, list[str]] = {}
    for name, identity in identities.items():
        for field_name, status in compare(identity, reference_identity, may_differ(name, reference)).items():
            if status == "violation" and field_name not in (*RUN_WIDE, *unmet_by[reference]):
                agreeing.setdefault(field_name, []).append(name)
    odd_fields: dict[str, str] = {}
    for field_name, differing in agreeing.items():
        first, *rest = differing
        in_question = [n for n in identities if n != reference and field_name not in may_differ(n, reference)]
        if rest and differing == in_question and not any(field_name in unmet_by[name] for name in differing):
            agree = (_status(field_name, identities[first], identities[n], False) == "same" for n in rest)
            odd_fields |= {field_name: first} if all(agree) else {}
    return odd_fields


def _check_trials(suite: Suite, ordered: Sequence[Summary], findings: Mapping[str, _Findings]) -> None:
    """Judges each trial by itself, and what must be equal in all trials; `ordered`: the baseline is the first."""
    trials = [(s, seed, record) for s in ordered for seed, record in s.completed.items()]
    changed = watched.changed_code([record for *_, record in trials])
    steps = {s.name: None if suite.command else suite.job_of(s.option).tokens_per_step for s in ordered}
    for place, (summary, seed, record) in enumerate(trials):
        of_option = findings[summary.name]
        of_option.not_verified |= dict.fromkeys(watched.unverified(record, is_causal=suite.job.task == "causal_lm"))
        if (script := record.script) is not None:
            of_option.conventions |= script.conventions
            of_option.not_verified |= dict.fromkeys(script.not_seen.items())
        violate = partial(of_option.violate, seed=seed, baseline=None, against=suite.baseline)
        for name, requested, observed in (*watched.deviations(suite, record), *changed.get(place, ())):
            violate(name, asked=requested, option=observed)
        if contradiction := "; ".join(watched.contradictions(record, steps[summary.name])):
            violate("record", option=contradiction)
    groups: dict[object, list[tuple[Summary, int, Mapping[str, object]]]] = {}
    by_text = {bytes(record.software): record for *_, record in trials}
    software = {text: watched.software_of(record) for text, record in by_text.items()}
    for summary, seed, record in trials:
        tokenizer = None if suite.command else summary.option.built.tokenizer
        of_python = software[bytes(record.software)]
        groups.setdefault(tokenizer, []).append((summary, seed, watched.text_facts(record)))
        groups.setdefault(("python", summary.option.choices.python), []).append((summary, seed, of_python))
    for group in groups.values():
        for name in dict.fromkeys(name for *_, values in group for name in values):
            counts = Counter(values[name] for *_, values in group if name in values)
            (most, _), *others = counts.most_common()  # of equally many the baseline's
            first = next(summary.name for summary, _, values in group if values.get(name) == most)
            for summary, seed, values in group if others else ():
                if values.get(name, most) != most:
                    against = OTHER_TRIALS if summary.name == first else first
                    findings[summary.name].violate(name, seed, option=values[name], baseline=most, against=against)


def _compare_trials(
    summary: Summary, reference: Summary, seed: int, unmet_by: Mapping[str, Mapping[str, Any]],
    declared: frozenset[str], findings: _Findings,
) -> None:  # fmt: skip
    """Adds a trial's differences from the reference's; `unmet_by`: by option, requests that its trial missed."""
    identity, other = summary.completed[seed].identity, reference.completed[seed].identity
    unmet, violate = unmet_by.get(summary.name, {}), partial(findings.violate, seed=seed, against=reference.name)
    for name, value in unmet.items():
        violate(name, asked=value, option=getattr(identity, name), baseline=getattr(other, name, None))
    if identity is None:
        findings.unrecorded.append(seed)
    if summary is not reference:
        findings.references[reference.name] = None
    if summary is reference or identity is None or other is None:
        return
    records = summary.completed[seed], reference.completed[seed]
    statuses = compare(identity, other, declared)
    for name, convention in equal_when_rounded(*records).items():
        if statuses.get(name) == "violation":
            del statuses[name]
            findings.conventions[name] = convention
    if any(map(watched.is_unscored, records)):
        statuses |= dict.fromkeys(RUN_WIDE & statuses.keys(), "not_verified")
    if is_own(identity.framework) or is_own(other.framework):
        left = {name for name in LEFT_TO_AN_OWN_LOOP if getattr(identity, name) is not None} - statuses.keys()
        left -= set(watched.TOKENS) if all(map(watched.is_token_stream_seen, records)) else set()
        findings.not_verified |= dict.fromkeys([OWN_LOOP, *((name, None) for name in left)])
    if not statuses:  # as it is with most of thousands of trials
        return
    findings.declared |= {name for name, status in statuses.items() if status == "declared"}
    reasons = {}
    if names := sorted({*identity.random_modules, *other.random_modules}):
        reasons["dropout"] = f"{', '.join(names)} draws random numbers, which depend on how a step is cut"
    elif None not in (identity.dropout, other.dropout):
        reasons["dropout"] = MASKS
    unseen = [name for name, status in statuses.items() if status == "not_verified"]
    findings.not_verified |= dict.fromkeys((name, reasons.get(name)) for name in unseen)
    # Where the reference itself does not meet a request, the difference is not this option's fault.
    excused = unmet.keys() | unmet_by.get(reference.name, {}).keys() | RUN_WIDE
    for name in (name for name, status in statuses.items() if status == "violation" and name not in excused):
        violate(name, option=getattr(identity, name), baseline=getattr(other, name))
