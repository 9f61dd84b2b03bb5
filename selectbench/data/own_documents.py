"""Documents that own code yields: `Name(**settings)`, read in this process."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module, invalidate_caches
from pathlib import Path
from typing import Any

from selectbench.data.failures import with_place
from selectbench.errors import UserError
from selectbench.suite.data import OwnDocuments


def own_documents(data: OwnDocuments, code: Sequence[str]) -> Iterator[str]:
    """What it yields, in order; `code`: the suite's folders of own code.

    Raises UserError where it can't be imported, fails, or yields something that is no text.
    """
    with _importable(code):
        iterator, number = _begun(data), 0
        while True:
            try:
                document = next(iterator)
            except StopIteration:
                return
            except Exception as error:  # whatever own code raises is for its author to see
                raise UserError(
                    f"data.documents: {data.documents} failed at document {number}: {with_place(error)}"
                ) from error
            if not isinstance(document, str):
                raise UserError(
                    f"data.documents: {data.documents} yielded a {type(document).__name__} as document {number}, "
                    "text was expected: yield strings"
                )
            yield document
            number += 1


def _begun(data: OwnDocuments) -> Iterator[Any]:
    module, _, name = data.documents.partition(":")
    try:
        made: Any = import_module(module)
        for part in name.split("."):
            made = getattr(made, part)
        made = made(**data.settings)
        if isinstance(made, str | bytes):
            raise TypeError(f"it gave one {type(made).__name__}, an iterable of documents was expected")
        return iter(made)
    except Exception as error:
        raise UserError(
            f"data.documents: {data.documents} cannot be used: {with_place(error)}: it must name a class or "
            "function in a folder of `code` or an installed package, which takes `settings` and gives an iterable "
            "of strings"
        ) from error


@contextmanager
def _importable(code: Sequence[str]) -> Iterator[None]:
    """With the folders on the path; what was imported of them is forgotten again, as it may be edited."""
    folders = [folder if Path(folder).is_dir() else str(Path(folder).parent) for folder in code]
    before, known = list(sys.path), set(sys.modules)
    sys.path[:0] = folders
    invalidate_caches()  # a file that was written a moment ago is seen
    try:
        yield
    finally:
        sys.path[:] = before
        for name in set(sys.modules) - known:
            file = getattr(sys.modules[name], "__file__", None)
            if file and any(Path(file).is_relative_to(folder) for folder in folders):
                del sys.modules[name]
