"""The whole report of a run as a document, section by section, and that of one option. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from selectbench import units
from selectbench.analysis.lanes import lane_lines, node_lines
from selectbench.analysis.metrics import derive, is_unclean, observe, state_of
from selectbench.analysis.recommendation import TIME_TO_LOSS_RULE
from selectbench.analysis.result import NamedVerdict, OptionSearch, Ranking, Reference, Row, Search
from selectbench.analysis.scores import RESAMPLES, SEED
from selectbench.analysis.screening import screened_words
from selectbench.analysis.summary import mean, summarise
from selectbench.analysis.tuning import FLAT
from selectbench.errors import UserError, did_you_mean
from selectbench.record.record import Completed, Failed, Inspection, Measurement, Record
from selectbench.report import document as doc
from selectbench.report import evidence
from selectbench.report import ranking as report_ranking
from selectbench.report.charts import ByOption, attention_chart, completed_by_option, draw_charts, trial_text
from selectbench.suite.job import OWN_SCORE, SCORES
from selectbench.suite.metrics import METRICS, SECONDS_TO_LOSS, metrics_of
from selectbench.suite.suite import Suite
from selectbench.text import choices_yaml, clean, first_line, leaves, one_line, quoted

_DETAIL_LINES, _DETAIL_WIDTH = 20, 1000
_FACTORS_NOTE = (
    "Each factor's effect is on the objective, against the baseline's level, averaged over the other factors' "
    "levels within every seed; an interaction is what two levels do together beyond their effects. Intervals are "
    "95 % each by itself, over seeds; no claim is made of them."
)
_CERTIFICATE_VERDICTS = {True: "same job", False: "not the same job", None: "nothing to compare"}
_TO_LOSS_HEADINGS = {"seconds": "time", "tokens": "tokens", "joules": "energy", "usd": "cost"}
_SEARCH_NOTE = (
    "Every option had as many trials and tokens as the others, on a seed that the contest does not use; each trial "
    "completed a schedule of its own. Where the best of a grid lay on its edge the grid was extended, and the "
    f"other options got one more value beside their best. The width is that of the values within {FLAT:.0%} of the "
    "best, straight lines between those tried: the wider, the less it matters to hit the best."
)
_MOST_OPTIONS = 8
_MOST_MAPS = 3
_DARKEST_NATS = 8.0
_SAMPLE_MOST = 240
_RESAMPLING_MEANING = (
    "They say whether other test sentences would have shown the same order; they say nothing about other seeds: "
    "that is what the ranking's own intervals are for."
)
_REFERENCES = (
    "A reference was trained on other text, perhaps on these very sentences, with other means, and is scored on "
    "what it answered once: it takes no part in ranks, tests and claims."
)
_RESAMPLING_NOTE = (
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
    completed = completed_by_option(ranking, records)
    sections_of_lines = {
        ("text", "The text"): evidence.cleaning_lines(environment.get("data") or {}),
        ("lanes", "Side by side"): lane_lines(ranking.lanes, ranking.objective),
        ("nodes", "Nodes"): node_lines(ranking.nodes),
        ("method", "How it was measured"): evidence.method_lines(suite, ranking, records, environment, unchecked),
    }
    where = doc.table("Where it ran", ("what", "value"), (), _flat_pairs(environment))
    shortened = report_ranking.page_names(ranking)[1] if medium == "page" else ""
    notes = [*([shortened] if shortened else []), *report_ranking.table_notes(ranking)]
    sections = [
        doc.Section("ranking", "Ranking", [report_ranking.ranking_table(ranking, medium), doc.Listing(notes)]),
        *_verdict_section(ranking),
        *_constraint_section(ranking),
        *(_chart_section(ranking, records, completed) if medium == "page" else ()),
        *_score_section(ranking, completed),
        *_reference_section(ranking),
        *_inspection_section(ranking, completed),
        *evidence.model_section(suite, records),
        *_factor_section(ranking),
        *_search_section(ranking),
        *_to_loss_section(ranking),
        _certificate_section(ranking),
        *evidence.memory_sections(ranking),
        *evidence.gpu_section(ranking),
        *evidence.cost_section(suite, ranking),
        *_failure_section(ranking),
        *doc.warnings(ranking.warnings),
        *(doc.Section(*title, [doc.Listing(lines)]) for title, lines in sections_of_lines.items() if lines),
        doc.Section("again", "Run it again", [doc.Code(command)]),
        doc.Section("environment", "Environment", [where], is_folded=True),
    ]
    return doc.Document(
        ranking.suite, sections, ranking.question, ranking.answer, ranking.settled,
        _facts(suite, ranking, environment),
    )  # fmt: skip


def summary(ranking: Ranking, medium: Literal["terminal", "page"] = "terminal") -> doc.Document:
    """The table, causes of what was not ranked, and warnings; on a terminal the answer comes last."""
    best = ranking.rows[0].option if ranking.rows and ranking.rows[0].rank is not None else None
    others = [verdict for verdict in ranking.verdicts if verdict.option not in (None, best)]
    lines = [
        *report_ranking.ties_note(ranking), *report_ranking.same_job_lines(ranking),
        *report_ranking.other_settings_note(ranking), *report_ranking.cause_lines(ranking),
        *(f"{verdict.title}: {verdict.sentence} {verdict.confidence}" for verdict in others),
        *_difference_lines(ranking), *_reference_lines(ranking), *_factor_lines(ranking),
        *lane_lines(ranking.lanes, ranking.objective),
        *node_lines(ranking.nodes),
    ]  # fmt: skip
    if search := ranking.search:
        lines.append(_search_cost(search))
        lines += (f"{b.option}: {_chosen(b)}" for b in (*search.sizes, *search.tuning))
    blocks = (report_ranking.ranking_table(ranking, medium), doc.Listing(lines))
    head = (ranking.question, ranking.answer, ranking.settled)
    return doc.Document(ranking.suite, doc.warnings(ranking.warnings), *head, opening=blocks)


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


def _constraint_section(ranking: Ranking) -> Iterator[doc.Section]:
    """The verdict on each row's constraints, and rows without the objective; nothing where nothing was judged."""
    cells: list[list[doc.Cell]] = []
    for row in ranking.rows:
        cells += (
            [row.option, c.constraint, c.verdict.replace("_", " "), c.detail,
             f"{c.settling.seeds} more seeds" if c.settling else ""]
            for c in row.constraints
        )  # fmt: skip
        judged = {c.constraint for c in row.constraints}
        others = (failure for failure in row.constraint_failures if failure.constraint not in judged)
        cells += ([row.option, failure.constraint, "fails", failure.detail, ""] for failure in others)
    reasons = {(verdict, detail) for _, _, verdict, detail, _ in cells}  # of one for all the answer speaks
    if len(reasons) > 1 or any(verdict != "not judged" for verdict, _ in reasons):
        heads = ("option", "constraint", "verdict", "found", "to settle it")
        yield doc.Section("constraints", "Constraints", [doc.table("Constraints of each row", heads, (), cells)])


