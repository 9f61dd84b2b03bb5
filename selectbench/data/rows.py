"""Rows of a data set that the library `datasets` reads: from the hub, a folder of files, or a folder it saved."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from selectbench.data.failures import first_line, root_cause
from selectbench.data.files import files_sha256
from selectbench.data.lines import Fault
from selectbench.data.records import ROWS_AT_ONCE, below, found_instead
from selectbench.errors import UserError
from selectbench.suite.data import Dataset


def load_rows(data: Dataset) -> Any:
    """The split that is asked for. Raises UserError where it can't be had: no such folder, id, split or column."""
    import datasets

    datasets.disable_progress_bars()
    try:
        rows = _saved(data) if _is_saved(data) else _loaded(data)
    except UserError:
        raise
    except Exception as error:  # pyarrow's, the network's and a dozen of the library's own
        raise UserError(
            f"data.dataset: {data.dataset} cannot be had: {first_line(root_cause(error))} "
            "(a local folder needs no network; without one, a hub id must be in the hub's cache)"
        ) from None
    first = data.field.split(".")[0]
    if first not in rows.column_names:
        raise UserError(f"data.dataset: {data.dataset} has no column {first!r} (it has {_some(rows.column_names)})")
    return rows


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
    for batch in rows.select_columns([first]).iter(batch_size=ROWS_AT_ONCE):
        for value in batch[first]:
            found = below(value, names)
            if isinstance(found, str):
                yield found
            else:
                what = found_instead(data.field, found)
                fault(f"data.dataset: {data.dataset}, row {number}: {what}, text was expected")
            number += 1


def _is_saved(data: Dataset) -> bool:
    return any((Path(data.dataset) / name).is_file() for name in ("state.json", "dataset_dict.json"))


def _loaded(data: Dataset) -> Any:
    import datasets

    return datasets.load_dataset(data.dataset, data.name, split=data.split, revision=data.revision)


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
