"""The paired bootstrap over 500 test sentences, of ten options with one seed: at most a second for a score."""

from __future__ import annotations

import pytest
from made_records import make_record, make_suite
from made_sentences import hypotheses, measured, references
from pytest_benchmark.fixture import BenchmarkFixture

from selectbench.analysis.ranking import rank

MOST_SECONDS = 1.0


@pytest.mark.parametrize("score", ["bleu", "chrf", "token_f1"])
def test_ten_options(benchmark: BenchmarkFixture, score: str) -> None:
    truth, names = references(500), [f"option {number}" for number in range(10)]
    records = [
        make_record(name, 0, **measured(hypotheses(truth, 0.2 + 0.02 * number), truth, [score]))
        for number, name in enumerate(names)
    ]
    suite = make_suite(*names, seeds=[0])
    found = benchmark.pedantic(lambda: rank(suite, records), rounds=5, warmup_rounds=1)
    assert len(found.score_differences) == 9
    assert benchmark.stats.stats.median <= MOST_SECONDS
