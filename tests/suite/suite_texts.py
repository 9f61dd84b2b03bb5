"""A small valid suite to break in one place, and the lines that loading it gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from selectbench.errors import UserError
from selectbench.suite.load import load_suite

VALID = """\
job:
  model: {family: gpt2, n_layer: 2, n_embd: 64, n_head: 4}
  tokenizer: {bpe: 512}
  seq_len: 64
  global_batch_size: 8
  max_steps: 30
choices:
  optimizer: {name: adamw, lr: 1e-3}
  micro_batch_size: 8
options:
  fp32: {precision: fp32}
  bf16: {precision: bf16_mixed}
baseline: fp32
"""


def write(folder: Path, text: str | bytes = VALID, name: str = "mine.yaml") -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def changed(*pairs: tuple[str, str], more: str = "") -> str:
    """VALID with these replacements, each of which must have something to replace, and lines added."""
    text = VALID
    for old, new in pairs:
        assert old in text
        text = text.replace(old, new, 1)
    return text + more


def lines_of(path: Path | str, **asked: Any) -> list[str]:
    """The lines of the error, the folder left out."""
    try:
        load_suite(str(path), **{"device": "cpu", **asked})
    except UserError as error:
        return [line.replace(f"{Path(path).parent}/", "") for line in error.problems]
    return []
