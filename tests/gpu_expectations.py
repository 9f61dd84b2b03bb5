"""What figures of a real GPU are held against: each check says what was expected, what was found, and from where.

A departure is no failure of the tool by itself; it is to be explained before the figures are believed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from selectbench.analysis.result import Ranking, Row
from selectbench.suite.suite import Suite

MOST_MFU = {
    True: (
        0.60,
        "GPT-2 124M is about 45 % on an A100; above 60 % of tensor cores' peak a small GPT means a wrong formula",
    ),
    False: (1.00, "without tensor cores arithmetic is what a step waits for: all of a low peak can be used"),
}
"""The share of the data sheet's peak up to which it is believed, by whether tensor cores multiply."""


@dataclass(frozen=True)
class Check:
    """One expectation against one figure."""

    what: str
    found: float | None
    low: float
    high: float
    source: str

    @property
    def holds(self) -> bool:
        """Whether the figure is known and within the bounds."""
        return self.found is not None and self.low <= self.found <= self.high

    def __str__(self) -> str:
        found = "unknown" if self.found is None else f"{self.found:.4g}"
        verdict = "as expected" if self.holds else "DEPARTS"
        return f"{verdict}: {self.what}: {found}, expected {self.low:g} to {self.high:g} ({self.source})"


def checks(suite: Suite, ranking: Ranking) -> list[Check]:
    """Everything that is expected of one suite's ranking."""
    rows = {row.option: row for row in ranking.rows if row.n}
    found = list(_of_every_row(suite, rows.values()))
    for expected in (_precision, _optimizer, _accumulation):
        found += expected(rows)
    return found


def value(row: Row | None, name: str) -> float | None:
    """A metric's mean; None where there is no such row or it is not known."""
    metric = row.metrics.get(name) if row else None
    return metric.value if metric else None


def ratio(rows: dict[str, Row], option: str, to: str, read: Callable[[Row], float | None]) -> float | None:
    """One option's figure over another's."""
    one, other = (read(rows[name]) if name in rows else None for name in (option, to))
    return one / other if one is not None and other else None


def _metric_ratio(rows: dict[str, Row], option: str, to: str, name: str) -> float | None:
    return ratio(rows, option, to, lambda row: value(row, name))


def _of_every_row(suite: Suite, rows: Iterable[Row]) -> Iterator[Check]:
    for row in rows:
        most, source = MOST_MFU[suite.option(row.option).choices.matmul_dtype != "float32"]
        yield Check(f"{row.option}: MFU", value(row, "mfu"), 0.01, most, source)
        watts = value(row, "mean_power_watts")
        yield Check(
            f"{row.option}: mean power, W", watts, 50, 1400, "between an idle board's and any board's limit"
        )
        yield Check(
            f"{row.option}: device memory over the allocator's reserved memory", _over_reserved(row), 1.0, 1.5,
            "the device holds what the allocator reserved, a context of some hundred MiB and libraries' workspaces",
        )  # fmt: skip


def _over_reserved(row: Row) -> float | None:
    device, reserved = value(row, "peak_device_memory_bytes"), value(row, "peak_memory_reserved_bytes")
    return device / reserved if device is not None and reserved else None


def _precision(rows: dict[str, Row]) -> Iterator[Check]:
    if "bf16_mixed" not in rows:
        return
    source = "A100, t5-base: tf32 2.25x, fp16 2.32x, bf16 2.39x over fp32 (transformers#15026)"
    for option, low, high in (("tf32", 1.3, 6.0), ("fp16_mixed", 1.4, 8.0), ("bf16_mixed", 1.4, 8.0)):
        speed = _metric_ratio(rows, option, "fp32", "tokens_per_second")
        yield Check(f"{option}: speed over fp32", speed, low, high, source)
    for option in ("tf32", "bf16_mixed", "fp16_mixed"):
        loss = _metric_ratio(rows, option, "fp32", "final_loss")
        yield Check(f"{option}: final loss over fp32's", loss, 0.99, 1.01, "the same job in another precision")


def _optimizer(rows: dict[str, Row]) -> Iterator[Check]:
    if "adamw_8bit" not in rows:
        return
    source = "Adam's state is 8 bytes a parameter, 8-bit 2 and block scales, Lion's 4"
    for option, low, high in (("adamw_8bit", 0.45, 0.75), ("lion", 0.7, 0.85), ("lion_8bit", 0.35, 0.6)):
        states = ratio(rows, option, "adamw", _model_states)
        yield Check(f"{option}: parameters, gradients and state over AdamW's", states, low, high, source)


def _model_states(row: Row) -> float | None:
    return row.memory.measured_model_state_bytes if row.memory else None


def _accumulation(rows: dict[str, Row]) -> Iterator[Check]:
    if "whole" not in rows:  # it does not fit into every GPU
        return
    source = "at a fixed global batch accumulation is slightly slower and takes less memory"
    for option in {"halves", "quarters", "eighths"} & rows.keys():
        speed = _metric_ratio(rows, option, "whole", "tokens_per_second")
        yield Check(f"{option}: speed over whole's", speed, 0.3, 1.05, source)
        memory = _metric_ratio(rows, option, "whole", "peak_memory_bytes")
        yield Check(f"{option}: memory over whole's", memory, 0.1, 1.0, source)
        loss = _metric_ratio(rows, option, "whole", "final_loss")
        yield Check(f"{option}: final loss over whole's", loss, 0.995, 1.005, "the same job cut otherwise")
