"""What is trained: models by family, configuration file, pretrained weights, own code; tokenizers, adaptations."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from difflib import get_close_matches
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from selectbench.choices.choice import (
    OWN,
    Choice,
    Needs,
    OwnCall,
    OwnName,
    OwnSettings,
    Strict,
    WrongValueError,
    free_of,
    is_own,
    tagged,
)
from selectbench.errors import did_you_mean, one_of_these
from selectbench.text import one_line, quoted

if TYPE_CHECKING:
    import torch


# Models of transformers: GPT-2 and Llama for `task: causal_lm`, BERT for `masked_lm`, T5 and BART for `seq2seq`.
#
Width = Annotated[int, Field(ge=1, le=1 << 17)]
Layers = Annotated[int, Field(ge=1, le=4096)]
VocabularySize = Annotated[int, Field(ge=2, le=1 << 24)]
Dropout = Annotated[float, Field(ge=0, lt=1)]


class Architecture(Strict):
    """A model to train, of which some things are known without torch."""

    heads: ClassVar[tuple[str, str] | None] = None
    """The setting that says how many attention heads there are, and the width that they must divide."""
    keeps_randomness: ClassVar[bool] = True
    """Whether dropout and noise stay as the model's own settings have them; False: trials set them to 0."""

    def longest_sequence(self) -> int | None:
        """Positions that the model has; None: as many as the job needs, or unknown before it is built."""
        return getattr(self, "n_positions", None)

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        if self.heads is not None and getattr(self, self.heads[1]) % getattr(self, self.heads[0]):
            raise self.must_divide(*self.heads)
        return self

    def must_divide(self, part: str, whole: str, how: str = "") -> WrongValueError:
        """The error where one setting does not divide another."""
        values = f"{whole} {getattr(self, whole)} and {part} {getattr(self, part)}"
        return WrongValueError(part, f"{part} must divide {whole}{how}, found {values}")


class Gpt2(Architecture):
    """GPT-2 (Radford et al. 2019): learned positions, GELU by tanh, tied embeddings; dropout is off unless set."""

    tasks: ClassVar[tuple[str, ...]] = ("causal_lm",)
    heads: ClassVar[tuple[str, str] | None] = ("n_head", "n_embd")
    family: Literal["gpt2"] = "gpt2"
    n_layer: Layers = 12
    """Transformer blocks."""
    n_embd: Width = 768
    """Width of the residual stream."""
    n_head: Width = 12
    """Attention heads; must divide n_embd."""
    n_inner: Width | None = None
    """Width of the feed-forward layer; 4 x n_embd where not given."""
    vocab_size: VocabularySize | None = None
    """Rows of the embedding; the tokenizer's size where not given, never less."""
    n_positions: Width | None = None
    """Longest sequence; the job's seq_len where not given."""
    dropout: Dropout = 0.0
    """Of embeddings, attention and residuals."""

    def transformers_config(self, vocab_size: int, seq_len: int) -> dict[str, Any]:
        """Keyword arguments of transformers' `AutoConfig.for_model`, `model_type` among them."""
        return {
            "model_type": "gpt2", "n_layer": self.n_layer, "n_embd": self.n_embd, "n_head": self.n_head,
            "n_inner": self.n_inner, "vocab_size": vocab_size, "n_positions": self.n_positions or seq_len,
            "resid_pdrop": self.dropout, "embd_pdrop": self.dropout, "attn_pdrop": self.dropout,
            "bos_token_id": None, "eos_token_id": None,
            # The same function as transformers' `gelu_new`, in one kernel that keeps its input alone.
            "activation_function": "gelu_pytorch_tanh",
        }  # fmt: skip


