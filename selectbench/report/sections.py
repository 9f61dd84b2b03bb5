"""The whole report of a run as a document, section by section, and that of one option. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from selectbench import units
from selectbench.analysis.lanes import lane_lines, node_lines
from selectbench.analysis.metrics import derive, is_unclean, observe, state_of
from selectbench.analysis.recommendation import TIME_TO_LOSS_RULE
from selectbench.analysis.result import NamedVerdict, OwnBest, Ranking, Reference, Row, Search
from selectbench.analysis.scores import RESAMPLES, SEED
from selectbench.analysis.screening import screened_words
from selectbench.analysis.summary import mean, summarise
from selectbench.analysis.tuning import FLAT
from selectbench.errors import UserError, did_you_mean
from selectbench.record.record import Completed, Failed, Inspection, Measurement, Record
from selectbench.report import document as doc
from selectbench.report import evidence
from selectbench.report import ranking as shown
from selectbench.report.charts import Counting, attention_chart, charts, counting, tried_text
from selectbench.suite.job import OWN_SCORE, SCORES
from selectbench.suite.metrics import METRICS, SECONDS_TO_LOSS, names_of
from selectbench.suite.suite import Suite
from selectbench.text import choices_yaml, clean, first_line, leaves, one_line, quoted

_DETAIL_LINES, _DETAIL_WIDTH = 20, 1000
_FACTORS = (
    "Each factor's effect is on the objective, against the baseline's level, averaged over the other factors' "
    "levels within every seed; an interaction is what two levels do together beyond their effects. Intervals are "
    "95 % each by itself, over seeds; no claim is made of them."
)
_SAME_JOB = {True: "same job", False: "not the same job", None: "nothing to compare"}
_PRICES = {"seconds": "time", "tokens": "tokens", "joules": "energy", "usd": "cost"}
_SEARCH_NOTE = (
    "Every option had as many trials and tokens as the others, on a seed that the contest does not use; each trial "
    "completed a schedule of its own. Where the best of a grid lay on its edge the grid was extended, and the "
    f"other options got one more value beside their best. The width is that of the values within {FLAT:.0%} of the "
    "best, straight lines between those tried: the wider, the less it matters to hit the best."
)
_MOST_OPTIONS = 8
_MOST_MAPS = 3
_DARKEST_NATS = 8.0
_LONGEST = 240
_MEANING = (
    "They say whether other test sentences would have shown the same order; they say nothing about other seeds: "
    "that is what the ranking's own intervals are for."
)
_REFERENCES = (
    "A reference was trained on other text, perhaps on these very sentences, with other means, and is scored on "
    "what it answered once: it takes no part in ranks, tests and claims."
)
_METHOD = (
    f"Paired bootstrap (Koehn 2004): {RESAMPLES:,} draws of the test sentences with replacement, the same for all "
    f"options and seeds (generator's seed {SEED}), each scored as a whole; mean over the seeds that both "
    "completed. Interval and two-sided p are of each comparison by itself, not adjusted for the others; "
    "they support no claim."
)


def report(
    suite: Suite, ranking: Ranking, records: Sequence[Record], environment: Mapping[str, Any], command: str,
    medium: Literal["markdown", "page"], unchecked: int = 0,
) -> doc.Document:  # fmt: skip
    """`records`: those that count; `command` repeats the run; `unchecked`: how many records have no checksum."""
    done = counting(ranking, records)
    listings = {
        ("text", "The text"): evidence.cleaning_lines(environment.get("data") or {}),
        ("lanes", "Side by side"): lane_lines(ranking.lanes, ranking.objective),
        ("nodes", "Nodes"): node_lines(ranking.nodes),
        ("method", "How it was measured"): evidence.method(suite, ranking, records, environment, unchecked),
    }
    where = doc.table("Where it ran", ("what", "value"), (), _flat(environment))
    shortened = shown.page_names(ranking)[1] if medium == "page" else ""
    notes = [*([shortened] if shortened else []), *shown.table_notes(ranking)]
    sections = [
        doc.Section("ranking", "Ranking", [shown.ranking_table(ranking, medium), doc.Listing(notes)]),
        *_verdicts(ranking),
        *_constraints(ranking),
        *(_pictures(ranking, records, done) if medium == "page" else ()),
        *_scores(ranking, done),
        *_references(ranking),
        *_learnt(ranking, done),
        *evidence.kept_models(suite, records),
        *_factors(ranking),
        *_own_best(ranking),
        *_to_loss(ranking),
        _same_job(ranking),
        *evidence.memory_sections(ranking),
        *evidence.gpu_section(ranking),
        *evidence.cost_section(suite, ranking),
        *_failures(ranking),
        *doc.warnings(ranking.warnings),
        *(doc.Section(name, heading, [doc.Listing(lines)]) for (name, heading), lines in listings.items() if lines),
        doc.Section("again", "Run it again", [doc.Code(command)]),
        doc.Section("environment", "Environment", [where], is_folded=True),
    ]
    return doc.Document(
        ranking.suite, sections, ranking.question, ranking.answer, _is_decided(ranking),
        _facts(suite, ranking, environment),
    )  # fmt: skip


def summary(ranking: Ranking, medium: Literal["terminal", "page"] = "terminal") -> doc.Document:
    """The table, causes of what was not ranked, and warnings; on a terminal the answer is said last."""
    best = ranking.rows[0].option if ranking.rows and ranking.rows[0].rank is not None else None
    others = [verdict for verdict in ranking.verdicts if verdict.option not in (None, best)]
    lines = [
        *shown.ties_note(ranking), *shown.same_job(ranking), *shown.besides_note(ranking), *shown.causes(ranking),
        *(f"{verdict.title}: {verdict.sentence} {verdict.confidence}" for verdict in others),
        *_difference_lines(ranking), *_reference_lines(ranking), *_factor_lines(ranking),
        *lane_lines(ranking.lanes, ranking.objective),
        *node_lines(ranking.nodes),
    ]  # fmt: skip
    if search := ranking.search:
        lines.append(_search_cost(search))
        lines += (f"{own.option}: {_chosen(own)}" for own in (*search.sizes, *search.tuning))
    blocks = (shown.ranking_table(ranking, medium), doc.Listing(lines))
    head = (ranking.question, ranking.answer, _is_decided(ranking))
    return doc.Document(ranking.suite, doc.warnings(ranking.warnings), *head, opening=blocks)


def _is_decided(ranking: Ranking) -> bool:
    return bool(ranking.rows) and ranking.rows[0].rank == 1 and not ranking.rows[0].tied_with


def _facts(suite: Suite, ranking: Ranking, environment: Mapping[str, Any]) -> list[tuple[str, str]]:
    gpus = environment.get("gpus") or []
    names = dict.fromkeys(str(gpu.get("name")) for gpu in gpus)
    facts = {
        "baseline": ranking.baseline, "ranked by": ranking.objective, "device": ranking.device,
        "hardware": ", ".join(names) if suite.device == "cuda" and names else environment.get("cpu_model"),
        "nodes": environment.get("nodes"),
        "torch": (environment.get("libraries") or {}).get("torch"),
        "seeds": ", ".join(map(str, ranking.seeds[:12])), "constraints": "; ".join(suite.decide.constraints),
    }  # fmt: skip
    return [(key, one_line(str(value), 160)) for key, value in facts.items() if value]


def _constraints(ranking: Ranking) -> Iterator[doc.Section]:
    """What was found of each row's constraints, and who lacks the objective; nothing where nothing was judged."""
    cells: list[list[doc.Cell]] = []
    for row in ranking.rows:
        cells += (
            [row.option, c.constraint, c.verdict.replace("_", " "), c.detail,
             f"{c.settling.seeds} more seeds" if c.settling else ""]
            for c in row.constraints
        )  # fmt: skip
        asked = {c.constraint for c in row.constraints}
        others = (why.partition(": ") for why in row.constraint_failures)
        cells += ([row.option, what, "fails", found, ""] for what, _, found in others if what not in asked)
    if any(verdict != "not judged" for _, _, verdict, _, _ in cells):
        heads = ("option", "constraint", "verdict", "found", "to settle it")
        yield doc.Section("constraints", "Constraints", [doc.table("Constraints of each row", heads, (), cells)])


