"""Whether a folder holds a whole model as transformers saves one, as far as that is seen without torch.

The form of safetensors files (huggingface.co/docs/safetensors, "Format"): eight bytes of the header's length,
little-endian, the header as JSON, then the tensors, which end with the file.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

INDEX = "model.safetensors.index.json"
AGAIN = "copy or download the folder again, with the config.json that belongs to its weights"
LONGEST_HEADER_BYTES = 100_000_000
"""What the library itself refuses to read more than."""
_POINTER = b"version https://git-lfs"
_EMBEDDINGS = ("wte.weight", "embed_tokens.weight", "word_embeddings.weight", "shared.weight")
"""How the names end that families of transformers give the matrix with a row for each token."""
_WIDTHS = ("n_embd", "hidden_size", "d_model")
_OTHER_WIDTHS = frozenset({"embedding_size", "word_embed_proj_dim"})
"""Keys of families whose embeddings are not as wide as their blocks."""


def folder_problem(folder: Path) -> str | None:
    """What is missing or broken, with the path and the fix, or None."""
    if not folder.is_dir():
        return f"there is no folder {folder}"
    if not (folder / "config.json").is_file():
        return f"{folder} holds no config.json, so it is no model that transformers saved"
    config = _json_in(folder / "config.json")
    if isinstance(config, str):
        return f"{config}: {AGAIN}"
    if not isinstance(config.get("model_type"), str):
        return f"{folder / 'config.json'} is damaged: it names no model_type: {AGAIN}"
    return _weights_problem(folder, config)


def _json_in(path: Path) -> dict[str, Any] | str:
    """The mapping, or what is wrong with the file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        return f"{path} cannot be read: {error.strerror}"
    except ValueError as error:
        return f"{path} is not JSON ({error})"
    return content if isinstance(content, dict) else f"{path} holds no mapping"


def _weights_problem(folder: Path, config: dict[str, Any]) -> str | None:
    shapes: dict[str, list[int]] = {}
    files = _files(folder)
    if isinstance(files, str):
        return files
    for path in files:
        found = header_of(path) if path.is_file() else f"{folder} lacks {path.name}, which its {INDEX} names"
        if isinstance(found, str):
            return f"{found}: {AGAIN}"
        shapes |= found
    return _another_models(folder, config, shapes)


def _files(folder: Path) -> list[Path] | str:
    """The safetensors files that transformers would read, none where it reads others; or what is wrong."""
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    if (folder / INDEX).is_file():
        index = _json_in(folder / INDEX)
        named = index.get("weight_map") if isinstance(index, dict) else None
        if isinstance(named, dict) and named:
            return [folder / str(name) for name in sorted(set(named.values()))]
        return f"{index if isinstance(index, str) else f'{folder / INDEX} names no files'}: {AGAIN}"
    found = sorted(folder.glob("*.safetensors"))
    if not found and not any(folder.glob("pytorch_model*.bin")):
        return f"{folder} holds no weights (*.safetensors): {AGAIN}"
    return found


def header_of(path: Path) -> dict[str, list[int]] | str:
    """The shape of every tensor in a safetensors file, or what is wrong with the file."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(8)
            length = int.from_bytes(start, "little")
            if start + file.read(len(_POINTER) - 8) == _POINTER:
                return f"{path} is a pointer of Git LFS and not the weights (git lfs pull fetches them)"
            if len(start) < 8 or length > min(size - 8, LONGEST_HEADER_BYTES):
                return f"{path} is no safetensors file or cut short: its {size:,} bytes hold no whole header"
            file.seek(8)
            header = json.loads(file.read(length))
        tensors = {name: tensor for name, tensor in header.items() if name != "__metadata__"}
        whole = 8 + length + max((tensor["data_offsets"][1] for tensor in tensors.values()), default=0)
        shapes = {name: list(tensor["shape"]) for name, tensor in tensors.items()}
    except OSError as error:
        return f"{path} cannot be read: {error.strerror}"
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):
        return f"{path} has a header that is none of safetensors'"
    if whole != size:
        short = "cut short" if size < whole else "damaged"
        return f"{path} is {short}: by its header it has {whole:,} bytes, it has {size:,}"
    return shapes


def _another_models(folder: Path, config: dict[str, Any], shapes: dict[str, list[int]]) -> str | None:
    """Whether the embedding is of another size than the configuration says."""
    found = {name: shape for name, shape in shapes.items() if name.endswith(_EMBEDDINGS) and len(shape) == 2}
    rows, width = config.get("vocab_size"), next((config[key] for key in _WIDTHS if key in config), None)
    if _OTHER_WIDTHS & config.keys():
        width = None
    if (
        not found
        or not isinstance(rows, int)
        or any(s[0] == rows and width in (None, s[1]) for s in found.values())
    ):
        return None
    name, shape = next(iter(found.items()))
    asked = f"{rows} x {width}" if width is not None else f"{rows} rows"
    return (
        f"{folder / 'config.json'} is of another model than the weights: it says an embedding of {asked}, "
        f"{name} is {shape[0]} x {shape[1]}: {AGAIN}"
    )