def _verdict_section(ranking: Ranking) -> Iterator[doc.Section]:
    """The named verdicts with their options' settings; nothing where the run has no figures for any."""
    if not ranking.verdicts:
        return
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
    yield doc.Section("verdicts", "Which to take", [doc.Cards(ranking.verdicts), *settings])


def _chart_section(ranking: Ranking, records: Sequence[Record], completed: ByOption) -> Iterator[doc.Section]:
    blocks: list[doc.Block] = [doc.Charts(draw_charts(ranking, completed))]
    if not any(row.gpu for row in ranking.rows):
        why = "; ".join(evidence.meter_problems(records)) or "the records have none"
        blocks.append(doc.Paragraph(f"Memory and power over time are not drawn: {why}."))
    yield doc.Section("pictures", "Charts", blocks)


# What the models learnt: scores of generated text, samples side by side, the loss token by token.


def _measurements(records: Sequence[Record]) -> list[Measurement]:
    return [record.outcome.measurement for record in records if isinstance(record.outcome, Completed)]


def _score_section(ranking: Ranking, completed: ByOption) -> Iterator[doc.Section]:
    """Means over seeds, a row for each option and one for copying the source, and how they were computed."""
    measured = [m for trials in completed.values() for m in _measurements(trials)]
    reference_scores = {ref.name: report_ranking.reference_figures(ref) for ref in ranking.references}
    scored = {name for scores in (*(m.scores for m in measured), *reference_scores.values()) for name in scores}
    names = [name for name in (*SCORES, OWN_SCORE) if name in scored]
    if not names:
        return

    def means(first: str, scores: Sequence[Mapping[str, float | None]]) -> list[doc.Cell]:
        columns = ([value for by_name in scores if (value := by_name.get(name)) is not None] for name in names)
        return [first, *(doc.Amount(mean(values), units.significant) for values in columns)]

    rows = [
        *(means(option, [m.scores for m in _measurements(r)]) for option, r in completed.items() if r),
        *(means(f"{name} ({report_ranking.NOT_TRAINED})", [scores]) for name, scores in reference_scores.items()),
        means("copying the source", [m.copy_scores for m in measured]),
    ]
    caption = "Scores of what was generated, means over seeds; the last row scores the source text itself"
    signed = dict.fromkeys((n, m.score_signatures[n]) for m in measured for n in names if n in m.score_signatures)
    signatures = doc.Listing([f"{METRICS[name].title}: {signature}" for name, signature in signed])
    scores = doc.table(caption, ("option",), (METRICS[name].heading for name in names), rows)
    yield doc.Section("scores", "Scores of what was generated", [scores, signatures, *_difference_blocks(ranking)])