def _verdicts(ranking: Ranking) -> Iterator[doc.Section]:
    """The named verdicts with their options' settings; nothing where the run has no figures for any."""
    if not ranking.verdicts:
        return
    cards = [doc.Card(v.title, v.headline, v.sentence, v.confidence, v.sure) for v in ranking.verdicts]
    by_option: dict[str, NamedVerdict] = {}
    for verdict in ranking.verdicts:
        if verdict.option is not None:
            by_option.setdefault(verdict.option, verdict)
    settings = [
        doc.Code(choices_yaml(v.choices), (
            f"Settings of {v.option}, in ", doc.Literally(str(v.file)), " of the run's folder; typed there, ",
            doc.Literally(str(v.command)), " trains it:"))
        for v in by_option.values()
    ]  # fmt: skip
    yield doc.Section("verdicts", "Which to take", [doc.Cards(cards), *settings])


def _pictures(ranking: Ranking, records: Sequence[Record], done: Counting) -> Iterator[doc.Section]:
    drawn: list[doc.Block] = [doc.Charts(charts(ranking, done))]
    if not any(row.gpu for row in ranking.rows):
        why = "; ".join(evidence.meter_problems(records)) or "the records have none"
        drawn.append(doc.Paragraph(f"Memory and power over time are not drawn: {why}."))
    yield doc.Section("pictures", "Charts", drawn)


