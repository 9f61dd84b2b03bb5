"""Models: families of transformers for each task, a configuration file or weights of any family, own code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, Discriminator, Field, Tag

from selectbench.choices.choice import OWN, OwnName, is_own
from selectbench.choices.decoders import Gpt2, Llama, VocabularySize
from selectbench.choices.encoders import T5, Bart, Bert
from selectbench.choices.own import OwnSettings, free_of
from selectbench.choices.pretrained_folder import folder_problem
from selectbench.strict import Strict

ENCODERS = frozenset({
    "bert", "big_bird", "camembert", "data2vec-text", "electra", "ernie", "megatron-bert", "reformer", "rembert",
    "roberta", "roberta-prelayernorm", "roc_bert", "roformer", "xlm", "xlm-roberta", "xlm-roberta-xl", "xmod",
})  # fmt: skip
"""Families that transformers also builds for the next token: unless they are told that they decode, they see it."""


def _tasks_of(content: dict[str, Any]) -> tuple[str, ...]:
    """Tasks that a configuration's model may be for; the worker finds out whether transformers has such a one."""
    leaks = content.get("model_type") in ENCODERS and not content.get("is_decoder")
    return ("masked_lm",) if leaks else ("causal_lm", "masked_lm", "seq2seq")


def _mapping_in(path: Path) -> dict[str, Any]:
    """What a configuration file holds; {} where it can't be read."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


class ConfigFile(Strict):
    """Any model that transformers can build from a configuration file (`config.json`)."""

    DROPOUTS: ClassVar[tuple[str, ...]] = (
        "resid_pdrop", "embd_pdrop", "attn_pdrop", "attention_dropout", "hidden_dropout", "dropout", "dropout_rate",
        "hidden_dropout_prob", "attention_probs_dropout_prob", "activation_dropout",
    )  # fmt: skip
    config: str
    """Path of the file, or of a folder that holds a config.json, relative to the suite."""
    vocab_size: VocabularySize | None = None
    """Overrides the file's, which must be at least the tokenizer's."""

    @property
    def TASKS(self) -> tuple[str, ...]:  # noqa: N802 - a constant of the other classes
        """Those of its family; all of them where the file can't serve, which `read` tells."""
        return _tasks_of(_mapping_in(self.path))

    @property
    def path(self) -> Path:
        """Of the file, inside the folder where one is named."""
        return config_file(self.config)

    def read(self) -> dict[str, Any]:
        """The file's mapping. Raises ValueError with the path where it can't serve."""
        path = self.path
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise ValueError(f"cannot read the model configuration {path}: {error.strerror}") from None
        except ValueError as error:
            raise ValueError(f"the model configuration {path} is not JSON: {error}") from None
        if not isinstance(content, dict) or not isinstance(content.get("model_type"), str):
            raise ValueError(f"the model configuration {path} names no model_type")
        return content

    def longest_sequence(self) -> int | None:
        """Positions that the file states, where it states them."""
        content = self.read()
        found = content.get("n_positions", content.get("max_position_embeddings"))
        return found if isinstance(found, int) else None

    def parameters(self, vocab_size: int, seq_len: int) -> int | None:
        """Unknown before the model is built."""
        return None

    def transformers_config(self, vocab_size: int, seq_len: int) -> dict[str, Any]:
        """The file's mapping with dropout off and this vocabulary size."""
        off = {key: 0.0 for key in self.DROPOUTS if isinstance(self.read().get(key), float)}
        return {**self.read(), **off, "vocab_size": vocab_size}


