"""Trials in another virtual environment, beside those in the bench's own: real ones, made here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from launch.harness import TINY_SUITE, Workplace

from selectbench.errors import UserError
from selectbench.launch.trial import server_environment
from selectbench.machine import Machine, inspect_interpreter, machine_for, worker_problem

MARK = "0.0.99"
"""The version of a distribution that only the other environment has."""
PREFIXES = """\
import os, sys
if "PREFIXES" in os.environ:
    with open(os.environ["PREFIXES"], "a") as stream:
        stream.write(sys.prefix + "\\n")
"""


def make_venv(folder: Path, *, with_packages: bool) -> Path:
    """A virtual environment; `with_packages`: it finds what is installed beside this interpreter too."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    site = next(folder.glob("lib/python*/site-packages"))
    if with_packages:
        (site / "beside.pth").write_text(sysconfig.get_path("purelib") + "\n")
        facts = site / f"triton-{MARK}.dist-info"
        facts.mkdir()
        (facts / "METADATA").write_text(f"Metadata-Version: 2.1\nName: triton\nVersion: {MARK}\n")
    return folder / "bin" / "python"


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_venv(tmp_path_factory.mktemp("venvs") / "other", with_packages=True)


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_venv(tmp_path_factory.mktemp("venvs") / "bare", with_packages=False)


def suite_with(**pythons: Path) -> str:
    options = "".join(f"  {name}: {{python: '{path}'}}\n" for name, path in pythons.items())
    return TINY_SUITE[: TINY_SUITE.index("  halves")] + options + "seeds: [0]\n"


@pytest.mark.slow
def test_trials_run_in_both_and_the_record_tells(workplace: Workplace, other: Path) -> None:
    workplace.write(suite_with(there=other))
    temporary, planted, prefixes = (workplace.folder / name for name in ("tmp", "planted", "prefixes"))
    for folder in (temporary, planted):
        folder.mkdir()
    (planted / "sitecustomize.py").write_text(PREFIXES)
    done = workplace.call(
        "run", "tiny.yaml", TMPDIR=str(temporary), PYTHONPATH=str(planted), PREFIXES=str(prefixes),
        VIRTUAL_ENV="/nowhere",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    software = {r["trial"]["option"]: r["software"] for r in workplace.records()}
    assert software["there"]["triton"] == MARK != software["whole"]["triton"]
    assert software["there"]["torch"] == software["whole"]["torch"]
    losses = {r["outcome"]["measurement"]["final_loss"] for r in workplace.records()}
    assert len(losses) == 1
    # What the bench's PYTHONPATH holds was seen by the bench's own interpreter alone.
    assert set(prefixes.read_text().split()) == {sys.prefix}
    assert list(temporary.glob("selectbench-*")) == []
    folder = workplace.run_folders()[-1]
    assert not (folder / "weights").exists()
    environment = json.loads((folder / "environment.json").read_text())
    assert environment["interpreters"]["there"]["libraries"]["triton"] == MARK
    assert set(environment["interpreters"]) == {"there"}
    assert str(other) not in json.dumps(environment)


def test_an_environment_without_the_workers_packages_is_unsupported(workplace: Workplace, bare: Path) -> None:
    workplace.write(suite_with(bare=bare))
    plan = json.loads(workplace.call("plan", "tiny.yaml", "--json").stdout)
    reason = next(option["unsupported"] for option in plan["options"] if option["option"] == "bare")
    assert "torch is not installed" in reason
    command = reason[reason.index(f"{bare} -m pip install") :]
    for package in ("torch>=", "pydantic>=", "numpy>=", "transformers>=", "safetensors>=", "packaging>="):
        assert f"'{package}" in command


def test_an_interpreter_that_does_not_start_is_named_with_what_it_printed(workplace: Workplace) -> None:
    broken = workplace.folder / "broken"
    broken.write_text("#!/bin/sh\necho no module named encodings >&2\nexit 3\n")
    broken.chmod(0o755)
    workplace.write(suite_with(broken=broken))
    done = workplace.call("run", "tiny.yaml")
    assert done.returncode == 2
    assert str(broken) in done.stderr
    assert "no module named encodings" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_old_python_is_unsupported(tmp_path: Path) -> None:
    old = tmp_path / "python"
    found = {"implementation": "CPython", "version": [3, 10, 4], "packages": {}, "torch": None}
    old.write_text(f"#!/bin/sh\necho '{json.dumps(found)}'\n")
    old.chmod(0o755)
    reason = worker_problem(machine_for(Machine("cpu"), str(old)))
    assert reason is not None
    assert "is CPython 3.10.4, Python 3.11 or later is needed" in reason


def test_a_package_that_is_too_old_is_named_with_the_command(tmp_path: Path) -> None:
    python = make_venv(tmp_path / "aged", with_packages=True)
    facts = next((tmp_path / "aged").glob("lib/python*/site-packages")) / "torch-2.1.0.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 2.1.0\n")
    reason = worker_problem(machine_for(Machine("cpu"), str(python)))
    assert reason is not None
    assert reason.startswith(f"python {python}: torch is 2.1.0: {python} -m pip install 'torch>=")
    assert "numpy" not in reason