# What was learnt, to look at: scores of generated text, samples side by side, where the loss lies.


def _measurements(own: Sequence[Record]) -> list[Measurement]:
    return [record.outcome.measurement for record in own if isinstance(record.outcome, Completed)]


def _scores(ranking: Ranking, done: Counting) -> Iterator[doc.Section]:
    """Means over seeds, a row for each option and one for copying the source, and how they were computed."""
    every = [m for own in done.values() for m in _measurements(own)]
    asked = {found.name: shown.figures_of(found) for found in ranking.references}
    known = {name for scores in (*(m.scores for m in every), *asked.values()) for name in scores}
    names = [name for name in (*SCORES, OWN_SCORE) if name in known]
    if not names:
        return

    def means(first: str, scores: Sequence[Mapping[str, float | None]]) -> list[doc.Cell]:
        values = ([value for own in scores if (value := own.get(name)) is not None] for name in names)
        return [first, *(doc.Amount(mean(own), units.significant) for own in values)]

    rows = [
        *(means(option, [m.scores for m in _measurements(own)]) for option, own in done.items() if own),
        *(means(f"{name} ({shown.NOT_TRAINED})", [own]) for name, own in asked.items()),
        means("copying the source", [m.copy_scores for m in every]),
    ]
    caption = "Scores of what was generated, means over seeds; the last row scores the source text itself"
    signed = dict.fromkeys((n, m.score_signatures[n]) for m in every for n in names if n in m.score_signatures)
    signatures = doc.Listing([f"{METRICS[name].title}: {signature}" for name, signature in signed])
    scores = doc.table(caption, ("option",), (METRICS[name].heading for name in names), rows)
    yield doc.Section("scores", "Scores of what was generated", [scores, signatures, *_differences(ranking)])


