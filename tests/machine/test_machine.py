"""What the machine offers: cores and memory from real files of cgroups, the device from driver and torch."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selectbench.machine import (
    cgroup_cpu_quota,
    cgroup_folders,
    cgroup_memory_limit_bytes,
    cpu_model,
    cpu_units,
    inspect_machine,
    memory_total_bytes,
    schedulable_cores,
    usable_cores,
    wrong_device_reason,
    wrong_system_reason,
)

INSPECT = "asdict(machine.inspect_machine())"
REASON = "machine.wrong_device_reason({})"


@pytest.fixture
def cgroup(tmp_path):
    """Writes files of a cgroup tree; gives the arguments that point at it."""

    def build(membership, **files):
        root = tmp_path / "cgroup"
        root.mkdir()
        for name, content in files.items():
            path = root / name.replace("__", "/").replace("_DOT_", ".")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
        (tmp_path / "membership").write_text(membership)
        return root, tmp_path / "membership"

    return build


def test_v2_limits_at_the_root_of_a_container(cgroup):
    where = cgroup("0::/\n", cpu_DOT_max="150000 100000\n", memory_DOT_max="1073741824\n")
    assert cgroup_cpu_quota(*where) == 1.5
    assert cgroup_memory_limit_bytes(*where) == 1 << 30


def test_v2_takes_the_tightest_of_the_groups_above(cgroup):
    where = cgroup(
        "0::/job/step/task\n",
        job__cpu_DOT_max="200000 100000",
        job__step__cpu_DOT_max="800000 100000",
        job__step__task__cpu_DOT_max="max 100000",
        job__memory_DOT_max="8000000000",
        job__step__task__memory_DOT_max="max",
    )
    assert cgroup_cpu_quota(*where) == 2.0
    assert cgroup_memory_limit_bytes(*where) == 8_000_000_000


def test_v1_limits(cgroup):
    where = cgroup(
        "4:memory:/box\n3:cpu,cpuacct:/box\n0::/\n",
        cpu__box__cpu_DOT_cfs_quota_us="50000\n",
        cpu__box__cpu_DOT_cfs_period_us="100000\n",
        cpu__cpu_DOT_cfs_quota_us="-1\n",
        cpu__cpu_DOT_cfs_period_us="100000\n",
        memory__box__memory_DOT_limit_in_bytes="2147483648\n",
        memory__memory_DOT_limit_in_bytes="9223372036854771712\n",
    )
    assert cgroup_cpu_quota(*where) == 0.5
    assert cgroup_memory_limit_bytes(*where) == 2 << 30


def test_a_membership_told_from_the_host_leaves_the_containers_own_root(cgroup):
    root, membership = cgroup("0::/docker/0123abcd\n", memory_DOT_max="1000\n")
    assert cgroup_folders("", root, membership) == [root]
    assert cgroup_memory_limit_bytes(root, membership) == 1000


def test_no_limit_anywhere(cgroup, tmp_path):
    where = cgroup("0::/\n", cpu_DOT_max="max 100000", memory_DOT_max="max")
    assert cgroup_cpu_quota(*where) is None
    assert cgroup_memory_limit_bytes(*where) is None
    assert cgroup_memory_limit_bytes(tmp_path / "none", tmp_path / "none") is None


@given(st.text())
def test_files_of_nonsense_are_no_limit_and_no_error(tmp_path_factory, content):
    root = tmp_path_factory.mktemp("odd")
    (root / "cpu.max").write_text("x" + content, encoding="utf-8")
    (root / "memory.max").write_text("x" + content, encoding="utf-8")
    assert cgroup_cpu_quota(root, root / "none") is None
    assert cgroup_memory_limit_bytes(root, root / "none") is None


def test_memory_and_processor_of_the_kernels_files(tmp_path):
    (tmp_path / "meminfo").write_text("MemTotal:       1024 kB\nMemFree: 1 kB\n")
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nmodel name\t: A Chip @ 2.0GHz\n")
    assert memory_total_bytes(tmp_path / "meminfo") == 1 << 20
    assert cpu_model(tmp_path / "cpuinfo") == "A Chip @ 2.0GHz"
    assert memory_total_bytes(tmp_path / "none") is None
    assert cpu_model(tmp_path / "none") is None


@pytest.mark.parametrize(
    ("flags", "most", "found"),
    [
        ("avx2 avx512_bf16", None, ("bfloat16",)),
        ("avx512_bf16 amx_bf16 avx512_fp16", None, ("bfloat16", "float16")),
        ("avx2 fma", None, ()),
        ("avx512_bf16 avx512_fp16", "AVX2", ()),
        ("avx512_bf16 avx512_fp16", "avx512_core_bf16", ("bfloat16",)),
        ("avx512_bf16", "DEFAULT", ("bfloat16",)),
    ],
)
def test_half_precisions_that_the_processor_may_use(tmp_path, monkeypatch, flags, most, found):
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    monkeypatch.delenv("DNNL_MAX_CPU_ISA", raising=False)
    if most is not None:
        monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", most)
    (tmp_path / "cpuinfo").write_text(f"flags : {flags}\n")
    assert cpu_units(tmp_path / "cpuinfo") == found


def test_an_arm_processor_lists_bf16_among_its_features(tmp_path, monkeypatch):
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    (tmp_path / "cpuinfo").write_text("Features : asimd sve bf16 i8mm\n")
    assert cpu_units(tmp_path / "cpuinfo") == ("bfloat16",)


def test_this_machine_has_memory_and_cores():
    assert memory_total_bytes() > 1 << 28
    assert 0 < usable_cores() <= len(os.sched_getaffinity(0))


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="there is no affinity to hide")
def test_without_an_affinity_all_cores_count(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity")
    assert schedulable_cores() == list(range(os.cpu_count()))


def test_only_linux_trains():
    assert wrong_system_reason("linux") is None
    assert wrong_system_reason("darwin") == (
        "training needs Linux, and this is macOS: run it on a Linux machine or in a Linux container"
    )
    assert wrong_system_reason("win32").endswith("this is Windows: run it on a Linux machine or in WSL 2")
    assert "this is freebsd14" in wrong_system_reason("freebsd14")


def test_cpu_is_what_it_is_asked_to_be():
    machine = inspect_machine("cpu")
    assert (machine.device, machine.device_count, machine.compute_capability) == ("cpu", 1, None)
    assert wrong_device_reason("cpu") is None


def test_driver_and_cuda_torch_make_a_cuda_machine(with_driver, torch_of):
    found = with_driver(INSPECT, path=[torch_of("12.8")])
    assert (found["device"], found["device_count"], found["compute_capability"]) == ("cuda", 2, [9, 0])


def test_capability_is_that_of_the_first_visible_gpu(with_driver, torch_of):
    found = with_driver(INSPECT, path=[torch_of("12.8")], CUDA_VISIBLE_DEVICES="1")
    assert (found["device_count"], found["compute_capability"]) == (1, [7, 0])


@pytest.mark.parametrize("named", ["", "-1"])
def test_hidden_gpus_make_a_cpu_machine_without_complaint(with_driver, torch_of, named):
    site = torch_of("12.8")
    assert with_driver(INSPECT, path=[site], CUDA_VISIBLE_DEVICES=named)["device"] == "cpu"
    assert with_driver(REASON.format(""), path=[site], CUDA_VISIBLE_DEVICES=named) is None
    assert "CUDA_VISIBLE_DEVICES" in with_driver(REASON.format("'cuda'"), path=[site], CUDA_VISIBLE_DEVICES=named)


def test_a_gpu_beside_a_cpu_torch_is_an_error_with_its_fix(with_driver, torch_of):
    site = torch_of(None)
    assert with_driver(INSPECT, path=[site])["device"] == "cpu"
    for device in ("", "'cuda'"):
        reason = with_driver(REASON.format(device), path=[site])
        assert "NVIDIA H100" in reason
        assert "torch 2.9.0 is built without CUDA" in reason
        assert "--profile cpu" in reason
    assert with_driver(REASON.format("'cpu'"), path=[site]) is None


def test_a_driver_too_old_for_torch_is_an_error_with_its_fix(with_driver, torch_of):
    site = torch_of("13.0")
    reason = with_driver(REASON.format(""), path=[site], script={"cuda": 12040})
    assert "built for CUDA 13.0" in reason
    assert "driver 550.54.15" in reason
    assert "CUDA 12.4" in reason
    assert with_driver(REASON.format(""), path=[site], script={"cuda": 13000}) is None


def test_a_driver_of_the_same_major_version_runs_a_later_minor_one(with_driver, torch_of):
    assert with_driver(REASON.format(""), path=[torch_of("12.9")], script={"cuda": 12020}) is None


def test_cuda_without_a_driver_says_what_nvml_says(with_driver, tmp_path):
    reason = with_driver(REASON.format("'cuda'"), LD_LIBRARY_PATH=str(tmp_path))
    assert reason == "device cuda: no GPU is visible: NVML Shared Library Not Found"