def _reference_section(ranking: Ranking) -> Iterator[doc.Section]:
    if not ranking.references:
        return
    quality: list[list[doc.Cell]] = []
    for ref in ranking.references:
        for name, score in ref.scores.items():
            ends = () if score.low is None else (score.low, score.high)
            cells = (doc.Amount(score.value, units.significant), doc.joined(ends, units.significant))
            quality.append([ref.name, METRICS[name].title, *cells])
        if ref.no_bits is not None or ref.bits_per_byte is not None:
            for name, value in (("bits/byte", ref.bits_per_byte), ("perplexity per byte", ref.byte_perplexity)):
                quality.append([ref.name, name, doc.Amount(value, units.significant), ""])
    usage: list[list[doc.Cell]] = [
        [ref.name, ref.model, ref.base_url, f"{ref.answered} of {ref.sentences}",
         doc.Amount(ref.input_tokens, units.count), doc.Amount(ref.output_tokens, units.count),
         doc.Amount(ref.usd, units.usd), doc.Amount(ref.latency_median_seconds, units.seconds)]
        for ref in ranking.references
    ]  # fmt: skip
    heads = ("answered", "tokens in", "tokens out", "cost", "median latency")
    notes = [f"{ref.name}: {words}." for ref in ranking.references for words in report_ranking.reference_notes(ref)]
    figures = f"Their figures, with 95 % intervals over the choice of test sentences ({RESAMPLES:,} draws)"
    cost = "What they took, answers of earlier runs among it"
    tables = [
        *([doc.table(figures, ("reference", "score"), ("value", "interval"), quality)] if quality else []),
        doc.table(cost, ("reference", "model", "address"), heads, usage),
    ]
    yield doc.Section("references", "References, not trained here", [*tables, doc.Listing([*notes, _REFERENCES])])


def _difference_blocks(ranking: Ranking) -> Iterator[doc.Block]:
    """Differences of scores over the choice of the test sentences, and what they say and do not."""
    differences = ranking.score_differences
    if not differences:
        return
    right = ("difference", "95 % interval", "p", "sentences", "seeds")
    caption = "Scores against the baseline's, over the choice of the test sentences"
    yield doc.table(caption, ("option", "score"), right, (
        [d.option, METRICS[d.score].title, doc.Amount(d.difference, units.score_difference),
         doc.joined(() if d.difference is None else (d.low, d.high), units.score_difference),
         doc.Amount(d.p, lambda p: units.significant(p, 2)), doc.Amount(d.sentences, units.count),
         str(d.seeds)]
        for d in differences
    ))  # fmt: skip
    reasons = {(d.option, d.not_compared): None for d in differences}
    missing = [f"{option} is not compared: {reason}." for option, reason in reasons if reason]
    if any(row.metrics[OWN_SCORE].value is not None for row in ranking.rows):
        missing.append("A score of own code has no value for each sentence, so it is not resampled.")
    from_baseline = f"Differences are from the baseline {one_line(ranking.baseline)}. {_RESAMPLING_MEANING}"
    yield doc.Listing([from_baseline, _RESAMPLING_NOTE, *missing])