def _references(ranking: Ranking) -> Iterator[doc.Section]:
    if not ranking.references:
        return
    quality: list[list[doc.Cell]] = []
    for found in ranking.references:
        for name, score in found.scores.items():
            ends = () if score.low is None else (score.low, score.high)
            cells = (doc.Amount(score.value, units.significant), doc.joined(ends, units.significant))
            quality.append([found.name, METRICS[name].title, *cells])
        if found.no_bits is not None or found.bits_per_byte is not None:
            for name, value in (("bits/byte", found.bits_per_byte), ("perplexity per byte", found.byte_perplexity)):
                quality.append([found.name, name, doc.Amount(value, units.significant), ""])
    took: list[list[doc.Cell]] = [
        [f.name, f.model, f.base_url, f"{f.answered} of {f.sentences}", doc.Amount(f.input_tokens, units.count),
         doc.Amount(f.output_tokens, units.count), doc.Amount(f.usd, units.usd),
         doc.Amount(f.latency_median_seconds, units.seconds)]
        for f in ranking.references
    ]  # fmt: skip
    heads = ("answered", "tokens in", "tokens out", "cost", "median latency")
    notes = [f"{found.name}: {words}." for found in ranking.references for words in shown.reference_words(found)]
    figures = f"Their figures, with 95 % intervals over the choice of test sentences ({RESAMPLES:,} draws)"
    cost = "What they took, answers of earlier runs among it"
    tables = [
        *([doc.table(figures, ("reference", "score"), ("value", "interval"), quality)] if quality else []),
        doc.table(cost, ("reference", "model", "address"), heads, took),
    ]
    yield doc.Section("references", "References, not trained here", [*tables, doc.Listing([*notes, _REFERENCES])])


def _differences(ranking: Ranking) -> Iterator[doc.Block]:
    """Differences of scores over the choice of the test sentences, and what they say and do not."""
    every = ranking.score_differences
    if not every:
        return
    right = ("difference", "95 % interval", "p", "sentences", "seeds")
    caption = "Scores against the baseline's, over the choice of the test sentences"
    yield doc.table(caption, ("option", "score"), right, (
        [found.option, METRICS[found.score].title, doc.Amount(found.difference, units.score_difference),
         doc.joined(() if found.difference is None else (found.low, found.high), units.score_difference),
         doc.Amount(found.p, lambda p: units.significant(p, 2)), doc.Amount(found.sentences, units.count),
         str(found.seeds)]
        for found in every
    ))  # fmt: skip
    reasons = {(found.option, found.not_compared): None for found in every}
    missing = [f"{option} is not compared: {reason}." for option, reason in reasons if reason]
    if any(row.metrics[OWN_SCORE].value is not None for row in ranking.rows):
        missing.append("A score of own code has no value for each sentence, so it is not resampled.")
    from_baseline = f"Differences are from the baseline {one_line(ranking.baseline)}. {_MEANING}"
    yield doc.Listing([from_baseline, _METHOD, *missing])


def _difference_lines(ranking: Ranking) -> list[str]:
    by_score: dict[str, list[str]] = {}
    for found in ranking.score_differences:
        if found.difference is not None:
            difference, low, high = map(units.score_difference, (found.difference, found.low, found.high))
            words = f"{one_line(found.option)} {difference} ({low} to {high})"
            by_score.setdefault(METRICS[found.score].title, []).append(words)
    against = f"against {one_line(ranking.baseline)}, 95 % over other test sentences, not over seeds"
    return [f"{title} {against}: {', '.join(lines)}" for title, lines in by_score.items()]


def _reference_lines(ranking: Ranking) -> Iterator[str]:
    base = next((row for row in ranking.rows if row.option == ranking.baseline), None)
    for found in ranking.references:
        told = []
        for name, score in found.scores.items():
            ends = "" if score.low is None else f" ({doc.joined((score.low, score.high), units.significant)})"
            told.append(f"{METRICS[name].title} {units.significant(score.value)}{ends}")
        if found.bits_per_byte is not None:
            own = base.metrics["bits_per_byte"].value if base and "bits_per_byte" in base.metrics else None
            theirs = f" ({one_line(ranking.baseline)}: {units.significant(own)})" if own is not None else ""
            told.append(f"{units.significant(found.bits_per_byte)} bits/byte{theirs}, a perplexity per byte of "
                        f"{units.significant(found.byte_perplexity)}")  # fmt: skip
        if found.input_tokens is not None and found.output_tokens is not None:
            told.append(f"{units.count(found.input_tokens)} tokens in, {units.count(found.output_tokens)} out")
        told += [] if found.usd is None else [units.usd(found.usd)]
        if found.latency_median_seconds is not None:
            told.append(f"median latency {units.seconds(found.latency_median_seconds)}")
        told += shown.reference_words(found)
        yield f"{found.name}, {shown.NOT_TRAINED} ({found.model}): {'; '.join(told)}"


