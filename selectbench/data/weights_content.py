"""What a model that was trained before really is: its commit on the hub, or its files' content."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from selectbench.choices.model import AnyModel, PretrainedModel
from selectbench.data.hub import cached_commit, cached_folder
from selectbench.data.kept_digest import kept_sha256
from selectbench.errors import UserError

FILES = ("config.json", "*.safetensors", "*.safetensors.index.json", "pytorch_model*.bin", "pytorch_model*.json")
"""What transformers makes a model of."""


def contents_of(models: Mapping[str, AnyModel]) -> dict[str, str]:
    """By option, of a model that was trained before: of a hub id its commit, of a folder its files' SHA-256.

    Other models, and a hub id that is not in the hub's cache, are left out. Raises UserError where a file can't
    be read.
    """
    asked = {option: model for option, model in models.items() if isinstance(model, PretrainedModel)}
    found = {model: _content(model) for model in dict.fromkeys(asked.values())}
    return {option: content for option, model in asked.items() if (content := found[model]) is not None}


def configuration_of(model: PretrainedModel) -> dict[str, Any] | None:
    """What its config.json holds; None: there is no such file, or the hub's cache has none."""
    folder = Path(model.pretrained)
    found = folder if folder.is_dir() else cached_folder(model.pretrained, model.revision)
    try:
        content = json.loads((found / "config.json").read_text(encoding="utf-8")) if found else None
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def pinned_model(model: AnyModel, content: str | None) -> AnyModel:
    """The same model; of a hub id the commit that was found, whatever the name means by then."""
    if content is None or not isinstance(model, PretrainedModel) or Path(model.pretrained).is_dir():
        return model
    return model.model_copy(update={"revision": content})


def _content(model: PretrainedModel) -> str | None:
    folder = Path(model.pretrained)
    if not folder.is_dir():
        return cached_commit(model.pretrained, model.revision)
    files = sorted({path for pattern in FILES for path in folder.glob(pattern)})
    digest = hashlib.sha256("\0".join(path.name for path in files).encode())
    for path in files:
        try:
            digest.update(bytes.fromhex(kept_sha256(path)))
        except OSError as error:
            raise UserError(f"model.pretrained: {path} cannot be read: {error.strerror}") from error
    return digest.hexdigest()