class Llama(Architecture):
    """Llama (Touvron et al. 2023, arXiv:2302.13971): rotary positions, RMSNorm, SwiGLU, no biases."""

    tasks: ClassVar[tuple[str, ...]] = ("causal_lm",)
    family: Literal["llama"] = "llama"
    num_hidden_layers: Layers = 12
    """Transformer blocks."""
    hidden_size: Width = 768
    """Width of the residual stream."""
    num_attention_heads: Width = 12
    """Attention heads; must divide hidden_size into even parts."""
    num_key_value_heads: Width | None = None
    """Key and value heads; must divide num_attention_heads; as many as those where not given."""
    intermediate_size: Width | None = None
    """Width of the feed-forward layer; 8/3 x hidden_size rounded up to a multiple of 64 where not given."""
    vocab_size: VocabularySize | None = None
    """Rows of the embedding; the tokenizer's size where not given, never less."""
    tie_word_embeddings: bool = False
    """Whether the output head is the embedding."""
    rope_theta: Annotated[float, Field(gt=0)] = 10000.0
    """Base of the rotary frequencies."""

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        heads, keys = self.num_attention_heads, self.num_key_value_heads or self.num_attention_heads
        if self.hidden_size % heads or (self.hidden_size // heads) % 2:
            raise self.must_divide("num_attention_heads", "hidden_size", " into even parts")
        if heads % keys:
            raise self.must_divide("num_key_value_heads", "num_attention_heads")
        return self

    def transformers_config(self, vocab_size: int, seq_len: int) -> dict[str, Any]:
        """Keyword arguments of transformers' `AutoConfig.for_model`, `model_type` among them."""
        return {
            "model_type": "llama", "num_hidden_layers": self.num_hidden_layers, "hidden_size": self.hidden_size,
            "num_attention_heads": self.num_attention_heads,
            "num_key_value_heads": self.num_key_value_heads or self.num_attention_heads,
            "intermediate_size": self.intermediate_size or -(-8 * self.hidden_size // 3 // 64) * 64,
            "vocab_size": vocab_size, "max_position_embeddings": seq_len,
            "tie_word_embeddings": self.tie_word_embeddings,
            "rope_parameters": {"rope_type": "default", "rope_theta": self.rope_theta},
            "attention_dropout": 0.0, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None,
        }  # fmt: skip


class Bert(Architecture):
    """BERT (Devlin et al. 2019, arXiv:1810.04805), an encoder for `task: masked_lm`; dropout is off unless set."""

    tasks: ClassVar[tuple[str, ...]] = ("masked_lm",)
    heads: ClassVar[tuple[str, str] | None] = ("num_attention_heads", "hidden_size")
    family: Literal["bert"] = "bert"
    num_hidden_layers: Layers = 12
    """Transformer blocks."""
    hidden_size: Width = 768
    """Width of the residual stream."""
    num_attention_heads: Width = 12
    """Attention heads; must divide hidden_size."""
    intermediate_size: Width | None = None
    """Width of the feed-forward layer; 4 x hidden_size where not given."""
    vocab_size: VocabularySize | None = None
    """Rows of the embedding; the tokenizer's size where not given, never less."""
    dropout: Dropout = 0.0
    """Of embeddings, attention and residuals."""

    def transformers_config(self, vocab_size: int, seq_len: int) -> dict[str, Any]:
        """Keyword arguments of transformers' `AutoConfig.for_model`, `model_type` among them."""
        return {
            "model_type": "bert", "num_hidden_layers": self.num_hidden_layers, "hidden_size": self.hidden_size,
            "num_attention_heads": self.num_attention_heads, "vocab_size": vocab_size,
            "intermediate_size": self.intermediate_size or 4 * self.hidden_size,
            "max_position_embeddings": seq_len, "hidden_dropout_prob": self.dropout,
            "attention_probs_dropout_prob": self.dropout, "pad_token_id": None,
        }  # fmt: skip


class T5(Architecture):
    """T5 (Raffel et al. 2020, arXiv:1910.10683), encoder and decoder for `task: seq2seq`; no dropout unless set."""

    tasks: ClassVar[tuple[str, ...]] = ("seq2seq",)
    family: Literal["t5"] = "t5"
    num_layers: Layers = 6
    """Blocks of the encoder, and of the decoder."""
    d_model: Width = 512
    """Width of the residual streams."""
    num_heads: Width = 8
    """Attention heads."""
    d_kv: Width | None = None
    """Width of a head; d_model / num_heads where not given."""
    d_ff: Width | None = None
    """Width of the feed-forward layers; 4 x d_model where not given."""
    vocab_size: VocabularySize | None = None
    """Rows of the embedding; the tokenizer's size where not given, never less."""
    dropout: Dropout = 0.0
    """Of embeddings, attention and residuals."""

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        if self.d_kv is None and self.d_model % self.num_heads:
            raise self.must_divide("num_heads", "d_model", " where d_kv is not given")
        return self

    def transformers_config(self, vocab_size: int, seq_len: int) -> dict[str, Any]:
        """Keyword arguments of transformers' `AutoConfig.for_model`, `model_type` among them."""
        return {
            "model_type": "t5", "num_layers": self.num_layers, "num_decoder_layers": self.num_layers,
            "d_model": self.d_model, "num_heads": self.num_heads,
            "d_kv": self.d_kv or self.d_model // self.num_heads,
            "d_ff": self.d_ff or 4 * self.d_model, "vocab_size": vocab_size, "dropout_rate": self.dropout,
            "relative_attention_num_buckets": 32, "pad_token_id": None, "eos_token_id": None,
            "decoder_start_token_id": None,
        }  # fmt: skip


class Bart(Architecture):
    """BART (Lewis et al. 2020, arXiv:1910.13461), encoder and decoder (`task: seq2seq`); no dropout unless set."""

    tasks: ClassVar[tuple[str, ...]] = ("seq2seq",)
    heads: ClassVar[tuple[str, str] | None] = ("num_heads", "d_model")
    family: Literal["bart"] = "bart"
    num_layers: Layers = 6
    """Blocks of the encoder, and of the decoder."""
    d_model: Width = 512
    """Width of the residual streams."""
    num_heads: Width = 8
    """Attention heads; must divide d_model."""
    ffn_dim: Width | None = None
    """Width of the feed-forward layers; 4 x d_model where not given."""
    vocab_size: VocabularySize | None = None
    """Rows of the embedding; the tokenizer's size where not given, never less."""
    dropout: Dropout = 0.0
    """Of embeddings and residuals."""

    def transformers_config(self, vocab_size: int, seq_len: int) -> dict[str, Any]:
        """Keyword arguments of transformers' `AutoConfig.for_model`, `model_type` among them."""
        inner = self.ffn_dim or 4 * self.d_model
        return {
            "model_type": "bart", "encoder_layers": self.num_layers, "decoder_layers": self.num_layers,
            "d_model": self.d_model, "encoder_attention_heads": self.num_heads,
            "decoder_attention_heads": self.num_heads, "encoder_ffn_dim": inner, "decoder_ffn_dim": inner,
            "vocab_size": vocab_size, "max_position_embeddings": seq_len, "dropout": self.dropout,
            "attention_dropout": 0.0, "activation_dropout": 0.0, "pad_token_id": None, "bos_token_id": None,
            "eos_token_id": None, "decoder_start_token_id": None, "forced_eos_token_id": None,
        }  # fmt: skip


# Whether a folder holds a whole model as transformers saves one, as far as that is seen without torch.
#
# The form of safetensors files (huggingface.co/docs/safetensors, "Format"): eight bytes of the header's length,
# little-endian, the header as JSON, then the tensors, which end with the file.


INDEX = "model.safetensors.index.json"
FOLDER_FIX = "copy or download the folder again, with the config.json that belongs to its weights"
HUB_FIX = "a hub id needs the network, or to be in the hub's cache: `hf download ID`; or give a folder"
LIBRARY_MESSAGE_LENGTH = 130
"""Most characters of a library's message that is repeated."""
LONGEST_HEADER_BYTES = 100_000_000
"""The longest header that the safetensors library reads."""
_POINTER = b"version https://git-lfs"
_EMBEDDINGS = ("wte.weight", "embed_tokens.weight", "word_embeddings.weight", "shared.weight")
"""Ends of the names that families of transformers give the matrix with a row for each token."""
_WIDTHS = ("n_embd", "hidden_size", "d_model")
_OTHER_WIDTHS = frozenset({"embedding_size", "word_embed_proj_dim"})
"""Keys of families whose embeddings are not as wide as their blocks."""


def folder_problem(folder: Path) -> str | None:
    """What is missing or broken, with the path and the fix, or None."""
    if not folder.is_dir():
        return f"there is no folder {folder}"
    file = folder / "config.json"
    if not file.is_file():
        return f"{folder} holds no config.json, so it is no model that transformers saved"
    try:
        config = _json_in(file)
        if not isinstance(config.get("model_type"), str):
            raise ValueError(f"{file} is damaged: it names no model_type")
        shapes: dict[str, list[int]] = {}
        for path in _weight_files(folder):
            shapes |= _tensor_shapes(path)
        _check_embedding(file, text_part(config), shapes)
    except ValueError as error:
        return f"{error}: {FOLDER_FIX}"
    return None


def _model_sources() -> Path:
    """The folder of the families' sources in the installed transformers; they are read, as imports take seconds."""
    spec = find_spec("transformers")
    return (Path(spec.origin).parent if spec and spec.origin else Path(__file__)) / "models"


@cache
def _auto_source() -> str:
    """The source in which transformers names its families; '': it is not installed."""
    return _text_of(_model_sources().glob("auto/*.py"))


def _text_of(files: Iterable[Path]) -> str:
    return "\n".join(path.read_text(encoding="utf-8") for path in files)


def _family_files(family: str, pattern: str) -> list[Path]:
    """The source files of a family, in its own folder or where its classes are named to lie."""
    folders = {family.replace("-", "_"), *re.findall(rf'"{re.escape(family)}"[,:]\s*"(\w+)"', _auto_source())}
    return sorted(path for folder in folders for path in _model_sources().glob(f"{folder}/{pattern}"))


def family_problem(path: str) -> str | None:
    """Why the installed transformers can't read a file's family, or would ignore a misspelt key of it; or None."""
    content, known = mapping_in(config_file(path)), set(_auto_source().split('"'))
    model_type = content.get("model_type")
    if len(known) < 2 or not isinstance(model_type, str):
        return None
    if model_type not in known:
        return f"transformers knows no model_type {quoted(model_type)}{did_you_mean(model_type, sorted(known))}"
    return _misspelt(content) or _misspelt(text_part(content))


_TRANSFORMERS_4_KEYS = frozenset({
    "bos_token_id", "cross_attention_hidden_size", "forced_bos_token_id", "sep_token_id", "tie_encoder_decoder",
})  # fmt: skip
"""Of the keys that transformers 4 wrote into every config.json those that are like a key of some family's own."""


def _misspelt(content: Mapping[str, Any]) -> str | None:
    """A sentence on a key that the family's code does not name, where it has one like it that is not given."""
    family = str(content.get("model_type"))
    package = _model_sources().parent
    shared = [package / "configuration_utils.py", package / "modeling_rope_utils.py"]
    source = _text_of([*_family_files(family, "*.py"), *shared])
    declared = re.findall(r"^    (\w+): ", _text_of(_family_files(family, "configuration_*.py")), re.MULTILINE)
    fields = sorted(set(declared) - content.keys())
    for key in sorted(content.keys() - set(re.findall(r"\w+", source)) - _TRANSFORMERS_4_KEYS):
        # Files of other versions have keys that nobody reads: one must be very like another to be that misspelt.
        if meant := get_close_matches(key, fields, 1, 0.87):
            return f"{family} of transformers reads no {quoted(key)}{one_of_these(meant)}"
    return None


# Which attention kernels the class of a family has, read from transformers' own source: imports take seconds.


KERNEL_ATTRIBUTES = {"sdpa": "_supports_sdpa", "flash_attention_2": "_supports_flash_attn"}
"""What a class of transformers says of a kernel; every class has eager."""


@cache
def kernel_problem(model_type: str, task: str, kernel: str) -> str | None:
    """A sentence where the class lacks the kernel, and what to take instead; None: it has it, or is not known."""
    named = re.search(rf'"{re.escape(model_type)}"[,:]\s*"(\w+)"', _task_tables()[task])
    if named is None or kernel not in KERNEL_ATTRIBUTES:
        return None
    source = _text_of(_family_files(model_type, "modeling_*.py"))
    if _class_attribute(source, named[1], KERNEL_ATTRIBUTES[kernel]) is False:
        return f"{named[1]} of transformers has no such kernel: take eager"
    return None


def _class_attribute(source: str, name: str, attribute: str) -> bool | None:
    """What a class, or the first of its bases in these files, sets an attribute to; None: they do not tell."""
    if name == "PreTrainedModel":
        return False
    definition = re.search(rf"^class {name}\((.*?)\):\n(.*?)(?=^\S|\Z)", source, re.MULTILINE | re.DOTALL)
    if definition is None:
        return None
    bases, body = definition.groups()
    if assignment := re.search(rf"^    {attribute}(?:: \w+)? = (\w+)", body, re.MULTILINE):
        return {"True": True, "False": False}.get(assignment[1])
    of_bases = (_class_attribute(source, base, attribute) for base in re.split(r",\s*", bases))
    return next((value for value in of_bases if value is not None), None)


def _json_in(path: Path) -> dict[str, Any]:
    """The mapping in a JSON file. Raises ValueError with the path where there is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error})") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no mapping")
    return content


def _weight_files(folder: Path) -> list[Path]:
    """The safetensors files that transformers would read, none where it reads others. Raises ValueError."""
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    index = folder / INDEX
    if index.is_file():
        by_tensor = _json_in(index).get("weight_map")
        if not isinstance(by_tensor, dict) or not by_tensor:
            raise ValueError(f"{index} names no files")
        return [folder / str(name) for name in sorted(set(by_tensor.values()))]
    files = sorted(folder.glob("*.safetensors"))
    if not files and not any(folder.glob("pytorch_model*.bin")):
        raise ValueError(f"{folder} holds no weights (*.safetensors)")
    return files


def _tensor_shapes(path: Path) -> dict[str, list[int]]:
    """The shape of every tensor in a safetensors file. Raises ValueError with what is wrong with the file."""
    if not path.is_file():
        raise ValueError(f"{path.parent} lacks {path.name}, which its {INDEX} names")
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(8)
            length = int.from_bytes(start, "little")
            is_pointer = start + file.read(len(_POINTER) - 8) == _POINTER
            file.seek(8)
            header = file.read(length) if length <= min(size - 8, LONGEST_HEADER_BYTES) else None
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None
    if is_pointer:
        raise ValueError(f"{path} is a pointer of Git LFS and not the weights (git lfs pull fetches them)")
    if header is None:
        raise ValueError(f"{path} is no safetensors file or cut short: its {size:,} bytes hold no whole header")
    try:
        tensors = {name: tensor for name, tensor in json.loads(header).items() if name != "__metadata__"}
        whole = 8 + length + max((tensor["data_offsets"][1] for tensor in tensors.values()), default=0)
        shapes = {name: list(tensor["shape"]) for name, tensor in tensors.items()}
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):
        raise ValueError(f"{path} has a header that is none of safetensors'") from None
    if whole != size:
        short = "cut short" if size < whole else "damaged"
        raise ValueError(f"{path} is {short}: by its header it has {whole:,} bytes, it has {size:,}")
    return shapes


def _check_embedding(file: Path, config: dict[str, Any], shapes: dict[str, list[int]]) -> None:
    """Raises ValueError where the weights' embedding is of another size than their configuration says."""
    embeddings = {name: s for name, s in shapes.items() if name.endswith(_EMBEDDINGS) and len(s) == 2}
    rows, width = config.get("vocab_size"), next((config[key] for key in _WIDTHS if key in config), None)
    if _OTHER_WIDTHS & config.keys():
        width = None
    if not isinstance(rows, int) or any(s[0] == rows and width in (None, s[1]) for s in embeddings.values()):
        return
    for name, shape in embeddings.items():
        stated = f"{rows} x {width}" if width is not None else f"{rows} rows"
        raise ValueError(
            f"{file} is of another model than the weights: it says an embedding of {stated}, {name} is "
            f"{shape[0]} x {shape[1]}"
        )


# Models: families of transformers for each task, a configuration file or weights of any family, own code.


ENCODERS = frozenset({
    "bert", "big_bird", "camembert", "data2vec-text", "electra", "ernie", "megatron-bert", "reformer", "rembert",
    "roberta", "roberta-prelayernorm", "roc_bert", "roformer", "xlm", "xlm-roberta", "xlm-roberta-xl", "xmod",
})  # fmt: skip
"""Families that transformers also builds for the next token: unless they are told that they decode, they see it."""


@cache
def _task_tables() -> dict[str, str]:
    """By task, where transformers here names the families that it builds for it."""
    words = {"causal_lm": "CAUSAL_LM", "masked_lm": "MASKED_LM", "seq2seq": "SEQ_TO_SEQ_CAUSAL_LM"}
    names = {task: f"MODEL_FOR_{word}_MAPPING_NAMES = " for task, word in words.items()}
    return {task: _auto_source().partition(name)[2].partition("\n)")[0] for task, name in names.items()}


def _tasks_of(content: dict[str, Any]) -> tuple[str, ...]:
    """Tasks that a configuration's model may be for; all of them where transformers here knows none."""
    family = content.get("model_type")
    leaks = family in ENCODERS and not content.get("causal" if family == "xlm" else "is_decoder")
    named = tuple(task for task, table in _task_tables().items() if f'("{family}",' in table)
    return ("masked_lm",) if leaks else named or tuple(_task_tables())


def mapping_in(path: Path) -> dict[str, Any]:
    """What a configuration file holds; {} where it can't be read."""
    with suppress(ValueError):
        return _json_in(path)
    return {}


def text_part(content: dict[str, Any]) -> dict[str, Any]:
    """Of a configuration that is made of several the one that says what reads and writes text; else all of it."""
    parts = (content.get(key) for key in _TEXT_PARTS)
    return next((part for part in parts if isinstance(part, dict)), content)


_TEXT_PARTS = ("text_config", "decoder", "generator")
"""The names that transformers itself looks for (`PreTrainedConfig.get_text_config`)."""


RANDOM_RATES = re.compile("drop|jitter|noise")
"""In the names that families of transformers give to the share that they drop, or to the noise that they add."""


def without_randomness(content: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration whose rates of dropout and noise are 0, in the configurations inside of it too."""
    return {
        key: without_randomness(value) if isinstance(value, dict)
        else 0.0 if isinstance(value, float) and RANDOM_RATES.search(key) else value
        for key, value in content.items()
    }  # fmt: skip


class OfAnyFamily(Architecture):
    """What transformers alone knows, whose family may have any settings."""

    # Left out where it is off: trials keep the ids that they had before it existed.
    dropout: Literal["off", "as_configured"] = Field(default="off", exclude_if=lambda dropout: dropout == "off")
    """`off`: dropout, dropped layers and noise are 0 wherever the configuration or its family's defaults set them;
    `as_configured`: they stay."""

    @property
    def keeps_randomness(self) -> bool:  # type: ignore[override]
        """Whether dropout, dropped layers and noise stay."""
        return self.dropout == "as_configured"

    @property
    def path(self) -> Path:
        """The configuration file."""
        raise NotImplementedError

    def content(self) -> dict[str, Any]:
        """What its configuration holds; {} where it can't be read, or only the hub has it."""
        return mapping_in(self.path)

    @property
    def tasks(self) -> tuple[str, ...]:
        """Tasks of its family; all of them where the family is not known."""
        return _tasks_of(self.content())

    @property
    def model_type(self) -> str | None:
        """The family, as its configuration names it."""
        family = self.content().get("model_type")
        return family if isinstance(family, str) else None

    def longest_sequence(self) -> int | None:
        """Positions that its configuration states; None: it states none."""
        text = text_part(self.content())
        positions = text.get("n_positions", text.get("max_position_embeddings"))
        return positions if isinstance(positions, int) else None


class ConfigFile(OfAnyFamily):
    """Any model that transformers can build from a configuration file (`config.json`)."""

    config: Annotated[str, Field(min_length=1)]
    """Path of the file, or of a folder that holds a config.json, relative to the suite."""
    vocab_size: VocabularySize | None = None
    """Overrides the file's, which must be at least the tokenizer's."""

    @property
    def path(self) -> Path:
        """The file, which may be inside the folder that is named."""
        return config_file(self.config)

    def read(self) -> dict[str, Any]:
        """The file's mapping. Raises ValueError with the path where it can't serve."""
        try:
            content = _json_in(self.path)
        except ValueError as error:
            raise ValueError(f"the model configuration {error}") from None
        if not isinstance(content.get("model_type"), str):
            raise ValueError(f"the model configuration {self.path} names no model_type")
        return content

    def transformers_config(self, vocab_size: int, seq_len: int) -> dict[str, Any]:
        """The file's mapping with this vocabulary size, where it has its own."""
        content = self.read()
        text_part(content)["vocab_size"] = vocab_size
        return content


class PretrainedModel(OfAnyFamily):
    """A model that was trained before, as transformers saves it: configuration and weights."""

    pretrained: Annotated[str, Field(min_length=1)]
    """A folder, relative to the suite, or a hub id."""
    revision: str | None = None
    """Commit or branch on the hub; give a commit, so that the weights can't change under you."""

    @property
    def path(self) -> Path:
        """The configuration file of the folder; there is no such file of a hub id."""
        return Path(self.pretrained) / "config.json"

    @property
    def vocab_size(self) -> int | None:
        """Rows of its embedding; None: only the hub knows."""
        rows = text_part(self.content()).get("vocab_size")
        return rows if isinstance(rows, int) else None

    def problem(self) -> str | None:
        """What is wrong with a folder, or None; of a hub id nothing is known beforehand."""
        folder = Path(self.pretrained)
        return folder_problem(folder) if folder.is_absolute() else None


def config_file(path: str) -> Path:
    """The configuration file that a path means: itself, or the config.json of a folder."""
    return Path(path) / "config.json" if Path(path).is_dir() else Path(path)


class OwnModel(Architecture):
    """A model of your own: `Class(vocab_size=..., seq_len=..., **settings)` makes a `torch.nn.Module`.

    Its forward takes token ids, int64, (sequences, seq_len), and returns logits, (sequences, seq_len,
    vocabulary), or an object that has them as `logits`. Weights are drawn from torch's global generator.
    """

    tasks: ClassVar[tuple[str, ...]] = ("causal_lm",)
    family: OwnName
    """`package.module:Class`, importable from a folder of the suite's `code`, or installed."""
    settings: Annotated[OwnSettings, free_of("vocab_size", "seq_len")] = Field(default_factory=dict)
    """More keyword arguments."""
    vocab_size: VocabularySize | None = None
    """Rows of the embedding; the tokenizer's size where not given, never less."""

    @property
    def call(self) -> OwnCall:
        """How `worker.model.new_model` calls the class."""
        return OwnCall("model", self.family, keywords=("vocab_size", "seq_len", *self.settings))


def _model_tag(value: object) -> str | None:
    if isinstance(value, dict):
        family = next((key for key in ("config", "pretrained") if key in value), value.get("family"))
    else:
        family = "pretrained" if isinstance(value, PretrainedModel) else getattr(value, "family", "config")
    return OWN if is_own(family) else None if family is None else str(family)


AnyModel = Gpt2 | Llama | Bert | T5 | Bart | ConfigFile | PretrainedModel | OwnModel
_MODELS = {
    "gpt2": Gpt2, "llama": Llama, "bert": Bert, "t5": T5, "bart": Bart, "config": ConfigFile,
    "pretrained": PretrainedModel, OWN: OwnModel,
}  # fmt: skip
MODEL_TAGS = ("family", "config", "pretrained")
"""Keys of which each makes a mapping another model."""
FAMILIES = tuple(tag for tag in _MODELS if tag not in MODEL_TAGS)
"""What `family` may be."""
if TYPE_CHECKING:
    Model = AnyModel
else:
    Model = tagged(_MODELS, _model_tag)


def resolved_vocab_size(model: AnyModel, tokenizer_size: int) -> int:
    """Rows of the embedding. Raises ValueError where the model has fewer than the tokenizer."""
    stated = model.vocab_size
    if stated is None and isinstance(model, ConfigFile):
        stated = text_part(model.read()).get("vocab_size")
    size = stated or tokenizer_size
    if size < tokenizer_size:
        raise ValueError(f"the model's vocab_size {size} is less than the tokenizer's {tokenizer_size}")
    return size


# How text becomes tokens: a tokenizer trained on the job's own training split, or one that exists.


Entries = Annotated[int, Field(ge=257, le=1 << 20)]


class AnyTokenizer(Strict):
    """A way to make tokens."""

    @property
    def most_entries(self) -> int | None:
        """Entries that it has at most, special tokens of a task besides; None: known when it is read."""
        size = getattr(self, next(iter(type(self).model_fields)))
        return 257 if size is True else size if isinstance(size, int) else None


class Bpe(AnyTokenizer):
    """Byte-level byte pair encoding (Radford et al. 2019, section 2.2), trained on the training split."""

    bpe: Entries
    """Vocabulary size: 256 bytes, one end-of-text token, and merges."""


class Unigram(AnyTokenizer):
    """A unigram model over pieces of words (Kudo 2018, arXiv:1804.10959), trained on the training split."""

    unigram: Entries
    """Vocabulary size: 256 bytes, special tokens, and pieces."""


class WordPiece(AnyTokenizer):
    """WordPiece (Devlin et al. 2019, arXiv:1810.04805), over bytes, trained on the training split."""

    wordpiece: Annotated[int, Field(ge=514, le=1 << 20)]
    """Vocabulary size: 256 bytes twice, at the beginning and inside of words, special tokens, and pieces."""


class Bytes(AnyTokenizer):
    """Every byte is a token (as in ByT5, Xue et al. 2022, arXiv:2105.13626): nothing is trained."""

    bytes: Literal[True] = True
    """The vocabulary is 256 bytes and one end-of-text token."""


class PretrainedTokenizer(AnyTokenizer):
    """A tokenizer that exists, as transformers saves it."""

    pretrained: Annotated[str, Field(min_length=1)]
    """A folder, relative to the suite, or a hub id."""
    revision: str | None = None
    """Commit or branch on the hub."""


_TOKENIZERS = {
    next(iter(kind.model_fields)): kind for kind in (Bpe, Unigram, WordPiece, Bytes, PretrainedTokenizer)
}
TOKENIZER_TAGS = tuple(_TOKENIZERS)
"""Keys of which each makes a mapping another tokenizer."""


def _tag(value: object) -> str | None:
    has = value.__contains__ if isinstance(value, dict) else lambda key: hasattr(value, key)
    return next((key for key in TOKENIZER_TAGS if has(key)), None)


if TYPE_CHECKING:
    Tokenizer = AnyTokenizer
else:
    Tokenizer = tagged(_TOKENIZERS, _tag)


# What of the model is trained: all of it, or low-rank additions to its matrices.


INSTALL = "pip install 'selectbench[peft]'"
_CHANGES = frozenset({"trainable_parameters", "first_step_gradient_norm"})


class AdaptationChoice(Choice):
    """How the weights that the job starts from are trained."""

    def apply(self, model: torch.nn.Module, device: str) -> torch.nn.Module:
        """The model to train; what is not trained needs no gradient. Worker only; may draw random numbers."""
        return model


class FullTraining(AdaptationChoice):
    """Every weight is trained."""

    source: ClassVar[str] = "https://docs.pytorch.org/docs/stable/optim.html"
    may_change: ClassVar[frozenset[str]] = _CHANGES
    also_called: ClassVar[Mapping[str, str]] = dict.fromkeys(("none", "no", "off", "fullfinetuning"), "full")
    name: Literal["full"] = "full"


Rank = Annotated[int, Field(ge=1, le=4096)]


class Lora(AdaptationChoice):
    """LoRA (Hu et al. 2021, arXiv:2106.09685): the product of two thin matrices is added to every linear layer.

    The head and the embeddings stay as they are. The additions are zero at first, so that training starts from the
    model itself.
    """

    source: ClassVar[str] = "https://huggingface.co/docs/peft/package_reference/lora"
    needs: ClassVar[Needs] = Needs(packages=("peft",), install=INSTALL)
    may_change: ClassVar[frozenset[str]] = _CHANGES
    preload: ClassVar[tuple[str, ...]] = ("peft",)
    name: Literal["lora"] = "lora"
    r: Rank = 8
    """Rank of the additions."""
    alpha: Annotated[float, Field(gt=0)] = 16.0
    """The additions are scaled by alpha / r."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Of what goes into the additions."""

    def apply(self, model: torch.nn.Module, device: str) -> torch.nn.Module:
        """The model with additions to every linear layer but the head's; all else is frozen."""
        from peft import LoraConfig, inject_adapter_in_model
        from transformers.pytorch_utils import Conv1D

        transposed = any(isinstance(part, Conv1D) for part in model.modules())
        config = LoraConfig(
            r=self.r, lora_alpha=self.alpha, lora_dropout=self.dropout, target_modules="all-linear",
            fan_in_fan_out=transposed,
        )  # fmt: skip
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        try:
            adapted: torch.nn.Module = inject_adapter_in_model(config, model)
        except ValueError as error:  # families that PEFT knows it can't adapt
            raise NotImplementedError(one_line(str(error), LIBRARY_MESSAGE_LENGTH)) from error
        return adapted

    def is_adapted(self, name: str, parameter: torch.nn.Parameter) -> bool:
        """Whether a matrix of the model that `apply` returned is one that it adapted."""
        return ".base_layer." in name


class Qlora(Lora):
    """QLoRA (Dettmers et al. 2023, arXiv:2305.14314): LoRA over linear layers in 4 bits (NF4, quantised twice)."""

    source: ClassVar[str] = "https://huggingface.co/docs/bitsandbytes/reference/nn/linear4bit"
    needs: ClassVar[Needs] = Needs(packages=("peft", "bitsandbytes"), install=INSTALL)
    may_change: ClassVar[frozenset[str]] = _CHANGES | {
        "first_step_loss", "working_dtype", "compute_dtype", "sdpa_backends",
    }  # fmt: skip
    preload: ClassVar[tuple[str, ...]] = ("peft", "bitsandbytes")
    name: Literal["qlora"] = "qlora"  # type: ignore[assignment]

    def apply(self, model: torch.nn.Module, device: str) -> torch.nn.Module:
        """The model with its linear layers in 4 bits, but the head's, and with additions to them."""
        import torch

        head: Any = getattr(model, "get_output_embeddings", lambda: None)()
        linear = [
            (name, part) for name, part in model.named_modules()
            if type(part) is torch.nn.Linear and part is not head
        ]  # fmt: skip
        if not linear:
            raise NotImplementedError(
                "the model has no torch.nn.Linear to keep in 4 bits (gpt2 has none, llama has)"
            )
        for name, part in linear:
            parent = model.get_submodule(name.rpartition(".")[0])
            setattr(parent, name.rpartition(".")[2], _in_four_bits(part, device))
        return super().apply(model, device)

    def is_adapted(self, name: str, parameter: torch.nn.Parameter) -> bool:
        """Whether the matrix is kept in 4 bits."""
        return getattr(parameter, "quant_state", None) is not None

    # A byte has two weights; what is not quantized stays in fp32.
    fixed_identity: ClassVar[Mapping[str, Any]] = {"working_dtype": "float32+uint8"}


ADAPTATIONS: tuple[type[Choice], ...] = (FullTraining, Lora, Qlora)


@cache
def _four_bit_layer() -> Any:
    """The library's layer that computes as other matrix products do: in autocast's dtype, in fp32 outside of it.

    Its own would compute in one dtype for ever, the evaluation too, and round its bias to that in place.
    """
    import bitsandbytes as bnb
    import torch

    class Linear4bit(bnb.nn.Linear4bit):  # type: ignore[misc]
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            device = x.device.type
            dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else torch.float32
            bias = None if self.bias is None else self.bias.to(dtype)
            product: torch.Tensor = bnb.matmul_4bit(
                x.to(dtype), self.weight, bias=bias, quant_state=self.weight.quant_state
            )
            return product

    return Linear4bit


def _in_four_bits(linear: torch.nn.Linear, device: str) -> torch.nn.Module:
    import bitsandbytes as bnb
    import torch

    made = _four_bit_layer()(
        linear.in_features, linear.out_features, bias=linear.bias is not None, compute_dtype=torch.float32,
        compress_statistics=True, quant_type="nf4",
    )  # fmt: skip
    made.weight = bnb.nn.Params4bit(
        linear.weight.detach().clone(), requires_grad=False, compress_statistics=True, quant_type="nf4"
    )
    # On a CPU with AVX-512's bf16 units the library would repack the weights in the first evaluation, and multiply
    # in bf16. Evaluations are in fp32, and leave the weights as they are.
    made.support_avx512bf16_for_cpu = False
    if linear.bias is not None:
        made.bias = linear.bias
    quantised: torch.nn.Module = made.to(device)
    return quantised