def _difference_lines(ranking: Ranking) -> list[str]:
    by_score: dict[str, list[str]] = {}
    for d in ranking.score_differences:
        if d.difference is not None:
            difference, low, high = map(units.score_difference, (d.difference, d.low, d.high))
            words = f"{one_line(d.option)} {difference} ({low} to {high})"
            by_score.setdefault(METRICS[d.score].title, []).append(words)
    against = f"against {one_line(ranking.baseline)}, 95 % over other test sentences, not over seeds"
    return [f"{title} {against}: {', '.join(lines)}" for title, lines in by_score.items()]


def _reference_lines(ranking: Ranking) -> Iterator[str]:
    base = next((row for row in ranking.rows if row.option == ranking.baseline), None)
    for ref in ranking.references:
        parts = []
        for name, score in ref.scores.items():
            ends = "" if score.low is None else f" ({doc.joined((score.low, score.high), units.significant)})"
            parts.append(f"{METRICS[name].title} {units.significant(score.value)}{ends}")
        if ref.bits_per_byte is not None:
            bits = base.metrics["bits_per_byte"].value if base and "bits_per_byte" in base.metrics else None
            baseline = f" ({one_line(ranking.baseline)}: {units.significant(bits)})" if bits is not None else ""
            parts.append(f"{units.significant(ref.bits_per_byte)} bits/byte{baseline}, a perplexity per byte of "
                        f"{units.significant(ref.byte_perplexity)}")  # fmt: skip
        if ref.input_tokens is not None and ref.output_tokens is not None:
            parts.append(f"{units.count(ref.input_tokens)} tokens in, {units.count(ref.output_tokens)} out")
        parts += [] if ref.usd is None else [units.usd(ref.usd)]
        if ref.latency_median_seconds is not None:
            parts.append(f"median latency {units.seconds(ref.latency_median_seconds)}")
        parts += report_ranking.reference_notes(ref)
        yield f"{ref.name}, {report_ranking.NOT_TRAINED} ({ref.model}): {'; '.join(parts)}"


def _inspection_section(ranking: Ranking, completed: ByOption) -> Iterator[doc.Section]:
    """What each option's first seed generates, mispredicts and attends to; nothing for runs that are older."""
    first = {o: next((r.inside for r in trials if r.inside), None) for o, trials in completed.items() if trials}
    inspections = {option: inspection for option, inspection in list(first.items())[:_MOST_OPTIONS] if inspection}
    blocks: list[doc.Block] = [*_sample_tables(inspections, ranking.references)]
    if shaded := [_shaded_losses(option, i) for option, i in inspections.items() if i.tokens]:
        blocks.append(doc.Details("Loss by token: held-out text, darker where the model predicted worse", shaded))
    with_attention = [(option, i) for option, i in inspections.items() if i.attention][:_MOST_MAPS]
    if maps := [attention_chart(option, inspection) for option, inspection in with_attention]:
        blocks.append(doc.Details("Attention: last layer, mean over heads", [doc.Charts(maps)]))
    if blocks:
        yield doc.Section("learnt", "Inside the trained models", blocks)


