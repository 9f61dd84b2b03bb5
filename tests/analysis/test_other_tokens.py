"""Options with other tokenizers: nothing per token is held against the baseline's."""

from __future__ import annotations

import pytest
from made_records import make_record, make_suite, speed

from selectbench.analysis.ranking import rank
from selectbench.analysis.result import Ranking

OTHER = {"token_stream_sha256": "9" * 64, "evaluation_set_sha256": "8" * 64, "initial_weights_sha256": "7" * 64,
         "parameters": 5, "first_step_loss": 6.0, "compute_dtype": "float32"}  # fmt: skip


def ranking(tokenizer: dict[str, int] | None) -> Ranking:
    choices = {"tokenizer": tokenizer} if tokenizer else {"optimizer": {"name": "adamw", "lr": 2e-3}}
    suite = make_suite("base", ("other", choices), decide={"objective": "bits_per_byte", "constraints": []})
    records = [
        make_record(name, s, identity=OTHER if name == "other" and tokenizer else {"compute_dtype": "float32"},
                    final_loss=5.5 - (name == "other") + 0.01 * s,
                    heldout_bytes=40000 if name == "other" and tokenizer else 60000,
                    **speed(100 + s))
        for name in ("base", "other") for s in range(3)
    ]  # fmt: skip
    return rank(suite, records)


@pytest.mark.parametrize("metric", ["final_loss", "final_perplexity", "tokens_per_second"])
def test_what_is_per_token_has_no_ratio(metric: str) -> None:
    apart, same = ({r.option: r for r in ranking(t).rows} for t in ({"bpe": 1024}, None))
    assert apart["other"].metrics[metric].value is not None
    assert apart["other"].metrics[metric].ratio_to_baseline is None
    assert same["other"].metrics[metric].ratio_to_baseline is not None


def test_text_compares_and_decides() -> None:
    found = ranking({"bpe": 1024})
    rows = {r.option: r for r in found.rows}
    assert rows["other"].identity.comparable is True
    assert rows["other"].metrics["bits_per_byte"].ratio_to_baseline == pytest.approx(
        4.51 / 5.51 * 60 / 40, rel=1e-3
    )
    assert rows["base"].rank == 1
    assert rows["other"].to_loss is None
    assert {v.name for v in found.verdicts} == {"fastest", "smallest_memory", "best_quality"}
    quality = next(v for v in found.verdicts if v.name == "best_quality")
    assert "bits per byte" in quality.sentence
