"""selectbench as another operating system would run it: what that system lacks, our own code does not find.

    python tests/other_system.py darwin report results/precision/...
    python tests/other_system.py win32 -c 'import selectbench.cli'

What is missing is read from typeshed, mypy's description of the standard library. Other packages and the standard
library itself are those of this machine and see all of it; nobody finds /proc, /sys or /dev/shm. On `win32` files
are as Windows has them: text is cp1252 and its lines end with CR LF unless it is opened otherwise, and what is open
for reading alone is not flushed to the disk. `linux` hides nothing.
"""

from __future__ import annotations

import ast
import builtins
import errno
import fcntl
import importlib.util
import io
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import IO, Any

LINUX_FOLDERS = ("/proc/", "/sys/", "/dev/shm")
MYPY = importlib.util.find_spec("mypy")
assert MYPY is not None
assert MYPY.origin is not None
STUBS = Path(MYPY.origin).parent / "typeshed" / "stdlib"


@cache
def names(module: str, platform: str) -> frozenset[str]:
    """What a module of the standard library has on a system; empty: the module is not there, or not described."""
    place = STUBS.joinpath(*module.split("."))
    stub = next((path for path in (place.with_suffix(".pyi"), place / "__init__.pyi") if path.is_file()), None)
    return frozenset(_names(ast.parse(stub.read_text(encoding="utf-8")).body, platform) if stub else ())


def _names(statements: Sequence[ast.stmt], platform: str) -> set[str]:
    found: set[str] = set()
    for statement in statements:
        match statement:
            case ast.If():
                found |= _names(statement.body if _holds(statement.test, platform) else statement.orelse, platform)
            case ast.FunctionDef() | ast.ClassDef():
                found.add(statement.name)
            case ast.AnnAssign(target=ast.Name(id=name)) | ast.Assign(targets=[ast.Name(id=name)]):
                found.add(name)
            case ast.ImportFrom() | ast.Import():  # a stub exports only what it imports `as`
                found |= {alias.asname for alias in statement.names if alias.asname}
    return found


def _holds(test: ast.expr, platform: str) -> bool:
    known = {"sys": SimpleNamespace(platform=platform, version_info=sys.version_info)}
    return bool(eval(compile(ast.Expression(test), "typeshed", "eval"), known))


def is_there(module: str, platform: str) -> bool:
    """Whether the other system has this module of Linux's at all; what is private describes types alone."""
    return names(module, "linux") == names(module, platform) or any(
        not name.startswith("_") for name in names(module, platform)
    )


def missing(module: str, platform: str) -> frozenset[str]:
    """What Linux has in this module and the other system has not."""
    return names(module, "linux") - names(module, platform)


def _is_ours(variables: Mapping[str, Any] | None) -> bool:
    return (variables or {}).get("__name__", "").split(".")[0] == "selectbench"


def hide(platform: str) -> None:
    """From now on, in this process, for good."""
    real_import: Callable[..., ModuleType] = builtins.__import__

    def import_there(
        name: str, variables: Mapping[str, Any] | None = None, inner: Any = None, fromlist: Any = (), level: int = 0
    ) -> ModuleType:  # fmt: skip
        if _is_ours(variables) and level == 0 and name.split(".")[0] in sys.stdlib_module_names:
            if not is_there(name, platform):
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)
            real_import(name)
            _hide_from_us(sys.modules[name], missing(name, platform), platform)
        return real_import(name, variables, inner, fromlist, level)

    builtins.__import__ = import_there
    sys.addaudithook(_no_linux_folder)
    if platform == "win32":
        io.open = builtins.open = _opened_on_windows
        os.fsync = _flushed_on_windows


@cache
def _hide_from_us(module: ModuleType, lacking: frozenset[str], platform: str) -> None:
    hidden = {name: vars(module).pop(name) for name in lacking & vars(module).keys()}
    if module is sys:
        hidden["platform"] = vars(sys).pop("platform")
    if not hidden:
        return

    def getattr_(name: str) -> object:
        ours = _is_ours(sys._getframe(1).f_globals)
        if name not in hidden or (ours and name != "platform"):
            raise AttributeError(f"module {module.__name__!r} has no attribute {name!r}")
        return platform if ours else hidden[name]

    module.__getattr__ = getattr_  # type: ignore[method-assign]


def _no_linux_folder(event: str, arguments: tuple[Any, ...]) -> None:
    if event not in ("open", "os.listdir", "os.scandir") or not arguments:
        return
    path = os.fsdecode(arguments[0]) if isinstance(arguments[0], str | bytes | os.PathLike) else ""
    if path.startswith(LINUX_FOLDERS):
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)


_open, _fsync = io.open, os.fsync


def _opened_on_windows(
    file: Any, mode: str = "r", buffering: int = -1, encoding: str | None = None, errors: str | None = None,
    newline: str | None = None, closefd: bool = True, opener: Any = None,
) -> IO[Any]:  # fmt: skip
    if "b" not in mode:
        encoding = "cp1252" if encoding in (None, "locale") else encoding
        newline = "\r\n" if newline is None and not mode.startswith("r") else newline
    return _open(file, mode, buffering, encoding, errors, newline, closefd, opener)


def _flushed_on_windows(descriptor: int) -> None:
    if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))
    _fsync(descriptor)


def _main(platform: str, *arguments: str) -> None:
    sys.argv = ["selectbench", *arguments]
    if platform != "linux":
        hide(platform)
    if arguments[0] == "-c":
        exec(arguments[1], {"__name__": "notebook"})
        return
    from selectbench.__main__ import main

    main()


if __name__ == "__main__":
    _main(*sys.argv[1:])
