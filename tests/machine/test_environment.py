"""environment.json: what explains figures is in it, what names people and hosts is not."""

import getpass
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from selectbench.errors import UserError
from selectbench.record.environment import (
    Environment,
    code_sha256,
    collect_environment,
    read_environment,
    without_folders,
)
from selectbench.record.run_folder import fingerprint_part
from selectbench.suite.load import field_texts


def test_every_key_is_documented_and_the_whole_is_json():
    found = collect_environment(None)
    assert set(found) == set(Environment.__annotations__)
    assert field_texts(Environment).keys() >= Environment.__annotations__.keys()
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["cores_by_affinity"] == len(os.sched_getaffinity(0))
    assert found["libraries"]["numpy"]


def test_names_and_secrets_stay_out(monkeypatch, tmp_path):
    canaries = {
        "HOSTNAME": "canary-host",
        "USER": "canary-user",
        "LOGNAME": "canary-user",
        "HF_TOKEN": "canary-token",
        "WANDB_API_KEY": "canary-key",
        "MALLOC_SECRET": "canary-malloc",
        "LD_PRELOAD": "/home/canary-user/lib/libjemalloc.so.2:/opt/canary-project/libx.so",
        "MALLOC_CONF": "prof_prefix:/home/canary-user/prof,narenas:2",
    }
    for name, value in canaries.items():
        monkeypatch.setenv(name, value)
    text = json.dumps(collect_environment(tmp_path))
    assert "canary" not in text
    assert socket.gethostname() not in str(list(json.loads(text).values()))
    assert str(Path.home()) not in text
    assert getpass.getuser() == "canary-user"
    assert json.loads(text)["allocator"]["LD_PRELOAD"] == "libjemalloc.so.2:libx.so"


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        ("expandable_segments:True,max_split_size_mb:128", "expandable_segments:True,max_split_size_mb:128"),
        ("glibc.malloc.arena_max=2", "glibc.malloc.arena_max=2"),
        ("/a/b/c.so /d/e.so", "c.so e.so"),
        ("relative/folder/x.so", "x.so"),
        ("prefix=/home/me/x", "prefix=x"),
    ],
)
def test_paths_are_cut_to_their_last_part(value, kept):
    assert without_folders(value) == kept


def test_variables_that_change_figures_are_kept(monkeypatch):
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")
    found = collect_environment(None)
    assert found["allocator"]["PYTORCH_CUDA_ALLOC_CONF"] == "expandable_segments:True"
    assert found["threads"]["OMP_NUM_THREADS"] == "3"
    assert found["switches"]["NVIDIA_TF32_OVERRIDE"] == "0"


@pytest.fixture
def repository(tmp_path):
    def git(*arguments):
        identity = ["-c", "user.name=x", "-c", "user.email=x@example.org", "-c", "commit.gpgsign=false"]
        command = ["git", "-C", str(tmp_path), *identity, *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    git("init", "--quiet")
    (tmp_path / "suite.yaml").write_text("name: x\n")
    git("add", ".")
    git("commit", "--quiet", "-m", "first")
    return tmp_path, git


def test_commit_of_the_suites_repository(repository):
    folder, git = repository
    found = collect_environment(folder)
    assert (found["git_revision"], found["git_dirty"]) == (git("rev-parse", "HEAD"), False)
    (folder / "results").mkdir()
    (folder / "results" / "new").touch()
    assert collect_environment(folder / "results")["git_dirty"] is False
    (folder / "suite.yaml").write_text("name: y\n")
    assert collect_environment(folder)["git_dirty"] is True


def test_a_hooks_variables_do_not_name_another_repository(repository, tmp_path_factory, monkeypatch):
    folder, git = repository
    revision = git("rev-parse", "HEAD")
    monkeypatch.setenv("GIT_DIR", str(tmp_path_factory.mktemp("other")))
    assert collect_environment(folder)["git_revision"] == revision


def test_no_repository_and_no_git_are_unknown(tmp_path, repository, monkeypatch, tmp_path_factory):
    found = collect_environment(tmp_path_factory.mktemp("bare"))
    assert (found["git_revision"], found["git_dirty"]) == (None, None)
    monkeypatch.setenv("PATH", "")
    assert collect_environment(repository[0])["git_revision"] is None


def test_a_commit_does_not_stop_a_resume_but_a_version_does():
    found = collect_environment(None)
    part = fingerprint_part(found)
    assert fingerprint_part({**found, "git_revision": "other", "git_dirty": True}) == part
    rebooted = {**found, "memory_total_bytes": (8 << 30) + 4096}
    assert fingerprint_part(rebooted) == fingerprint_part({**found, "memory_total_bytes": 8 << 30})
    assert fingerprint_part({**found, "libraries": {**found["libraries"], "torch": "1.0"}}) != part
    assert fingerprint_part({**found, "code_sha256": "other"}) != part


def test_another_interpreter_is_told_without_where_it_lies():
    found = collect_environment(None, {"new torch": sys.executable})
    facts = found["interpreters"]["new torch"]
    assert facts["libraries"] == found["libraries"]
    assert facts["python"] == found["python"]
    assert str(Path(sys.executable).parent) not in json.dumps(found)
    assert fingerprint_part(found) != fingerprint_part(collect_environment(None))


def test_gpus_and_their_driver(with_driver):
    found = with_driver("environment.collect_environment(None)", script={"nvlink": 1})
    assert [gpu["name"] for gpu in found["gpus"]] == ["NVIDIA H100", "Old Board"]
    assert found["gpus"][0]["power_limit_watts"] == 650.5
    assert found["gpu_topology"] == [["X", "NVL"], ["NVL", "X"]]
    assert (found["driver_version"], found["cuda_driver_version"]) == ("550.54.15", [12, 4])
    assert "GPU-aaaa" not in json.dumps(found)


def test_code_sha256_is_told():
    assert len(code_sha256()) == 64
    assert collect_environment(None)["code_sha256"] == code_sha256()


ROWS = {"rows": 2048, "entries": 300, "unused": 111_872, "parameters": 150_000}


@pytest.mark.parametrize(
    ("unused", "is_right"),
    [
        ({"base": ROWS}, True), ({"base": {**ROWS, "parameters": 0}}, False),
        ({"base": {**ROWS, "rows": "many"}}, False), ([], False), ({"base": {}}, False),
    ],
)  # fmt: skip
def test_rows_that_no_token_has_are_read_back_or_refused(unused, is_right, tmp_path):
    path = tmp_path / "environment.json"
    path.write_text(json.dumps({**collect_environment(None), "data": {"unused_rows": unused}}))
    if is_right:
        assert read_environment(path)["data"]["unused_rows"] == unused
    else:
        with pytest.raises(UserError, match=r"cannot be read: .* at `\$\.data\.unused_rows"):
            read_environment(path)