def _sample_tables(inspections: Mapping[str, Inspection], references: Sequence[Reference]) -> Iterator[doc.Table]:
    """A table of samples for each prompt; options with other tokenizers may have prompts of their own."""
    by_prompt: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for option, inspection in inspections.items():
        for sample in inspection.samples:
            by_prompt.setdefault((sample.prompt, sample.reference or ""), []).append((option, sample.said))
    for model in references:
        for sample_texts in model.samples:
            texts = (" ".join((sample_texts[key] or "").split()) for key in ("prompt", "reference", "said"))
            prompt, reference, continuation = texts
            # options' prompts are decoded from tokens: the same but for white space, unless a tokenizer loses more
            same = next((key for key in by_prompt if " ".join(key[0].split()) == prompt), (prompt, reference))
            by_prompt.setdefault(same, []).append((f"{model.name} ({report_ranking.NOT_TRAINED})", continuation))
    for (prompt, reference), continuations in by_prompt.items():
        original = [("(original text)", reference)] if reference else []
        rows = [[option, one_line(text, _SAMPLE_MOST)] for option, text in (*original, *continuations)]
        caption = f"Prompt: {one_line(prompt, _SAMPLE_MOST)}"
        yield doc.table(caption, ("option", "continuation"), (), rows, is_titled=True)


def _shaded_losses(option: str, inspection: Inspection) -> doc.Shaded:
    average = units.significant(sum(inspection.token_losses) / len(inspection.token_losses), 3)
    visible = (clean(word.replace("\n", "\u21b5")).replace("\n", " ")[:40] for word in inspection.tokens)
    losses = zip(visible, inspection.token_losses, strict=True)
    words = [(word, min(1.0, nats / _DARKEST_NATS), f"{nats:.2f} nats") for word, nats in losses]
    return doc.Shaded(f"{one_line(option, 120)} (mean {average} nats)", words)


def _factor_lines(ranking: Ranking) -> list[str]:
    """The first row's gain by factor; nothing where the options are no grid."""
    view = ranking.factors
    if view is None or view.best is None or not view.shares:
        return []
    parts = []
    for share in view.shares:
        first, *others = share.settings
        with_others = f" (with {one_line(', '.join(others))})" if others else ""
        effect = next(e for e in view.effects if (e.factor, e.level) == (share.factor, share.level))
        differs = effect.low is not None and effect.high is not None and not effect.low <= 1 <= effect.high
        doubt = "" if differs else " (not shown to differ from none)"
        gain = doc.value_text(_effect(ranking, share.ratio))
        parts.append(f"{gain} from {one_line(first)} {one_line(share.level)}{with_others}{doubt}")
    more = view.together
    together = "" if more is None else f", and {doc.value_text(_effect(ranking, more))} from what they do together"
    best = f"{one_line(view.best)} against the baseline: {doc.value_text(_effect(ranking, view.best_ratio))}"
    return [f"{best} = {', '.join(parts)}{together if len(parts) > 1 else ''}"]


def _effect(ranking: Ranking, ratio: float | None, *ends: float | None) -> doc.Ratio:
    low, high = ends or (None, None)
    base = report_ranking.option_value(ranking, ranking.baseline, ranking.objective)
    return doc.Ratio(ratio, low, high, ranking.objective, base)


def _factor_section(ranking: Ranking) -> Iterator[doc.Section]:
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
    yield doc.Section("factors", "Factors", [*lines, *tables, doc.Paragraph(_FACTORS_NOTE)])


# The search for each option's best settings: what was tried and chosen, how much that matters, what it cost.


def _search_section(ranking: Ranking) -> Iterator[doc.Section]:
    if (search := ranking.search) is not None:
        notes = [doc.Paragraph(_SEARCH_NOTE)] if search.tuning else []
        blocks: list[doc.Block] = [doc.Paragraph(_search_cost(search)), *search_tables(search), *notes]
        yield doc.Section("own-best", "Each option at its own best", blocks)


def _search_cost(search: Search) -> str:
    trials = sum(best.trials for best in (*search.sizes, *search.tuning))
    seed = f", seed {search.seed}" if search.seed is not None else ""
    return (
        f"Before the contest: {trials} trials in {units.duration(search.wall_seconds)}{seed}. "
        f"The contest itself: {units.duration(search.contest_wall_seconds)}."
    )