def _learnt(ranking: Ranking, done: Counting) -> Iterator[doc.Section]:
    """What each option's first seed says and attends to; nothing for runs that are older."""
    first = {option: next((r.inside for r in own if r.inside), None) for option, own in done.items() if own}
    looks = {option: inside for option, inside in list(first.items())[:_MOST_OPTIONS] if inside}
    blocks: list[doc.Block] = [*_samples(looks, ranking.references)]
    if shaded := [_shaded(option, inside) for option, inside in looks.items() if inside.tokens]:
        blocks.append(doc.Details("Loss by token: held-out text, darker where the model predicted worse", shaded))
    attending = [(option, inside) for option, inside in looks.items() if inside.attention][:_MOST_MAPS]
    if maps := [attention_chart(option, inside) for option, inside in attending]:
        blocks.append(doc.Details("Attention: last layer, mean over heads", [doc.Charts(maps)]))
    if blocks:
        yield doc.Section("learnt", "Inside the trained models", blocks)


def _samples(looks: Mapping[str, Inspection], asked: Sequence[Reference]) -> Iterator[doc.Table]:
    """Samples side by side; of options with other tokenizers prompts differ, and stand by themselves."""
    by_prompt: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for option, inside in looks.items():
        for sample in inside.samples:
            by_prompt.setdefault((sample.prompt, sample.reference or ""), []).append((option, sample.said))
    for found in asked:
        for own in found.samples:
            words = (" ".join((own[key] or "").split()) for key in ("prompt", "reference", "said"))
            prompt, reference, said = words
            # as far as its tokens say it all
            same = next((key for key in by_prompt if " ".join(key[0].split()) == prompt), (prompt, reference))
            by_prompt.setdefault(same, []).append((f"{found.name} ({shown.NOT_TRAINED})", said))
    for (prompt, reference), every in by_prompt.items():
        itself = [("(original text)", reference)] if reference else []
        rows = [[option, one_line(words, _LONGEST)] for option, words in (*itself, *every)]
        caption = f"Prompt: {one_line(prompt, _LONGEST)}"
        yield doc.table(caption, ("option", "continuation"), (), rows, is_titled=True)


def _shaded(option: str, inside: Inspection) -> doc.Shaded:
    average = units.significant(sum(inside.token_losses) / len(inside.token_losses), 3)
    visible = (clean(word.replace("\n", "\u21b5")).replace("\n", " ")[:40] for word in inside.tokens)
    losses = zip(visible, inside.token_losses, strict=True)
    words = [(word, min(1.0, nats / _DARKEST_NATS), f"{nats:.2f} nats") for word, nats in losses]
    return doc.Shaded(f"{one_line(option, 120)} (mean {average} nats)", words)


def _factor_lines(ranking: Ranking) -> list[str]:
    """The gain of the first row taken apart, or nothing where the options are no grid."""
    view = ranking.factors
    if view is None or view.best is None or not view.shares:
        return []
    parts = []
    for share in view.shares:
        first, *others = share.factor.split(" = ")  # factors that always change together share one effect
        beside = f" (with {one_line(', '.join(others))})" if others else ""
        effect = next(e for e in view.effects if (e.factor, e.level) == (share.factor, share.level))
        differs = effect.low is not None and effect.high is not None and not effect.low <= 1 <= effect.high
        doubt = "" if differs else " (not shown to differ from none)"
        gain = doc.value_text(_effect(ranking, share.ratio))
        parts.append(f"{gain} from {one_line(first)} {one_line(share.level)}{beside}{doubt}")
    more = view.together
    together = "" if more is None else f", and {doc.value_text(_effect(ranking, more))} from what they do together"
    best = f"{one_line(view.best)} against the baseline: {doc.value_text(_effect(ranking, view.best_ratio))}"
    return [f"{best} = {', '.join(parts)}{together if len(parts) > 1 else ''}"]


