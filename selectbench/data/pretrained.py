"""A tokenizer that exists: a folder that transformers saved, or a hub id."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selectbench.choices.tokenizer import PretrainedTokenizer
from selectbench.errors import UserError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_FILES = (
    "tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "vocab.txt", "special_tokens_map.json",
    "tokenizer.model", "spiece.model", "added_tokens.json",
)  # fmt: skip


def load_pretrained(
    spec: PretrainedTokenizer, specials: Sequence[str]
) -> tuple[Tokenizer, int, int | None, dict[str, int]]:
    """The fast tokenizer, the ids of its end-of-text and unknown tokens, and those of `specials`.

    Raises UserError where it can't be had, is no fast tokenizer, or lacks a token that is needed.
    """
    found = _auto(spec)
    where = f"tokenizer.pretrained: {spec.pretrained}"
    backend = getattr(found, "backend_tokenizer", None)
    if backend is None:
        raise UserError(f"{where} has no fast tokenizer (tokenizer.json), and none can be made of its files")
    ends = (found.eos_token_id, found.sep_token_id, found.pad_token_id)
    end = next((token for token in ends if token is not None), None)
    if end is None:
        raise UserError(
            f"{where} has no end-of-text token: no eos, sep or pad token is set in its tokenizer_config.json"
        )
    ids = {name: getattr(found, f"{name}_token_id", None) for name in specials}
    if "pad" in ids and ids["pad"] is None:
        ids["pad"] = end
    missing = [name for name, number in ids.items() if number is None]
    if missing:
        raise UserError(f"{where} has no {' and no '.join(missing)} token, which this task needs")
    backend.no_truncation()
    backend.no_padding()
    return backend, int(end), _unknown(found, backend), {name: int(n) for name, n in ids.items() if n is not None}


def _unknown(found: Any, backend: Tokenizer) -> int | None:
    """GPT-2 names its end of text as the unknown token too, though nothing is unknown to it."""
    number = found.unk_token_id
    return None if number is None or number == found.eos_token_id else int(number)


def _auto(spec: PretrainedTokenizer) -> Any:
    import transformers

    where = f"tokenizer.pretrained: {spec.pretrained}"
    folder = Path(spec.pretrained)
    if folder.is_absolute() and not folder.is_dir():
        raise UserError(f"{where}: there is no such folder")
    if folder.is_dir() and not any((folder / name).is_file() for name in _FILES):
        raise UserError(f"{where} holds no tokenizer (none of {', '.join(_FILES[:6])})")
    try:
        return transformers.AutoTokenizer.from_pretrained(spec.pretrained, revision=spec.revision or "main")
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
        raise UserError(f"{where} cannot be loaded: {first_line(error)}{_offline(folder)}") from None


def _offline(folder: Path) -> str:
    if folder.is_dir():
        return ""
    return " (a hub id needs the network, or to be in the hub's cache: `hf download ID`; or give a folder)"


def first_line(error: BaseException) -> str:
    """What an error says, in a line."""
    text = str(error).strip()
    return text.splitlines()[0] if text else repr(error)


def pretrained_key(spec: PretrainedTokenizer) -> str:
    """Names the content of a folder, or a hub id with its revision."""
    folder = Path(spec.pretrained)
    if not folder.is_dir():
        return f"pretrained {spec.pretrained} {spec.revision}"
    digest = hashlib.sha256()
    for name in _FILES:
        if (folder / name).is_file():
            digest.update(name.encode() + b"\0" + (folder / name).read_bytes())
    return f"pretrained {digest.hexdigest()}"
