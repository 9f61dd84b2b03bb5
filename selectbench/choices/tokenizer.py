"""How text becomes tokens: a tokenizer trained on the job's own training split, or one that exists."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag

from selectbench.strict import Strict

Entries = Annotated[int, Field(ge=257, le=1 << 20)]


class Bpe(Strict):
    """Byte-level byte pair encoding (Radford et al. 2019, section 2.2), trained on the training split."""

    bpe: Entries
    """Vocabulary size: 256 bytes, one end-of-text token, and merges."""

    @property
    def most_entries(self) -> int | None:
        """Entries that it has at most, special tokens of a task besides; None: known when it is read."""
        return self.bpe


class Unigram(Strict):
    """A unigram model over pieces of words (Kudo 2018, arXiv:1804.10959), trained on the training split."""

    unigram: Entries
    """Vocabulary size: 256 bytes, special tokens, and pieces."""

    @property
    def most_entries(self) -> int | None:
        """Entries that it has at most."""
        return self.unigram


class WordPiece(Strict):
    """WordPiece (Devlin et al. 2019, arXiv:1810.04805), over bytes, trained on the training split."""

    wordpiece: Annotated[int, Field(ge=514, le=1 << 20)]
    """Vocabulary size: 256 bytes twice, at the beginning and inside of words, special tokens, and pieces."""

    @property
    def most_entries(self) -> int | None:
        """Entries that it has at most."""
        return self.wordpiece


class Bytes(Strict):
    """Every byte is a token (as in ByT5, Xue et al. 2022, arXiv:2105.13626): nothing is trained."""

    bytes: Literal[True] = True
    """The vocabulary is 256 bytes and one end-of-text token."""

    @property
    def most_entries(self) -> int | None:
        """Entries that it has."""
        return 257


class PretrainedTokenizer(Strict):
    """A tokenizer that exists, as transformers saves it."""

    pretrained: Annotated[str, Field(min_length=1)]
    """A folder, relative to the suite, or a hub id."""
    revision: str | None = None
    """Commit or branch on the hub."""

    @property
    def most_entries(self) -> int | None:
        """Known when it is read."""
        return None


def _tag(value: object) -> str | None:
    has = value.__contains__ if isinstance(value, dict) else lambda key: hasattr(value, key)
    return next((key for key in ("bpe", "unigram", "wordpiece", "bytes", "pretrained") if has(key)), None)


Tokenizer = Annotated[
    Annotated[Bpe, Tag("bpe")]
    | Annotated[Unigram, Tag("unigram")]
    | Annotated[WordPiece, Tag("wordpiece")]
    | Annotated[Bytes, Tag("bytes")]
    | Annotated[PretrainedTokenizer, Tag("pretrained")],
    Discriminator(_tag),
]
AnyTokenizer = Bpe | Unigram | WordPiece | Bytes | PretrainedTokenizer