def _effect(ranking: Ranking, ratio: float | None, *ends: float | None) -> doc.Ratio:
    low, high = ends or (None, None)
    base = shown.value_of(ranking, ranking.baseline, ranking.objective)
    return doc.Ratio(ratio, low, high, ranking.objective, base)


def _factors(ranking: Ranking) -> Iterator[doc.Section]:
    view = ranking.factors
    if view is None:
        return
    effects = doc.table(
        "Effect on the objective, averaged over the other factors; intervals each by itself",
        ("factor", "level", "against"), ("objective",),
        ([e.factor, e.level, e.against, _effect(ranking, e.ratio, e.low, e.high)] for e in view.effects),
    )  # fmt: skip
    together = doc.table(
        "Strongest interactions: beyond what each does alone",
        ("strongest interactions",), ("beyond their effects",),
        ([" and ".join(f"{f}={level}" for f, level in zip(i.factors, i.levels, strict=True)),
          _effect(ranking, i.ratio, i.low, i.high)] for i in view.interactions),
    )  # fmt: skip
    lines = [doc.Paragraph(f"{line}.") for line in _factor_lines(ranking)]
    tables = [effects, together] if view.interactions else [effects]
    yield doc.Section("factors", "Factors", [*lines, *tables, doc.Paragraph(_FACTORS)])


# How each option came to its own best: what was tried and chosen, how much that matters, what it cost.


def _own_best(ranking: Ranking) -> Iterator[doc.Section]:
    if (found := ranking.search) is not None:
        notes = [doc.Paragraph(_SEARCH_NOTE)] if found.tuning else []
        blocks: list[doc.Block] = [doc.Paragraph(_search_cost(found)), *search_tables(found), *notes]
        yield doc.Section("own-best", "Each option at its own best", blocks)


def _search_cost(found: Search) -> str:
    trials = sum(own.trials for own in (*found.sizes, *found.tuning))
    seed = f", seed {found.seed}" if found.seed is not None else ""
    return (
        f"Before the contest: {trials} trials in {units.duration(found.wall_seconds)}{seed}. "
        f"The contest itself: {units.duration(found.contest_wall_seconds)}."
    )


def search_tables(found: Search) -> list[doc.Table]:
    """A table of each search that there was."""
    tables = []
    if found.sizes:
        rows = [[own.option, _chosen(own), _all_tried(own), _edge_words(own, "fast")] for own in found.sizes]
        heads = ["option", "chosen", "tokens/s of each", ""]
        tables.append(doc.table("The fastest micro-batch size:", heads, (), rows, is_titled=True))
    if found.tuning:
        rows = [[o.option, _chosen(o), _all_tried(o), _width(o), _edge_words(o, "good")] for o in found.tuning]
        heads = ["option", "chosen", f"{METRICS[found.tuning[0].metric].title} of each", "width", ""]
        tables.append(doc.table("The best settings:", heads, (), rows, is_titled=True))
    return tables


def _chosen(own: OwnBest) -> str:
    if own.chosen is None:
        return "nothing worked: the suite's own values"
    return ", ".join(f"{path.rpartition('.')[2]} {value:g}" for path, value in own.chosen.items())


def _all_tried(own: OwnBest) -> str:
    return "; ".join(f"{', '.join(f'{v:g}' for v in t.values.values())}: {tried_text(own, t)}" for t in own.tried)


def _width(own: OwnBest) -> str:
    """`7.4x (0.0011 to 0.0081)`; a dash for several settings at once."""
    low, high = own.flat_low, own.flat_high
    if low is None or high is None:
        return units.DASH
    at_least = "at least " if own.flat_is_open else ""
    span = f"{high / low:.2g}x" if low > 0 else f"{high - low:.2g}"
    return f"{at_least}{span} ({low:g} to {high:g})"


