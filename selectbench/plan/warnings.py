"""What a reader of a suite's figures must know, before its run and after."""

from __future__ import annotations

from collections.abc import Mapping

from selectbench.suite.evaluate import Eval
from selectbench.suite.suite import Suite

FEWEST_TO_TUNE = 100
"""Steps of a tuning trial below which its choice is doubted."""
NEARLY = 0.95
"""Share of the entries asked for below which a vocabulary is told to be smaller."""
MEMORISING_EPOCHS = 4.0
"""Muennighoff et al. 2023, arXiv:2305.16264: up to about four epochs repeated data is worth new data."""


def suite_warnings(suite: Suite, passes: float | None, cores: float | None = None) -> list[str]:
    """What a reader of the figures must know beforehand.

    `passes`: epochs; `cores`: that trials may use, where the job runs; None: unknown.
    """
    caveats = [
        f"{option.name}: {caveat}"
        for option in suite.options
        for choice in option.choices.each().values()
        if (caveat := choice.caveat(suite.device))
    ]
    return [*_repetition(suite, passes), *caveats, *_crowding(suite, cores), *_short_tuning(suite)]


def _short_tuning(suite: Suite) -> list[str]:
    """So few steps say little of which setting serves the whole job.

    The best learning rate falls with the length of the training (Bjorck et al. 2024, arXiv:2409.19913), most among
    short ones: Lion's 0.0095, the best of 24 steps, loses 0.4 nats to 0.001 over 60.
    """
    whole = suite.job.max_steps
    steps = suite.tune.budget.steps(whole) if suite.tune else whole
    if steps >= min(whole, FEWEST_TO_TUNE):
        return []
    return [
        (
            f"a tuning trial has {steps} of the job's {whole} steps: in so few larger learning rates are best, "
            "which may lose in the contest; `tune: {budget: {max_steps: 1x}}` tunes over the whole schedule"
        )
    ]


def heldout_warnings(suite: Suite, tokens: Mapping[str, int | None]) -> list[str]:
    """Held-out text that is less than asked; `tokens`: all that there are to score, by option; None: unknown."""
    if not isinstance(suite.job.eval, Eval):
        return []
    asked = suite.job.eval.tokens
    short: dict[int, list[str]] = {}
    for option in suite.options:
        if (found := tokens.get(option.name)) is not None and found < asked:
            short.setdefault(found, []).append(option.name)
    every = len(suite.options) == sum(map(len, short.values())) and len(short) == 1
    return [
        f"{'' if every else ', '.join(names) + ': '}the held-out text gives {found:,} tokens, job.eval.tokens asks "
        f"for {asked:,}: the final loss is of all there are, and less sure (give more text, or ask for fewer)"
        for found, names in short.items()
    ]


def vocabulary_warnings(suite: Suite, entries: Mapping[str, int | None]) -> list[str]:
    """Tokenizers that came out much smaller than asked; `entries`: of each option's vocabulary."""
    found = []
    for option in suite.options:
        tokenizer, made = suite.job.of(option.choices).tokenizer, entries.get(option.name)
        asked = tokenizer.most_entries if tokenizer is not None else None
        if asked is not None and made is not None and made < NEARLY * asked:
            found.append(f"{option.name}: the text yields a vocabulary of {made:,}; {asked:,} were asked for")
    return found


def _crowding(suite: Suite, cores: float | None) -> list[str]:
    """Ranks on a CPU are processes: more of them than cores take turns."""
    if suite.device != "cpu" or cores is None:
        return []
    sizes = [(option.name, option.choices.world_size) for option in suite.options]
    return [
        f"{name}: {ranks} ranks share {cores:g} cores and take turns: not the speed of ranks on cores of their own"
        for name, ranks in sizes
        if ranks != "auto" and ranks > cores
    ]


def _repetition(suite: Suite, passes: float | None) -> list[str]:
    if passes is None or passes <= 1:
        return []
    if passes > MEMORISING_EPOCHS and suite.job.evaluates:
        effect = "final losses measure memorising too; no verdict of quality should rest on them"
        return [f"the corpus is repeated {passes:.1f} times: {effect} (more text, or fewer max_steps)"]
    return [f"the corpus is repeated: {passes:.2f} epochs"]
