"""What the bench makes of records, plans and suites is what it made before, byte for byte.

A change that is meant is kept by `python tests/evidence/golden_runs.py --write`, and its diff read before it is.
"""

from __future__ import annotations

import pytest
from evidence.golden_texts import CASES, COMMAND, GOLDENS, differences


@pytest.mark.parametrize("case", CASES)
def test_nothing_has_changed(case: str) -> None:
    found = differences(case)
    assert not found, (
        f"{case}: not as it is kept under tests/evidence/goldens; if that is meant: {COMMAND}\n{found}"
    )


def test_every_golden_has_its_case() -> None:
    assert {path.name for path in GOLDENS.iterdir()} == set(CASES)