def search_tables(search: Search) -> list[doc.Table]:
    """A table for the micro-batch sizes and one for the tuned settings, where they were searched."""
    tables = []
    if search.sizes:
        rows = [[b.option, _chosen(b), _tried(b), _edge_words(b, "fast")] for b in search.sizes]
        heads = ["option", "chosen", "tokens/s of each", ""]
        tables.append(doc.table("The fastest micro-batch size:", heads, (), rows, is_titled=True))
    if search.tuning:
        rows = [[b.option, _chosen(b), _tried(b), _width(b), _edge_words(b, "good")] for b in search.tuning]
        heads = ["option", "chosen", f"{METRICS[search.tuning[0].metric].title} of each", "width", ""]
        tables.append(doc.table("The best settings:", heads, (), rows, is_titled=True))
    return tables


def _chosen(best: OptionSearch) -> str:
    if best.chosen is None:
        return "nothing worked: the suite's own values"
    return ", ".join(f"{path.rpartition('.')[2]} {value:g}" for path, value in best.chosen.items())


def _tried(best: OptionSearch) -> str:
    return "; ".join(f"{', '.join(f'{v:g}' for v in t.values.values())}: {trial_text(best, t)}" for t in best.tried)


def _width(best: OptionSearch) -> str:
    """The width of the best values, `7.4x (0.0011 to 0.0081)`; a dash where several settings are tuned at once."""
    low, high = best.flat_low, best.flat_high
    if low is None or high is None:
        return units.DASH
    at_least = "at least " if best.flat_is_open else ""
    span = f"{high / low:.2g}x" if low > 0 else f"{high - low:.2g}"
    return f"{at_least}{span} ({low:g} to {high:g})"


def _edge_words(best: OptionSearch, how: str) -> str:
    """`the best lies on the high edge of what was tried`, or of which settings; `how`: `fast` or `good`."""
    if best.chosen is None:
        return ""
    if not best.edges:
        return f"{best.extensions} more than planned, as a best lay on an edge" if best.extensions else ""
    of = {path: path.rpartition(".")[2] if best.together else "what was tried" for path in best.edges}
    edges = " and ".join(f"the {side} edge of {of[path]}" for path, side in best.edges.items())
    if best.together:
        return f"the best lies on {edges}; not extended: several settings are tuned together; widen the range"
    (side,) = best.edges.values()
    return f"the best lies on {edges}: {'smaller' if side == 'low' else 'larger'} values may be as {how} or better"


def _to_loss_section(ranking: Ranking) -> Iterator[doc.Section]:
    rows = [row for row in ranking.rows if row.to_loss]
    names = [name for name in _TO_LOSS_HEADINGS if any(getattr(row.to_loss, name) is not None for row in rows)]
    if names:
        cells = ([row.option, *(report_ranking.to_loss_value(row, name) for name in names)] for row in rows)
        caption = "What it takes to reach the loss that the baseline ends with"
        prices = doc.table(caption, ("option",), (_TO_LOSS_HEADINGS[name] for name in names), cells)
        yield doc.Section("to-loss", "To the baseline's final loss", [prices, doc.Paragraph(TIME_TO_LOSS_RULE)])


def _certificate_section(ranking: Ranking) -> doc.Section:
    heads = ("option", "verdict", "differs as declared", "violations", "not verified")
    by_row = doc.table("What differs from the baseline", heads, (), (
        [row.option, _CERTIFICATE_VERDICTS[row.identity.comparable],
         ", ".join(row.identity.differs_as_declared) or units.DASH,
         ", ".join(v.field for v in row.identity.violations) or "none",
         "; ".join(map(report_ranking.unverified_text, row.identity.not_verified)) or "nothing"]
        for row in ranking.rows
    ))  # fmt: skip
    lines = report_ranking.same_job_lines(ranking, states_conventions=True)
    lines += [line for row in ranking.rows for line in report_ranking.violation_lines(row)]
    details = doc.Details("The certificate, row by row", [by_row])
    return doc.Section("identity", "Whether it was the same job", [doc.Listing(lines), details])


