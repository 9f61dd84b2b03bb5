"""A grid taken apart: how much of the objective each factor moves, and what two of them do together.

Within every seed the logarithms of the options are fitted by least squares: an effect for each level of each factor
against the baseline's level, then with one pair of factors' products added. The mean over seeds and Student's t on
their spread give a figure and its own 95 % interval; no claim is made of them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from selectbench.analysis.contest import ratio_of
from selectbench.analysis.result import Effect, FactorView, Interaction, Row, Share
from selectbench.analysis.statistics import estimate_logs
from selectbench.analysis.summary import Summary
from selectbench.choices.optimizer import OWN_WARMUP
from selectbench.suite.command import NOTE_KEYS
from selectbench.suite.suite import Option, Suite

MOST_INTERACTIONS = 5


@dataclass(frozen=True)
class Factor:
    """A dimension in which the options differ, and those that always change with it."""

    settings: tuple[str, ...]
    """The dimensions, or settings of a dimension, that always change together."""
    levels: Mapping[str, str]
    """The level of each option, by the first of the settings."""
    base: str
    """The baseline's level."""

    @property
    def name(self) -> str:
        """`optimizer.lr = optimizer.weight_decay`."""
        return " = ".join(self.settings)

    @property
    def others(self) -> list[str]:
        """Levels besides the baseline's, in the suite's order."""
        return [level for level in dict.fromkeys(self.levels.values()) if level != self.base]


def factor_view(suite: Suite, summaries: Mapping[str, Summary], rows: Sequence[Row]) -> FactorView | None:
    """A grid of the options that did the baseline's job; None where they are none of two factors or more."""
    metric = suite.decide.objective
    comparable = [row.option for row in rows if row.identity.comparable and not row.control]
    logs = {name: summaries[name].values[metric] for name in comparable if summaries[name].values[metric]}
    options = [option for option in suite.options if option.name in logs]
    # Settings that each option has at its own best follow from the option, and are none of its factors.
    tuned = [*(["micro_batch_size"] if suite.best_of else []), *(suite.tune.parameters if suite.tune else ())]
    factors = factors_of(options, suite.baseline, excluded=frozenset(tuned))
    if not _is_grid(options, factors) or not (effects := _effects(logs, factors)):
        return None
    sizes: dict[str, float] = {}
    for effect in effects:
        sizes[effect.factor] = max(sizes.get(effect.factor, 0.0), abs(math.log(effect.ratio)))
    effects.sort(key=lambda e: (-sizes[e.factor], e.factor, -abs(math.log(e.ratio))))
    return FactorView(effects=effects, interactions=_interactions(logs, factors), **_gains(rows, factors, effects))


def factors_of(options: Sequence[Option], baseline: str, excluded: frozenset[str] = frozenset()) -> list[Factor]:
    """Settings in which options differ, but the `excluded`; those that group the options alike are one factor."""
    if baseline not in [option.name for option in options]:
        return []
    factors: dict[tuple[int, ...], Factor] = {}
    for name, levels in _differing_settings(options):
        if name in excluded:
            continue
        level_numbers = {level: number for number, level in enumerate(dict.fromkeys(levels.values()))}
        key = tuple(level_numbers[levels[option.name]] for option in options)
        if key not in factors:
            factors[key] = Factor((name,), levels, levels[baseline])
        elif name.count(".") == factors[key].settings[0].count("."):
            factors[key] = replace(factors[key], settings=(*factors[key].settings, name))
    return list(factors.values())


def _differing_settings(options: Sequence[Option]) -> list[tuple[str, dict[str, str]]]:
    """Dimensions by the chosen names, and the settings of dimensions in which all options chose the same name."""
    settings = {option.name: option.choices.model_dump(mode="json") for option in options}
    varying = list[tuple[str, dict[str, str]]]()
    for dimension in dict.fromkeys(key for chosen in settings.values() for key in chosen if key not in NOTE_KEYS):
        values = {name: chosen.get(dimension) for name, chosen in settings.items()}
        words = {name: _level_name(value) for name, value in values.items()}
        if len(set(words.values())) > 1:
            varying.append((dimension, words))
        mappings = {name: value for name, value in values.items() if isinstance(value, dict)}
        if len(mappings) < len(values):
            continue
        # Of a choice that all options make, those settings that they make differently.
        any_key = dict.fromkeys(key for mapping in mappings.values() for key in mapping)
        keys = [key for key in any_key if key == OWN_WARMUP or all(key in m for m in mappings.values())]
        levels = {key: {name: str(m.get(key)) for name, m in mappings.items()} for key in keys if key != "name"}
        varying += [(f"{dimension}.{key}", words) for key, words in levels.items() if len(set(words.values())) > 1]
    return varying