def test_choices_are_asked_of_the_other_interpreter(other: Path, bare: Path) -> None:
    machine = Machine("cpu")
    assert machine_for(machine, None) is machine
    assert machine_for(machine, str(other)).package_version("triton") == MARK
    assert machine_for(machine, str(bare)).package_version("torch") is None
    assert worker_problem(machine_for(machine, str(other))) is None
    assert worker_problem(machine) is None


def test_the_packages_asked_for_are_all_that_the_worker_imports(tmp_path: Path) -> None:
    """In an environment with no other packages than those and what they require, the worker can be imported."""
    python = make_venv(tmp_path / "only", with_packages=False)
    site = next((tmp_path / "only").glob("lib/python*/site-packages"))
    code = (
        "from importlib import metadata\n"
        "from packaging.requirements import Requirement\n"
        "from selectbench.machine import WORKER_PACKAGES\n"
        "seen, todo = set(), list(WORKER_PACKAGES)\n"
        "while todo:\n"
        "    name = todo.pop()\n"
        "    try: found = metadata.distribution(name)\n"
        "    except metadata.PackageNotFoundError: continue\n"
        "    if name.lower() in seen: continue\n"
        "    seen.add(name.lower())\n"
        "    todo += [r.name for r in map(Requirement, found.requires or [])"
        " if not r.marker or r.marker.evaluate({'extra': ''})]\n"
        "    for file in found.files or []:\n"
        "        top = file.parts[0]\n"
        "        if top not in ('..', '__pycache__'): print(found.locate_file(top))\n"
    )
    listed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    for entry in sorted(set(listed.split())):
        (site / Path(entry).name).symlink_to(entry)
    source = Path(sys.modules["selectbench"].__file__ or "").parent.parent
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "selectbench").symlink_to(source / "selectbench")
    done = subprocess.run(
        [str(python), "-P", "-c", "import selectbench.worker.trial, selectbench.worker.server"],
        env={**os.environ, "PYTHONPATH": str(tmp_path / "code")}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_what_ties_a_process_to_its_interpreter_is_not_handed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("VIRTUAL_ENV", "PYTHONHOME", "PYTHONPATH"):
        monkeypatch.setenv(name, "/mine")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    monkeypatch.delenv("TORCH_EXTENSIONS_DIR", raising=False)
    own, others = server_environment(), server_environment("/its/bin/python")
    assert {own[name] for name in ("VIRTUAL_ENV", "PYTHONHOME", "PYTHONPATH")} == {"/mine"}
    assert not {"VIRTUAL_ENV", "PYTHONHOME", "PYTHONPATH"} & others.keys()
    assert others["PATH"] == f"/its/bin{os.pathsep}{own['PATH']}"
    assert others["CUDA_VISIBLE_DEVICES"] == "1"
    assert "TORCH_EXTENSIONS_DIR" not in own
    assert others["TORCH_EXTENSIONS_DIR"] != server_environment("/other/bin/python")["TORCH_EXTENSIONS_DIR"]


@pytest.mark.parametrize("content", ["#!/bin/sh\nexit 0\n", "not a program\n", "#!/bin/sh\necho '{a}'\n"])
def test_what_is_no_python_is_a_users_error(tmp_path: Path, content: str) -> None:
    path = tmp_path / "python"
    path.write_text(content)
    path.chmod(0o755)
    with pytest.raises(UserError, match=str(path)):
        inspect_interpreter(str(path))
    with pytest.raises(UserError, match="No such file"):
        inspect_interpreter(str(tmp_path / "missing"))
