"""A tokenizer that exists: a folder that transformers saved, or a hub id."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selectbench.choices.tokenizer import PretrainedTokenizer
from selectbench.data.failures import first_line
from selectbench.data.hub import snapshot
from selectbench.errors import UnreachableError, UserError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_FILES = (
    "tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "vocab.txt", "special_tokens_map.json",
    "tokenizer.model", "spiece.model", "added_tokens.json",
)  # fmt: skip
_SUFFIXES = (".json", ".txt", ".model", ".spm", ".bpe", ".tiktoken")
"""Of all files that a tokenizer may be made of, config.json among them; weights have others."""


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
    # As the folder says: by default a special token that a document spells out is that token, as in transformers.
    backend.encode_special_tokens = bool(getattr(found, "split_special_tokens", False))
    backend.no_truncation()
    backend.no_padding()
    return backend, int(end), _unknown(found, backend), {name: int(n) for name, n in ids.items() if n is not None}


def _unknown(found: Any, backend: Tokenizer) -> int | None:
    """The model's own, which tokenizer_config.json need not name.

    GPT-2 names its end of text as the unknown token too, though nothing is unknown to it.
    """
    number = found.unk_token_id
    if number is None:
        model = json.loads(backend.to_str())["model"]
        number = model.get("unk_id")
        if number is None and model.get("unk_token"):
            number = backend.token_to_id(model["unk_token"])
    return None if number is None or number == found.eos_token_id else int(number)


def _auto(spec: PretrainedTokenizer) -> Any:
    import transformers

    where, folder = f"tokenizer.pretrained: {spec.pretrained}", _folder(spec)
    if not any((folder / name).is_file() for name in _FILES):
        raise UserError(f"{where} holds no tokenizer (none of {', '.join(_FILES[:6])})")
    try:
        return transformers.AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)
    except Exception as error:  # a damaged file raises what its parser raises, `tokenizers` bare exceptions
        raise UserError(
            f"{where} cannot be loaded: {type(error).__name__}: {first_line(error)}: is it a whole folder, as "
            "transformers saves a tokenizer?"
        ) from None


def _folder(spec: PretrainedTokenizer) -> Path:
    """Where its files lie; those of a hub id are fetched where they are not there."""
    where, folder = f"tokenizer.pretrained: {spec.pretrained}", Path(spec.pretrained)
    if folder.is_dir():
        return folder
    if folder.is_absolute():
        raise UserError(f"{where}: there is no such folder")
    try:
        return snapshot(spec.pretrained, spec.revision, [f"*{suffix}" for suffix in (*_SUFFIXES, ".jinja")])
    except Exception as error:  # the network's, and a dozen of the hub's own
        raise UnreachableError(
            f"{where} cannot be loaded: {type(error).__name__}: {first_line(error)} (a hub id needs the network, "
            "or to be in the hub's cache: `hf download ID`; or give a folder)"
        ) from None


def pinned(spec: PretrainedTokenizer) -> PretrainedTokenizer:
    """The same; of a hub id the commit that it means now, so that what is named by its key is what is loaded.

    Raises UserError where it can't be had.
    """
    folder = _folder(spec)
    return spec if folder == Path(spec.pretrained) else spec.model_copy(update={"revision": folder.name})


def pretrained_key(spec: PretrainedTokenizer) -> str:
    """Names the content of its files. Raises UserError where it can't be had."""
    folder = _folder(spec)
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.suffix in _SUFFIXES and path.is_file():
            content = path.read_bytes()
            digest.update(f"{path.name}\0{len(content)}\0".encode() + content)
    return f"pretrained {digest.hexdigest()}"