def _failure_section(ranking: Ranking) -> Iterator[doc.Section]:
    """Every failed trial with its detail."""
    seeds: dict[tuple[str, str, str], list[str]] = {}
    texts: dict[str, dict[str, None]] = {}
    for name, f in ((row.option, failure) for row in ranking.rows for failure in row.failures):
        first = first_line(f.detail, 400)
        seeds.setdefault((name, f.kind, first + report_ranking.note_in_brackets(f)), []).append(str(f.seed))
        if one_line(f.detail) != first:  # the table does not hold all of it
            texts.setdefault(f.detail, {})[f"{one_line(name)}, seed {f.seed}"] = None
    rows = ([name, ", ".join(numbers), kind, detail] for (name, kind, detail), numbers in seeds.items())
    trials = doc.table("Failed trials", ("option", "seeds", "kind", "detail"), (), rows)
    logs = [doc.Code(_last_lines(t, _DETAIL_LINES), f"In full: {'; '.join(names)}") for t, names in texts.items()]
    if seeds:
        yield doc.Section("failures", "Failed trials", [trials, *logs])


def _last_lines(detail: str, most_lines: int = 0) -> str:
    """The last lines of a log, each of a bounded width; `most_lines` of 0: all lines."""
    return "\n".join(line[:_DETAIL_WIDTH] for line in detail.strip().splitlines()[-most_lines:])


def _flat_pairs(value: object) -> Iterator[tuple[str, str]]:
    """The leaves of nested values by their path, each on one line, not escaped for any language."""
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
    attempts = sorted((r for r in records if r.trial.option == name), key=lambda r: (r.trial.seed, r.attempt))
    last = {r.trial.seed: r for r in attempts if r.phase == "contest"}
    completed = [r for r in last.values() if isinstance(r.outcome, Completed)]
    heads = ("seed", "attempt", "phase", "outcome", "detail", "wall time", "started", "trial")
    trials = doc.table("Every attempt", heads, (), map(_attempt_cells, attempts))
    figures = [_figures_by_seed(suite, completed, records)] if completed else []
    sections = [doc.Section("trials", "Trials", [trials]), *figures]
    logs = [
        doc.Code(_last_lines(r.outcome.detail), f"Seed {r.trial.seed}, attempt {r.attempt}, {r.outcome.kind}:")
        for r in attempts if isinstance(r.outcome, Failed) and "\n" in r.outcome.detail.strip()
    ]  # fmt: skip
    sections[-1] = replace(sections[-1], blocks=[*sections[-1].blocks, *logs])
    title = f"{one_line(ranking.suite)}: {one_line(name)}"
    return doc.Document(title, sections, opening=_place_in_ranking(ranking, row))


def _place_in_ranking(ranking: Ranking, row: Row) -> list[doc.Block]:
    ranked = sum(other.rank is not None for other in ranking.rows)
    place = f"Not ranked ({report_ranking.state_text(row) or row.status})"
    if row.rank is not None:
        place = f"Rank {report_ranking.rank_text(row)}{' (tied)' * bool(row.tied_with)} of {ranked} ranked"
    besides = f" ({', '.join(row.besides_the_rate)})" if row.besides_the_rate else ""
    differs = (", ".join(row.differs_in) or "nothing") + besides
    how = f"differs from the baseline {one_line(ranking.baseline)} in {differs}"
    opening = f"{place}; {'is the baseline' if row.option == ranking.baseline else how}."
    screened = [screened_words(row.screening)] if row.screening and row.status == "screened_out" else []
    failures = report_ranking.constraint_failure_lines(row)
    notes = [*screened, *failures, *report_ranking.violation_lines(row), *row.notes]
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


def _figures_by_seed(suite: Suite, completed: Sequence[Record], records: Sequence[Record]) -> doc.Section:
    """The metrics of an option's completed trials, a column for each seed. `records`: those of all options."""
    option = next(o for o in summarise(suite, records)[0] if o.name == completed[0].trial.option)
    seconds = {seed: place.seconds for seed, place in option.reached.items() if place is not None}
    values = [derive(observe(r, suite)) | {SECONDS_TO_LOSS: seconds.get(r.trial.seed)} for r in completed]
    names = [name for name in metrics_of(suite.job) if any(by_name.get(name) is not None for by_name in values)]
    seeds = [f"seed {record.trial.seed}" for record in completed]
    figures = doc.table("Figures by seed", ("metric",), seeds, (
        [name, *(doc.Figure(name, by_name.get(name)) for by_name in values)] for name in names
    ))  # fmt: skip
    return doc.Section("figures", "Figures by seed", [figures])
