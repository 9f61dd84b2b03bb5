"""Rows of a data set that the library `datasets` reads: from the hub, a folder of files, or a folder it saved."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from selectbench.data.failures import first_line, root_cause
from selectbench.data.files import files_sha256
from selectbench.data.hub import snapshot
from selectbench.data.lines import Fault
from selectbench.data.records import ROWS_AT_ONCE, below, found_instead
from selectbench.errors import UnreachableError, UserError
from selectbench.suite.data import Dataset


def load_rows(data: Dataset) -> Any:
    """The split that is asked for. Raises UserError where it can't be had: no such folder, id, split or column."""
    import datasets

    datasets.disable_progress_bars()
    with _had(data):
        rows = _saved(data) if _is_saved(data) else _loaded(data)
        if data.rows is not None:
            rows = _first_rows(rows, data.rows)
    first = data.field.split(".")[0]
    if first not in rows.column_names:
        raise UserError(f"data.dataset: {data.dataset} has no column {first!r} (it has {_some(rows.column_names)})")
    return rows


@contextmanager
def _had(data: Dataset) -> Iterator[None]:
    """Says in a line why a data set can't be had."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # pyarrow's, the network's and a dozen of the library's own
        kind = UserError if Path(data.dataset).exists() else UnreachableError
        raise kind(
            f"data.dataset: {data.dataset} cannot be had: {first_line(root_cause(error))} "
            "(a local folder needs no network; without one, a hub id must be in the hub's cache)"
        ) from None


def _first_rows(rows: Any, number: int) -> Any:
    first = rows.take(number)
    return first if first.column_names is not None else first._resolve_features()


def dataset_commit(data: Dataset) -> str | None:
    """The commit of the hub that the data set's name means now, or meant when it was last asked; None: a folder.

    Raises UnreachableError where the hub was never asked and can't be.
    """
    if Path(data.dataset).exists():
        return None
    with _had(data):
        return snapshot(data.dataset, data.revision, ["README.md"], kind="dataset").name


def download_bytes(data: Dataset) -> float:
    """What the first rows take of the network, by the size of a row in the first of the files that hold them.

    Raises UserError where these can't be asked.
    """
    import datasets
    import fsspec
    import pyarrow.parquet

    assert data.rows is not None, "of a data set without `rows` all is downloaded"
    with _had(data):
        builder = datasets.load_dataset_builder(data.dataset, data.name, revision=data.revision)
        first = builder.config.data_files[data.split][0]
        with fsspec.open(first) as file:
            rows = pyarrow.parquet.ParquetFile(file).metadata.num_rows
            return float(data.rows * file.size / rows)


def streamed_key(data: Dataset) -> str | None:
    """What the first rows of a data set are, by its commit; None: a folder, whose content alone tells.

    Raises UnreachableError.
    """
    commit = dataset_commit(data)
    return commit and f"dataset {data.dataset} {commit} {data.name} {data.split} {data.rows} {data.field}"


def rows_key(rows: Any, data: Dataset) -> str | None:
    """Digest of the files that the rows lie in, and which rows and what of them is read; None: they lie in memory.

    The library's own fingerprint would not do: it is saved beside the rows, and stays when they are exchanged.
    """
    files = [Path(file["filename"]) for file in rows.cache_files]
    if not files:
        return None
    return f"dataset {files_sha256(files, 'data.dataset')} {data.split} {len(rows)} {data.field}"


def column(rows: Any, data: Dataset, fault: Fault) -> Iterator[str]:
    """The field of every row, in order; what is no text goes to `fault`."""
    first, *names = data.field.split(".")
    number = 0
    for batch in _batches(rows.select_columns([first]), data):
        for value in batch[first]:
            found = below(value, names)
            if isinstance(found, str):
                yield found
            else:
                what = found_instead(data.field, found)
                fault(f"data.dataset: {data.dataset}, row {number}: {what}, text was expected")
            number += 1


def _batches(rows: Any, data: Dataset) -> Iterator[Any]:
    """Rows that are downloaded as they are read may break off."""
    batches = rows.iter(batch_size=ROWS_AT_ONCE)
    while True:
        with _had(data):
            batch = next(batches, None)
        if batch is None:
            return
        yield batch


def _is_saved(data: Dataset) -> bool:
    return any((Path(data.dataset) / name).is_file() for name in ("state.json", "dataset_dict.json"))


def _loaded(data: Dataset) -> Any:
    import datasets

    revision = data.revision if data.rows is None else dataset_commit(data)
    return datasets.load_dataset(
        data.dataset, data.name, split=data.split, revision=revision, streaming=data.rows is not None
    )


def _saved(data: Dataset) -> Any:
    """`save_to_disk` leaves one split, or several by name; slices are cut here as the library would."""
    import datasets

    whole = datasets.load_from_disk(data.dataset)
    if isinstance(whole, datasets.Dataset):
        whole = {str(whole.split or "train"): whole}
    sizes = {name: len(rows) for name, rows in whole.items()}
    try:
        cuts = datasets.ReadInstruction.from_spec(data.split).to_absolute(sizes)
    except (ValueError, AssertionError, KeyError):
        raise UserError(
            f"data.dataset: {data.dataset} has no split {data.split!r} (it has {_some(list(sizes))})"
        ) from None
    return datasets.concatenate_datasets([whole[c.splitname].select(range(c.from_, c.to)) for c in cuts])


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (" and more" if len(names) > 8 else "")