def _edge_words(own: OwnBest, how: str) -> str:
    """`the best lies on the high edge of what was tried`, or of which setting, where there are several."""
    if own.chosen is None:
        return ""
    if not own.edges:
        return f"{own.extensions} more than planned, as a best lay on an edge" if own.extensions else ""
    of = {path: path.rpartition(".")[2] if own.together else "what was tried" for path in own.edges}
    edges = " and ".join(f"the {side} edge of {of[path]}" for path, side in own.edges.items())
    if own.together:
        return f"the best lies on {edges}; not extended: several settings are tuned together; widen the range"
    (side,) = own.edges.values()
    return f"the best lies on {edges}: {'smaller' if side == 'low' else 'larger'} values may be as {how} or better"


def _to_loss(ranking: Ranking) -> Iterator[doc.Section]:
    rows = [row for row in ranking.rows if row.to_loss]
    known = [name for name in _PRICES if any(getattr(row.to_loss, name) is not None for row in rows)]
    if known:
        cells = ([row.option, *(shown.to_loss(row, name) for name in known)] for row in rows)
        caption = "What it takes to reach the loss that the baseline ends with"
        prices = doc.table(caption, ("option",), (_PRICES[name] for name in known), cells)
        yield doc.Section("to-loss", "To the baseline's final loss", [prices, doc.Paragraph(TIME_TO_LOSS_RULE)])


def _same_job(ranking: Ranking) -> doc.Section:
    heads = ("option", "verdict", "differs as declared", "violations", "not verified")
    by_row = doc.table("What differs from the baseline", heads, (), (
        [row.option, _SAME_JOB[row.identity.comparable], ", ".join(row.identity.differs_as_declared) or units.DASH,
         ", ".join(v.field for v in row.identity.violations) or "none",
         "; ".join(row.identity.not_verified) or "nothing"]
        for row in ranking.rows
    ))  # fmt: skip
    lines = shown.same_job(ranking, states_conventions=True)
    lines += [line for row in ranking.rows for line in shown.not_the_same_job(row)]
    details = doc.Details("The certificate, row by row", [by_row])
    return doc.Section("identity", "Whether it was the same job", [doc.Listing(lines), details])


def _failures(ranking: Ranking) -> Iterator[doc.Section]:
    """Every failed trial with its detail."""
    seeds: dict[tuple[str, str, str], list[str]] = {}
    texts: dict[str, dict[str, None]] = {}
    for name, f in ((row.option, failure) for row in ranking.rows for failure in row.failures):
        first = first_line(f.detail, 400)
        seeds.setdefault((name, f.kind, first + shown.note_in_brackets(f)), []).append(str(f.seed))
        if one_line(f.detail) != first:  # the table does not hold all of it
            texts.setdefault(f.detail, {})[f"{one_line(name)}, seed {f.seed}"] = None
    rows = ([name, ", ".join(numbers), kind, detail] for (name, kind, detail), numbers in seeds.items())
    trials = doc.table("Failed trials", ("option", "seeds", "kind", "detail"), (), rows)
    ends = [doc.Code(_log(text, _DETAIL_LINES), f"In full: {'; '.join(names)}") for text, names in texts.items()]
    if seeds:
        yield doc.Section("failures", "Failed trials", [trials, *ends])


def _log(detail: str, most_lines: int = 0) -> str:
    """The end of it, of all its lines where not given, each of a bounded width."""
    return "\n".join(line[:_DETAIL_WIDTH] for line in detail.strip().splitlines()[-most_lines:])


def _flat(value: object) -> Iterator[tuple[str, str]]:
    """Pairs on one line each, not escaped for any language; empty parts left out."""
    for path, leaf in leaves(value):
        text = ", ".join(map(str, leaf)) if isinstance(leaf, list | tuple) else "" if leaf is None else str(leaf)
        yield one_line(path), one_line(text) or units.DASH


# One option in detail: its trials, as numbers.