def _level_name(value: Any) -> str:
    """What a suite selects the value by: `adamw`, `gpt2`, `bytes`, `bpe 2048`."""
    if not isinstance(value, dict):
        return str(value)
    if named := value.get("name") or value.get("family"):
        return str(named)
    return " ".join(key if selected is True else f"{key} {selected}" for key, selected in value.items())


def _is_grid(options: Sequence[Option], factors: Sequence[Factor]) -> bool:
    """Whether the factors tell all options apart, and there are more of these than main effects would need."""
    levels = {tuple(factor.levels[option.name] for factor in factors) for option in options}
    enough = len(options) > 1 + sum(len(factor.others) for factor in factors)
    return len(factors) > 1 and enough and len(levels) == len(options)


def _effects(logs: Mapping[str, Mapping[int, float]], factors: Sequence[Factor]) -> list[Effect]:
    columns = [(factor, level) for factor in factors for level in factor.others]
    ratios = _mean_ratios(logs, [_indicator(factor, level) for factor, level in columns])
    return [
        Effect(factor=factor.name, level=level, against=factor.base, **ratio)
        for (factor, level), ratio in zip(columns, ratios, strict=False)
    ]


def _interactions(logs: Mapping[str, Mapping[int, float]], factors: Sequence[Factor]) -> list[Interaction]:
    """The strongest interactions; each pair of factors is fitted by itself, with all main effects."""
    main = [_indicator(factor, level) for factor in factors for level in factor.others]
    interactions: list[Interaction] = []
    for first, second in itertools.combinations(factors, 2):
        cells = list(itertools.product(first.others, second.others))
        products = [{o: _indicator(first, a)[o] * _indicator(second, b)[o] for o in first.levels} for a, b in cells]
        ratios = _mean_ratios(logs, [*main, *products])[len(main) :]
        interactions += [
            Interaction(factors=[first.name, second.name], levels=[a, b], **ratio)
            for (a, b), ratio in zip(cells, ratios, strict=False)
        ]
    return sorted(interactions, key=lambda i: -abs(math.log(i.ratio)))[:MOST_INTERACTIONS]


def _indicator(factor: Factor, level: str) -> dict[str, float]:
    return {option: float(chosen == level) for option, chosen in factor.levels.items()}


def _mean_ratios(
    logs: Mapping[str, Mapping[int, float]], columns: Sequence[Mapping[str, float]]
) -> list[dict[str, float | None]]:
    """For each column its effect as a ratio, over the seeds whose options determine all columns; [] without any.

    The ends are those of its 95 % interval by itself.
    """
    by_seed = []
    for seed in sorted({seed for values in logs.values() for seed in values}):
        names = [name for name, values in logs.items() if values.get(seed, 0) > 0]
        design = np.array([[1.0, *(column[name] for column in columns)] for name in names])
        target = np.array([math.log(logs[name][seed]) for name in names])
        coefficients, _, rank, _ = np.linalg.lstsq(design, target, rcond=None)
        if rank == design.shape[1]:
            by_seed.append(coefficients[1:].tolist())
    means = [mean for effects in zip(*by_seed, strict=True) if (mean := estimate_logs(effects))]
    ratios = [map(ratio_of, (mean.estimate, *mean.interval())) for mean in means]
    return [{"ratio": ratio, "low": low, "high": high} for ratio, low, high in ratios]


def _gains(rows: Sequence[Row], factors: Sequence[Factor], effects: Sequence[Effect]) -> dict[str, Any]:
    """The first row's gain as a product of its levels' main effects and what they do together."""
    best = rows[0] if rows and rows[0].rank is not None else None
    ratio = best.against_baseline.ratio if best and best.against_baseline else None
    if best is None or not ratio:
        return {"best": None, "best_ratio": None, "shares": [], "together": None}
    known = {(effect.factor, effect.level): effect.ratio for effect in effects}
    shares = [
        Share(factor=factor.name, settings=list(factor.settings), level=level, ratio=known[factor.name, level])
        for factor in factors if (factor.name, level := factor.levels[best.option]) in known
    ]  # fmt: skip
    product = math.prod(share.ratio for share in shares)
    return {"best": best.option, "best_ratio": ratio, "shares": shares, "together": ratio / product}
