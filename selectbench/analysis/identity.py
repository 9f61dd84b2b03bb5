"""Whether the options did the same job: settings and identities of their trials held against each other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from itertools import compress
from operator import attrgetter, ne
from typing import Any, Literal, get_args

from selectbench.analysis import watched
from selectbench.analysis.result import Certificate, Violation
from selectbench.analysis.scripts import equal_when_rounded
from selectbench.analysis.summary import Summary, below_the_floor
from selectbench.choices import Choices
from selectbench.choices.choice import is_own
from selectbench.choices.model import Gpt2, Llama, OwnModel
from selectbench.record.record import Identity
from selectbench.suite.command import CommandChoices
from selectbench.suite.job import LrSchedule, distinct_rates, shape_sha256, shares
from selectbench.suite.suite import Option, Suite

Differing = list[tuple[str, object, object]]
"""Path, what was recorded, and what the suite says."""


def other_settings(summary: Summary) -> dict[int, Differing]:
    """By completed seed, as far as records of their age say. Raises UserError where settings are no mapping."""
    asked = summary.option.choices.model_dump(mode="json")
    by_text, found = dict[bytes, Differing](), dict[int, Differing]()
    for seed, record in summary.completed.items():
        if (text := bytes(record.trial.settings)) not in by_text:
            by_text[text] = list(_differing(record.trial.read_settings(), asked))
        found.update({seed: by_text[text]} if by_text[text] else {})
    return found


def settings_in_words(differing: Differing, place: int) -> str:
    """`optimizer.lr 0.001`; place 1: what was recorded, 2: what the suite says."""
    return ", ".join(f"{entry[0]} {_shown(entry[place])}" for entry in differing[:3])


def _differing(
    recorded: Mapping[str, Any], asked: Mapping[str, Any], path: str = ""
) -> Iterator[tuple[str, Any, Any]]:
    """Of keys that were recorded; later versions have more."""
    for key, value in recorded.items():
        wanted = asked.get(key)
        if isinstance(value, Mapping) and isinstance(wanted, Mapping):
            yield from _differing(value, wanted, f"{path}{key}.")
        elif value != wanted:
            yield f"{path}{key}", value, wanted


def _shown(value: object) -> str:
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
"""Stands for the option compared with where an option's other seeds are not like this one."""
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
_MAY_HIDE = tuple(sorted(HIDDEN_IF_NONE))
_HIDDEN = attrgetter(*_MAY_HIDE)

