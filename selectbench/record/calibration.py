"""How fast large matrix products ran on each GPU of this machine, kept for later runs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from pydantic import Field, ValidationError

from selectbench.data.cache import cache_root
from selectbench.errors import UserError
from selectbench.file_lock import lock
from selectbench.record.stored import Stored

FILE_NAME = "calibration.json"


class Rate(Stored):
    """The best of several sizes."""

    flops_per_second: float = Field(gt=0)
    """2 x size^3 a product."""
    size: int
    """Of the square matrices."""


class Calibration(Stored):
    """One device's."""

    name: str
    """As the driver calls it."""
    rates: dict[str, Rate]
    """By dtype of the products, with the settings that trials have: `float32`, `tf32`, `bfloat16`, `float16`."""
    torch_version: str
    """Whose kernels it was measured with; a rate counts for runs with another one too."""
    measured_at: str
    """UTC, ISO 8601."""


class _File(Stored):
    by_uuid: dict[str, Calibration] = Field(default_factory=dict)


def path() -> Path:
    """Where calibrations are kept. Raises UserError where there is no cache folder."""
    return cache_root() / FILE_NAME


def stored(uuid: str) -> Calibration | None:
    """A GPU's; None: it was never calibrated here. Raises UserError where the file is damaged."""
    return _read().by_uuid.get(uuid)


def stored_rates(uuid: str) -> dict[str, float]:
    """FLOP/s by dtype; empty where the GPU was never calibrated or the file can't be read."""
    try:
        found = stored(uuid)
    except UserError:  # doctor says so
        return {}
    return {dtype: rate.flops_per_second for dtype, rate in found.rates.items()} if found else {}


def store(uuid: str, calibration: Calibration) -> None:
    """Keep a GPU's in place of its last; another's stay, whoever writes at the same time. Raises UserError."""
    file = path()
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with _alone(file.with_suffix(".lock")):
            kept = _read_or_nothing().by_uuid | {uuid: calibration}
            unfinished = file.with_name(f".{FILE_NAME}-{uuid4().hex}")
            unfinished.write_text(_File(by_uuid=kept).model_dump_json(indent=1), encoding="utf-8")
            unfinished.replace(file)
    except OSError as error:
        raise UserError(f"{file}: cannot write: {error.strerror or error}") from None


def _read() -> _File:
    file = path()
    try:
        return _File.model_validate_json(file.read_bytes())
    except FileNotFoundError:
        return _File()
    except (OSError, ValidationError) as error:
        what = error.strerror if isinstance(error, OSError) else "it is damaged"
        raise UserError(f"{file}: cannot read: {what}; `selectbench doctor --calibrate` writes it anew") from None


def _read_or_nothing() -> _File:
    try:
        return _read()
    except UserError:
        return _File()


@contextmanager
def _alone(file: Path) -> Iterator[None]:
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        lock(descriptor, wait=True)
        yield
    finally:
        os.close(descriptor)
