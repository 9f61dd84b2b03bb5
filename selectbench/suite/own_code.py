"""Folders of own code: whether they can serve, and what their content was.

Everything in them counts but caches and what a run writes: a kernel's source or a JSON file beside a module
changes the training as much as the module does.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from selectbench.errors import UserError, did_you_mean

MOST_BYTES = 100 * 10**6
MOST_FILES = 20_000
LEFT_OUT = frozenset({"__pycache__", "node_modules", "site-packages"})
"""Folders of copies and caches; hidden ones and virtual environments are left out too."""
OF_A_RUN = ("suite.yaml", "environment.json")
"""Both lie in a run's folder: results beside the code must not make the next run another one."""
MODULES = (".py", ".pyc", ".so", ".pyd")


def own_code_sha256(paths: Sequence[str]) -> str | None:
    """Digest of names and contents of all files under these folders; None: there are no folders.

    A file stands for its folder. Raises UserError where a folder is gone, cannot be read or is too large.
    """
    digest = hashlib.sha256()
    for path in paths:
        try:
            for name, file in _files(path):
                content = file.read_bytes()
                digest.update(f"{name}\0{len(content)}\0".encode(errors="surrogateescape"))
                digest.update(content)
        except (OSError, ValueError) as error:
            raise UserError(f"code: {_words(error)}") from None
        digest.update(b"\0")
    return digest.hexdigest() if paths else None


def own_code_problem(path: str) -> str | None:
    """Why this absolute path cannot serve as own code, with the fix, or None. Contents are not read."""
    found = Path(path)
    if not found.exists():
        beside = [p.name for p in found.parent.iterdir() if p.is_dir()] if found.parent.is_dir() else []
        return f"there is no folder {path}{did_you_mean(found.name, beside)}"
    if found.is_file() and found.suffix != ".py":
        return f"{path} is a file, expected a folder that holds Python modules, or a .py file"
    try:
        holds_code = any(name.endswith(MODULES) for name, _ in _files(path))
    except (OSError, ValueError) as error:
        return _words(error)
    return None if holds_code else f"{path} holds no Python module"


def _words(error: Exception) -> str:
    return f"cannot read {error.filename}: {error.strerror}" if isinstance(error, OSError) else str(error)


def _files(path: str) -> list[tuple[str, Path]]:
    """Relative name and path of every file that counts, sorted. Raises OSError, and ValueError above a limit."""
    top = Path(path).parent if Path(path).is_file() else Path(path)
    files: list[tuple[str, Path]] = []
    size = 0
    for file in _walk(top):
        state = file.stat()
        if not stat.S_ISREG(state.st_mode):
            continue
        files.append((file.relative_to(top).as_posix(), file))
        size += state.st_size
        if size > MOST_BYTES or len(files) > MOST_FILES:
            raise ValueError(
                f"{top} holds more than {MOST_BYTES // 10**6} MB or {MOST_FILES} files: name the folder of "
                "the package itself, without data, checkpoints or results"
            )
    return sorted(files)


def _walk(top: Path) -> Iterator[Path]:
    """Every file below that is no cache; links are followed, each folder is entered once."""
    seen = {top.resolve()}
    for folder, below, names in os.walk(top, followlinks=True, onerror=_raise):
        below[:] = [name for name in below if _counts(Path(folder, name), seen)]
        yield from (Path(folder, name) for name in names if not name.startswith(".") and _is_there(folder, name))


def _is_there(folder: str, name: str) -> bool:
    """Whether it is no compiled copy beside its source and no broken link."""
    compiled = name.endswith(".pyc") and Path(folder, name).with_suffix(".py").exists()
    return not compiled and Path(folder, name).exists()


def _counts(folder: Path, seen: set[Path]) -> bool:
    if folder.name.startswith(".") or folder.name in LEFT_OUT or (folder / "pyvenv.cfg").exists():
        return False
    if all((folder / name).exists() for name in OF_A_RUN) or folder.resolve() in seen:
        return False
    seen.add(folder.resolve())
    return True


def _raise(error: OSError) -> None:
    raise error