_FOLLOWS = {
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

_DRAWS_MASKS = (
    "tokens_per_step", "gradient_accumulation_steps", "world_size", "framework", "attention", "sdpa_backends",
    "compiled", "compute_dtype",
)  # fmt: skip
"""Fields on which the random numbers of dropout depend."""
MASKS = "dropout: its masks depend on how a step is cut and computed"
"""Stands among what is not verified where the trials dropped different activations."""
_CUTS = ("tokens_per_step", "gradient_accumulation_steps", "world_size")
_OF_THE_CUT = frozenset({"first_step_gradient_norm", "first_step_added_loss"})
"""Fields that follow from the cut of a step where the model adds a loss of its own: of MoE's balance each
micro-batch has the product of its means (Fedus et al. 2021, arXiv:2101.03961, equation 4), not the step."""
OWN_LOOP = "an own loop's clipping, optimizer settings, further losses and updates"
"""Stands among what is not verified where nobody saw what an own loop did besides."""
LEFT_TO_AN_OWN_LOOP = (
    "token_stream_sha256", "tokens_per_step", "learning_rate_shape_sha256", "peak_learning_rate"
)  # fmt: skip
"""Fields that say what an own loop was handed; what it made of it, it alone knows."""


def may_change(option: Option, other: Option) -> frozenset[str]:
    """Identity fields that the choices in which two options differ may legitimately change."""
    stated: set[str] = set()
    names = tuple(_FOLLOWS)
    for choices in (option.choices, other.choices):
        if isinstance(choices, CommandChoices):  # whose placeholders may have any name
            names = ("micro_batch_size", "world_size", "python")
            stated |= {*choices.may_change}
    changing = [name for name in names if getattr(option.choices, name) != getattr(other.choices, name)]
    if "world_size" in changing and isinstance(option.choices, CommandChoices):
        stated.add("strategy")
    ours, theirs = option.choices.by_dimension(), other.choices.by_dimension()
    changed = [choice for name in ours if ours[name] != theirs[name] for choice in (ours[name], theirs[name])]
    excused = [*(choice.allowed_differences() for choice in changed), *map(_FOLLOWS.__getitem__, changing)]
    return frozenset(stated).union(*excused)


def compare(ours: Identity, theirs: Identity, declared: frozenset[str]) -> dict[str, Status]:
    """The status of each field of two trials of one seed that is not `same`; `declared` may differ."""
    found = {name: _status(name, ours, theirs, name in declared) for name in _in_question(ours, theirs)}
    return {name: status for name, status in found.items() if status != "same"}


def _in_question(ours: Identity, theirs: Identity) -> list[str]:
    """Fields that are not simply the same: those that differ, and those that could not be seen."""
    found = [] if ours == theirs else list(compress(FIELDS, map(ne, _VALUES(ours), _VALUES(theirs))))
    hidden = _HIDDEN(ours)
    if None in hidden or "" in hidden:
        found += [name for name, value in zip(_MAY_HIDE, hidden, strict=True) if value is None or value == ""]
    if ours.world_size > 1 or theirs.world_size > 1:
        found.append("reduction_dtype")
    if _other_masks(ours, theirs):
        found.append("dropout")
    return list(dict.fromkeys(found))


def _other_masks(ours: Identity, theirs: Identity) -> bool:
    """Whether the two dropped different activations."""
    draws = ours.dropout or theirs.dropout or ours.random_modules or theirs.random_modules
    return bool(draws) and any(getattr(ours, name) != getattr(theirs, name) for name in _DRAWS_MASKS)


def _status(name: str, ours: Identity, theirs: Identity, declared: bool) -> Status:
    mine, other = getattr(ours, name), getattr(theirs, name)
    if name in HIDDEN_IF_NONE | OF_SCRIPTS and any(value is None or value == "" for value in (mine, other)):
        return "not_verified"
    if name == "reduction_dtype" and any(i.world_size > 1 and i.reduction_dtype is None for i in (ours, theirs)):
        return "not_verified"
    if name in TOLERANCES:
        tolerance = TOLERANCES[name][0 if _is_fp32(ours) and _is_fp32(theirs) else 1]
        agrees = abs(mine - other) <= tolerance * max(abs(mine), abs(other))
    else:  # one rank sums nothing, whatever the dtype
        agrees = mine == other or (name == "reduction_dtype" and 1 in (ours.world_size, theirs.world_size))
    if agrees:
        return "not_verified" if name == "dropout" and _other_masks(ours, theirs) else "same"
    adds = ours.first_step_added_loss is not None and theirs.first_step_added_loss is not None
    if declared or (
        adds and name in _OF_THE_CUT and any(getattr(ours, each) != getattr(theirs, each) for each in _CUTS)
    ):
        return "declared"
    if name == "first_step_update_norm" and (
        ours.left_out_parameters != theirs.left_out_parameters
        or _status("first_step_gradient_norm", ours, theirs, declared) != "same"
    ):  # of other gradients it does not show whether they were clipped alike
        return "not_verified"
    return "not_verified" if name in TOLERANCES and _other_masks(ours, theirs) else "violation"


def _is_fp32(identity: Identity) -> bool:
    dtypes = {identity.parameter_dtype, identity.compute_dtype, identity.gradient_dtype or "float32"}
    return dtypes == {"float32"} and not identity.matmul_tf32


def asked_for(suite: Suite, option: Option, ranks: int, *, shapes_differ: bool) -> dict[str, Any]:
    """By field what job and choices fix on so many ranks; `shapes_differ`: whether some option's schedule may."""
    if (command := suite.command) is not None:
        steps_made = {} if command.stop == "natural_end" else {"steps_requested": command.stops_after}
        return {"world_size": ranks if (size := option.choices.world_size) == "auto" else size, **steps_made}
    job, choices = suite.job_of(option), option.built
    asked: dict[str, Any] = {"tokens_per_step": job.tokens_per_step, "steps_requested": job.max_steps}
    for choice in choices.by_dimension().values():
        asked |= choice.expected_identity()
    if isinstance(job.model, OwnModel):  # its kernel is its own
        asked.pop("sdpa_backends", None)
    if isinstance(job.model, Gpt2 | Llama):  # other models may return logits in another dtype than they compute
        precision = choices.precision
        asked["compute_dtype"] = precision.autocast_dtype or precision.working_dtype or precision.parameter_dtype
    if shapes_differ:
        asked["learning_rate_shape_sha256"] = _shape(job.lr_schedule, job.max_steps)[0]
    if (rates := choices.optimizer.peak_rates()) is not None:
        largest = _shape(job.lr_schedule, job.max_steps)[1]
        asked["peak_learning_rate"] = distinct_rates(rate * largest for rate in rates)
    asked["world_size"] = ranks if choices.world_size == "auto" else choices.world_size
    may_skip = any("steps_applied" in choice.may_change for choice in choices.by_dimension().values())
    if choices.global_batch_size is not None and not may_skip:
        asked["steps_applied"] = job.max_steps
    steps = job.gradient_accumulation_steps(choices.micro_batch_size, asked["world_size"])
    return {**asked, "gradient_accumulation_steps": steps}


@cache
def _shape(schedule: LrSchedule, max_steps: int) -> tuple[str, float]:
    """Its digest, and the largest share of the peak rate: below 1 where no step has all of it."""
    every = shares(schedule, max_steps)
    return shape_sha256(every), max(every)


def unmet(asked: Mapping[str, Any], found: Identity) -> dict[str, Any]:
    """What was asked for, of those fields in which the trial was found to be otherwise."""
    differing = [name for name, value in asked.items() if getattr(found, name) != value]
    return {name: asked[name] for name in differing if getattr(found, name) is not None}


@dataclass
class _Findings:
    """Of one option, collected over its seeds."""

    declared: set[str] = field(default_factory=set)
    violations: dict[str, Violation] = field(default_factory=dict)
    not_verified: set[str] = field(default_factory=set)
    unrecorded: list[int] = field(default_factory=list)
    references: dict[str, None] = field(default_factory=dict)
    conventions: dict[str, str] = field(default_factory=dict)
    not_seen: dict[str, str] = field(default_factory=dict)
    seeds: int = 0

    def violate(self, name: str, seed: int, **values: Any) -> None:
        """The values of the first seed are shown; the others' are in the records."""
        before = self.violations.setdefault(name, Violation(field=name, seeds=[], **values))
        self.violations[name] = before.model_copy(update={"seeds": [*before.seeds, seed]})

    def certificate(self) -> Certificate:
        unseen = [name for name in FIELDS if name in self.not_verified and name not in self.violations]
        reasons = [
            MASKS if name == "dropout" and MASKS in self.not_verified
            else f"{name}: {self.not_seen[name]}" if name in self.not_seen else name
            for name in unseen
        ]  # fmt: skip
        missing = ", ".join(map(str, self.unrecorded))
        return Certificate(
            comparable=not self.violations if self.violations or len(self.unrecorded) < self.seeds else None,
            compared_with=list(self.references),
            differs_as_declared=[n for n in FIELDS if n in self.declared and n not in self.violations],
            violations=sorted(
                self.violations.values(), key=lambda v: FIELDS.index(v.field) if v.field in FIELDS else len(FIELDS)
            ),
            not_verified=[
                *reasons,
                *([OWN_LOOP] if OWN_LOOP in self.not_verified else []),
                *sorted(entry for entry in self.not_verified if entry.startswith(("own ", watched.UNTRIED))),
                *(f"{name}: {why}" for name, why in self.not_seen.items() if name not in FIELDS),
                *([f"identity: none recorded for seed {missing}"] if missing else []),
            ],
            conventions=self.conventions,
        )


def certify(suite: Suite, summaries: Sequence[Summary]) -> dict[str, Certificate]:
    """Every option's certificate by its name, against the baseline or the first that has one of the seed."""
    baseline = next(summary for summary in summaries if summary.name == suite.baseline)
    ordered = [baseline, *(summary for summary in summaries if summary is not baseline)]
    findings = {summary.name: _Findings(seeds=len(summary.completed)) for summary in summaries}
    options = {summary.name: summary.option for summary in ordered}
    every = [option.choices for option in suite.options if isinstance(option.choices, Choices)]
    shapes_differ = any(o.optimizer.sets_schedule or o.global_batch_size is not None for o in every)

    @cache
    def asked_of(name: str, ranks: int) -> dict[str, Any]:
        return asked_for(suite, options[name], ranks, shapes_differ=shapes_differ)

    @cache
    def excused(name: str, other: str) -> frozenset[str]:
        return may_change(options[name], options[other])

    for seed in baseline.planned:
        done = {s.name: s for s in ordered if seed in s.completed}
        identities = {name: found for name, s in done.items() if (found := s.completed[seed].identity)}
        unmet_by = {n: unmet(asked_of(n, identity.world_size), identity) for n, identity in identities.items()}
        first = next(iter(identities), "")
        odd = _odd_fields(first, identities, unmet_by, excused)
        for name, other in odd.items():
            mine, theirs = (getattr(identities[one], name) for one in (first, other))
            findings[first].violate(name, seed, option=mine, baseline=theirs, against=other)
        reference = next(iter(odd.values()), first)
        for name, summary in done.items():
            to = summary if not reference or (odd and name == first) else done[reference]
            _examine(summary, to, seed, unmet_by, excused(name, to.name), findings[name])
    for summary in summaries:  # besides, other settings than the suite's, and a loss that nothing can have
        violate = partial(findings[summary.name].violate, baseline=None, against=suite.baseline)
        for seed, differing in other_settings(summary).items():
            violate("settings", seed, asked=settings_in_words(differing, 2), option=settings_in_words(differing, 1))
        for seed, measured in summary.measurements.items():
            if below_the_floor(measured):
                floor = f"at least the source's own {measured.source_loss:.4g} nats per token"
                violate("final_loss", seed, asked=floor, option=measured.final_loss)
    _look_at_trials(suite, ordered, findings)
    return {name: found.certificate() for name, found in findings.items()}


def _odd_fields(
    reference: str, identities: Mapping[str, Identity], unmet_by: Mapping[str, Mapping[str, Any]],
    excused: Callable[[str, str], frozenset[str]],
) -> dict[str, str]:  # fmt: skip
    """Fields in which two others at least agree and all differ from the reference; with one of these."""
    if len(identities) < 3:
        return {}
    mine = identities[reference]
    agreeing: dict[str, list[str]] = {}
    for name, theirs in identities.items():
        for field_name, status in compare(theirs, mine, excused(name, reference)).items():
            if status == "violation" and field_name not in (*RUN_WIDE, *unmet_by[reference]):
                agreeing.setdefault(field_name, []).append(name)
    found: dict[str, str] = {}
    for field_name, names in agreeing.items():
        first, *rest = names
        in_question = [n for n in identities if n != reference and field_name not in excused(n, reference)]
        if rest and names == in_question and not any(field_name in unmet_by[name] for name in names):
            alike = (_status(field_name, identities[first], identities[n], False) == "same" for n in rest)
            found |= {field_name: first} if all(alike) else {}
    return found


def _look_at_trials(suite: Suite, ordered: Sequence[Summary], found: Mapping[str, _Findings]) -> None:
    """Each trial by itself, and what must be the same in all trials of the run; the baseline is the first."""
    trials = [(s, seed, record) for s in ordered for seed, record in s.completed.items()]
    changed = watched.changed_files([record for *_, record in trials])
    steps = {s.name: None if suite.command else suite.job_of(s.option).tokens_per_step for s in ordered}
    for place, (summary, seed, record) in enumerate(trials):
        into = found[summary.name]
        into.not_verified.update(watched.left_unseen(record, is_causal=suite.job.task == "causal_lm"))
        if (script := record.script) is not None:
            into.conventions |= script.conventions
            into.not_seen |= script.not_seen
            into.not_verified |= script.not_seen.keys()
        violate = partial(into.violate, seed=seed, baseline=None, against=suite.baseline)
        for name, asked, did in (*watched.not_as_asked(suite, record), *changed.get(place, ())):
            violate(name, asked=asked, option=did)
        if contradiction := "; ".join(watched.contradictions(record, steps[summary.name])):
            violate("record", option=contradiction)
    groups: dict[object, list[tuple[Summary, int, Mapping[str, object]]]] = {}
    by_text = {bytes(record.software): record for *_, record in trials}
    software = {text: watched.software_of(record) for text, record in by_text.items()}
    for summary, seed, record in trials:
        tokenizer = None if suite.command else summary.option.built.tokenizer
        of_python = software[bytes(record.software)]
        groups.setdefault(tokenizer, []).append((summary, seed, watched.of_the_text(record)))
        groups.setdefault(("python", summary.option.choices.python), []).append((summary, seed, of_python))
    for group in groups.values():
        for name in dict.fromkeys(name for *_, values in group for name in values):
            counts = Counter(values[name] for *_, values in group if name in values)
            (most, _), *others = counts.most_common()  # of equally many the baseline's
            first = next(summary.name for summary, _, values in group if values.get(name) == most)
            for summary, seed, values in group if others else ():
                if values.get(name, most) != most:
                    against = OTHER_TRIALS if summary.name == first else first
                    found[summary.name].violate(name, seed, option=values[name], baseline=most, against=against)


def _examine(
    summary: Summary, reference: Summary, seed: int, unmet_by: Mapping[str, Mapping[str, Any]],
    declared: frozenset[str], into: _Findings,
) -> None:  # fmt: skip
    """`unmet_by`: by option, what was asked for and it did not do; `declared`: the fields that may differ."""
    ours, theirs = summary.completed[seed].identity, reference.completed[seed].identity
    asked, violate = unmet_by.get(summary.name, {}), partial(into.violate, seed=seed, against=reference.name)
    for name, value in asked.items():
        violate(name, asked=value, option=getattr(ours, name), baseline=getattr(theirs, name, None))
    if ours is None:
        into.unrecorded.append(seed)
    if summary is not reference:
        into.references[reference.name] = None
    if summary is reference or ours is None or theirs is None:
        return
    records = summary.completed[seed], reference.completed[seed]
    statuses = compare(ours, theirs, declared)
    for name, convention in equal_when_rounded(*records).items():
        if statuses.get(name) == "violation":
            del statuses[name]
            into.conventions[name] = convention
    if any(map(watched.is_unscored, records)):
        statuses |= dict.fromkeys(RUN_WIDE & statuses.keys(), "not_verified")
    if is_own(ours.framework) or is_own(theirs.framework):
        left = {name for name in LEFT_TO_AN_OWN_LOOP if getattr(ours, name) is not None} - statuses.keys()
        left -= set(watched.TOKENS) if all(map(watched.saw_its_tokens, records)) else set()
        into.not_verified |= {OWN_LOOP, *left}
    if not statuses:  # as it is with most of thousands of trials
        return
    by_status: dict[Status, set[str]] = {status: set() for status in get_args(Status)}
    for name, status in statuses.items():
        by_status[status].add(name)
    into.declared |= by_status["declared"]
    into.not_verified |= by_status["not_verified"]
    if drawing := sorted({*ours.random_modules, *theirs.random_modules}):
        into.not_seen["dropout"] = f"{', '.join(drawing)} draws random numbers, which depend on how a step is cut"
    elif statuses.get("dropout") == "not_verified" and None not in (ours.dropout, theirs.dropout):
        into.not_verified.add(MASKS)
    # Where the reference did otherwise than asked, the difference is its own.
    for name in by_status["violation"] - asked.keys() - unmet_by.get(reference.name, {}).keys() - RUN_WIDE:
        violate(name, option=getattr(ours, name), baseline=getattr(theirs, name))
