"""A source whose entropy is known: the excess over it, and the alarm below it."""

from __future__ import annotations

import pytest
from made_records import make_record, make_suite

from selectbench.analysis.ranking import rank


@pytest.mark.parametrize(("loss", "alarm"), [(1.30, False), (1.20, False), (1.1701, False), (1.1699, True)])
def test_a_loss_below_the_floor_is_an_alarm(loss: float, alarm: bool) -> None:
    record = make_record("fp32", 0, final_loss=loss, source_loss=1.2, source_loss_error=0.01)
    ranking = rank(make_suite("fp32", seeds=[0]), [record])
    assert ranking.rows[0].metrics["excess_loss"].value == pytest.approx(loss - 1.2)
    assert any("ALARM" in line for line in ranking.warnings) is alarm


def test_other_text_has_no_floor() -> None:
    ranking = rank(make_suite("fp32", seeds=[0]), [make_record("fp32", 0)])
    assert ranking.rows[0].metrics["excess_loss"].value is None
    assert not any("ALARM" in line for line in ranking.warnings)
