"""What a suite left to the machine and what became of it, in words. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from selectbench.suite.left_open import MachineChoice


def choice_text(choice: MachineChoice) -> str:
    """`precision: fp16_mixed, as compute capability 7.5 has no bf16, which needs 8.0 (asked: auto)`."""
    return f"{choice.setting}: {choice.taken}, as {choice.why} (asked: {choice.asked})"


def machine_choice_lines(environment: Mapping[str, Any]) -> list[str]:
    """What the suite left to the machine, and what that took; nothing where it left nothing."""
    keys, stored = MachineChoice.model_fields, environment.get("machine_choices") or []
    found = [MachineChoice(**{key: str(one.get(key, "")) for key in keys}) for one in stored]
    told = [f"{choice_text(one)}." for one in found]
    return [f"Left to the machine, and the same for every option: {' '.join(told)}"] if told else []