def option_report(suite: Suite, ranking: Ranking, records: Sequence[Record], name: str) -> doc.Document:
    """Every trial with all attempts, and metrics per seed. Raises UserError: the suite has no such option."""
    row = next((row for row in ranking.rows if row.option == name), None)
    if row is None:
        names = [option.name for option in suite.options]
        hint = f"{did_you_mean(name, names)}; it has {', '.join(names)}"
        raise UserError(f"the run has no option {quoted(name)}{hint}")
    own = sorted((r for r in records if r.trial.option == name), key=lambda r: (r.trial.seed, r.attempt))
    last = {r.trial.seed: r for r in own if r.phase == "contest"}
    done = [r for r in last.values() if isinstance(r.outcome, Completed)]
    heads = ("seed", "attempt", "phase", "outcome", "detail", "wall time", "started", "trial")
    trials = doc.table("Every attempt", heads, (), map(_attempt_cells, own))
    sections = [doc.Section("trials", "Trials", [trials]), *([_figures(suite, done, records)] if done else [])]
    logs = [
        doc.Code(_log(r.outcome.detail), f"Seed {r.trial.seed}, attempt {r.attempt}, {r.outcome.kind}:")
        for r in own if isinstance(r.outcome, Failed) and "\n" in r.outcome.detail.strip()
    ]  # fmt: skip
    sections[-1] = replace(sections[-1], blocks=[*sections[-1].blocks, *logs])
    title = f"{one_line(ranking.suite)}: {one_line(name)}"
    return doc.Document(title, sections, opening=_place_in_ranking(ranking, row))


def _place_in_ranking(ranking: Ranking, row: Row) -> list[doc.Block]:
    ranked = sum(other.rank is not None for other in ranking.rows)
    own = f"Not ranked ({shown.state(row) or row.status})"
    if row.rank is not None:
        own = f"Rank {shown.place(row)}{' (tied)' * bool(row.tied_with)} of {ranked} ranked"
    besides = f" ({', '.join(row.besides_the_rate)})" if row.besides_the_rate else ""
    differs = (", ".join(row.differs_in) or "nothing") + besides
    how = f"differs from the baseline {one_line(ranking.baseline)} in {differs}"
    opening = f"{own}; {'is the baseline' if row.option == ranking.baseline else how}."
    screened = [screened_words(row.screening)] if row.screening and row.status == "screened_out" else []
    notes = [*screened, *row.constraint_failures, *shown.not_the_same_job(row), *row.notes]
    return [doc.Paragraph(opening), doc.Listing(notes)]


def _attempt_cells(record: Record) -> list[doc.Cell]:
    kind, detail = "completed", ""
    if isinstance(record.outcome, Failed):
        kind, detail = record.outcome.kind, record.outcome.detail
    elif is_unclean(record) and (gpus := state_of(record)):
        detail = f"{gpus.verdict}: {gpus.detail}"
    return [
        str(record.trial.seed), str(record.attempt), record.phase, kind, one_line(detail, 120),
        doc.Amount(record.wall_seconds, units.duration), record.started_at, record.trial.trial_id,
    ]  # fmt: skip


def _figures(suite: Suite, done: Sequence[Record], records: Sequence[Record]) -> doc.Section:
    """The metrics of an option's completed trials, a column for each. `records`: of all options."""
    of_option = next(own for own in summarise(suite, records)[0] if own.name == done[0].trial.option)
    seconds = {seed: place.seconds for seed, place in of_option.reached.items() if place is not None}
    values = [derive(observe(record, suite)) | {SECONDS_TO_LOSS: seconds.get(record.trial.seed)} for record in done]
    known = [name for name in names_of(suite.job) if any(own.get(name) is not None for own in values)]
    seeds = [f"seed {record.trial.seed}" for record in done]
    figures = doc.table("Figures by seed", ("metric",), seeds, (
        [name, *(doc.Figure(name, own.get(name)) for own in values)] for name in known
    ))  # fmt: skip
    return doc.Section("figures", "Figures by seed", [figures])