class PretrainedModel(Strict):
    """A model that was trained before, as transformers saves it: configuration and weights; dropout is off."""

    DROPOUTS: ClassVar[tuple[str, ...]] = ConfigFile.DROPOUTS
    pretrained: Annotated[str, Field(min_length=1)]
    """A folder, relative to the suite, or a hub id."""
    revision: str | None = None
    """Commit or branch on the hub; give a commit, so that the weights can't change under you."""

    @property
    def TASKS(self) -> tuple[str, ...]:  # noqa: N802 - a constant of the other classes
        """Those of its family; all of them where only the hub knows."""
        return _tasks_of(self._config())

    @property
    def vocab_size(self) -> int | None:
        """Rows of its embedding; None: only the hub knows."""
        found = self._config().get("vocab_size")
        return found if isinstance(found, int) else None

    def problem(self) -> str | None:
        """What is wrong with a folder, or None; of a hub id nothing is known beforehand."""
        folder = Path(self.pretrained)
        return folder_problem(folder) if folder.is_absolute() else None

    def _config(self) -> dict[str, Any]:
        return _mapping_in(Path(self.pretrained) / "config.json")

    @property
    def model_type(self) -> str | None:
        """The family, as its configuration names it."""
        found = self._config().get("model_type")
        return found if isinstance(found, str) else None

    def longest_sequence(self) -> int | None:
        """Positions that its configuration states, where it states them."""
        content = self._config()
        found = content.get("n_positions", content.get("max_position_embeddings"))
        return found if isinstance(found, int) else None

    def parameters(self, vocab_size: int, seq_len: int) -> int | None:
        """Unknown before the model is loaded."""
        return None


def config_file(path: str) -> Path:
    """The configuration file that a path means: itself, or the config.json of a folder."""
    return Path(path) / "config.json" if Path(path).is_dir() else Path(path)


def _free(settings: dict[str, Any]) -> dict[str, Any]:
    return free_of(settings, ("vocab_size", "seq_len"))


class OwnModel(Strict):
    """A model of your own: `Class(vocab_size=..., seq_len=..., **settings)` makes a `torch.nn.Module`.

    Its forward takes token ids, int64, (sequences, seq_len), and returns logits, (sequences, seq_len,
    vocabulary), or an object that has them as `logits`. Weights are drawn from torch's global generator.
    """

    TASKS: ClassVar[tuple[str, ...]] = ("causal_lm",)
    family: OwnName
    """`package.module:Class`, importable from a folder of the suite's `code`, or installed."""
    settings: Annotated[OwnSettings, AfterValidator(_free)] = Field(default_factory=dict)
    """More keyword arguments."""
    vocab_size: VocabularySize | None = None
    """Rows of the embedding; the tokenizer's size where not given, never less."""

    def longest_sequence(self) -> int | None:
        """Unknown before the model is built."""
        return None

    def parameters(self, vocab_size: int, seq_len: int) -> int | None:
        """Unknown before the model is built."""
        return None


def _model_tag(value: object) -> str | None:
    if isinstance(value, dict):
        family = next((key for key in ("config", "pretrained") if key in value), value.get("family"))
    else:
        family = "pretrained" if isinstance(value, PretrainedModel) else getattr(value, "family", "config")
    return OWN if is_own(family) else None if family is None else str(family)


Model = Annotated[
    Annotated[Gpt2, Tag("gpt2")]
    | Annotated[Llama, Tag("llama")]
    | Annotated[Bert, Tag("bert")]
    | Annotated[T5, Tag("t5")]
    | Annotated[Bart, Tag("bart")]
    | Annotated[ConfigFile, Tag("config")]
    | Annotated[PretrainedModel, Tag("pretrained")]
    | Annotated[OwnModel, Tag(OWN)],
    Discriminator(_model_tag),
]
FAMILIES = ("gpt2", "llama", "bert", "t5", "bart", OWN)
"""What `family` may be."""


AnyModel = Gpt2 | Llama | Bert | T5 | Bart | ConfigFile | PretrainedModel | OwnModel


def resolved_vocab_size(model: AnyModel, tokenizer_size: int) -> int:
    """Rows of the embedding. Raises ValueError where the model has fewer than the tokenizer."""
    stated = model.vocab_size
    if stated is None and isinstance(model, ConfigFile):
        stated = model.read().get("vocab_size")
    size = stated or tokenizer_size
    if size < tokenizer_size:
        raise ValueError(f"the model's vocab_size {size} is less than the tokenizer's {tokenizer_size}")
    return size
