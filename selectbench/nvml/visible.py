"""Which of NVML's devices CUDA would show this process, and in which order.

By CUDA's programming guide (CUDA_VISIBLE_DEVICES) and the MIG user guide (CUDA device enumeration): a board with
MIG on is not usable itself, only its slices are. Drivers before 570 show a process one slice and no other device
beside it; later ones show a slice of every GPU instance.
"""

from __future__ import annotations

import os
from typing import Any

import pynvml

from selectbench.nvml.driver import ask, board_of
from selectbench.nvml.torch_devices import TorchDevice, devices_of_torch, same_bus_id, same_uuid

SEVERAL_SLICES_DRIVER = 570
"""The first driver that shows a process more than one slice."""


def visible_handles() -> list[Any]:
    """Handles of boards without MIG and of slices. Call while NVML is started; raises pynvml.NVMLError.

    CUDA_VISIBLE_DEVICES is honoured as a list of indices, UUIDs or beginnings of UUIDs; as CUDA does, everything
    from the first unknown entry on is hidden, and everything where a device is named twice. Numbers are CUDA's
    own: where they may differ from NVML's, torch is asked; where that fails they are taken for NVML's. A number,
    or a whole board's UUID, stands for the board's first slice where it has MIG on.
    """
    boards = _boards()
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is None:
        return _shown_together([device for board in boards for device in devices_on(board)])
    entries = [entry.strip() for entry in named.split(",") if entry.strip()]
    if _numbers_are_unsure(entries, boards) and (shown := devices_of_torch()):
        found = in_torch_order(shown, [device for board in boards for device in devices_on(board)])
        if found is not None:
            return found
    return _shown_together(_named(entries, boards))


def _boards() -> list[Any | None]:
    """By NVML's index; None in the place of one that has fallen off the bus."""
    return [ask(pynvml.nvmlDeviceGetHandleByIndex, index) for index in range(pynvml.nvmlDeviceGetCount())]


def devices_on(board: Any | None) -> list[Any]:
    """The board itself, or its slices where it has MIG on, or nothing where it does not answer."""
    if board is None or ask(pynvml.nvmlDeviceGetUUID, board) is None:
        return []
    if not has_mig_on(board):
        return [board]
    most = ask(pynvml.nvmlDeviceGetMaxMigDeviceCount, board) or 0
    slices = [ask(pynvml.nvmlDeviceGetMigDeviceHandleByIndex, board, index) for index in range(most)]
    return [handle for handle in slices if handle is not None]


def has_mig_on(board: Any) -> bool:
    """Whether the board is cut into slices now; a mode that waits for a reset does not count."""
    mode = ask(pynvml.nvmlDeviceGetMigMode, board)
    return mode is not None and mode[0] == pynvml.NVML_DEVICE_MIG_ENABLE


def is_slice(handle: Any) -> bool:
    """Whether the handle is a MIG slice's."""
    return ask(pynvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle, handle) is not None


def _named(entries: list[str], boards: list[Any | None]) -> list[Any]:
    chosen: list[Any] = []
    for entry in entries:
        handle = _find(entry, boards)
        if handle is None:
            break
        chosen.append(handle)
    uuids = [pynvml.nvmlDeviceGetUUID(handle) for handle in chosen]
    return chosen if len(set(uuids)) == len(uuids) else []


def _find(entry: str, boards: list[Any | None]) -> Any | None:
    if entry.isdecimal():
        return _first(devices_on(boards[int(entry)])) if int(entry) < len(boards) else None
    slices = [device for board in boards for device in devices_on(board) if is_slice(device)]
    if (found := _by_beginning(entry, slices)) is not None:
        return found
    if entry.startswith("MIG-"):  # or MIG-GPU-<uuid of the board>/<GPU instance>/<compute instance>, before R470
        return ask(pynvml.nvmlDeviceGetHandleByUUID, entry)
    return _first(devices_on(_by_beginning(entry, boards)))


def _by_beginning(entry: str, handles: list[Any | None]) -> Any | None:
    uuids = {i: ask(pynvml.nvmlDeviceGetUUID, handle) for i, handle in enumerate(handles) if handle is not None}
    matching = [i for i, uuid in uuids.items() if uuid is not None and uuid.startswith(entry)]
    return handles[matching[0]] if len(matching) == 1 else None


def _first(devices: list[Any]) -> Any | None:
    return devices[0] if devices else None


def _shown_together(devices: list[Any]) -> list[Any]:
    """What of these one process gets to see."""
    slices = [device for device in devices if is_slice(device)]
    if not slices:
        return devices
    version = ask(pynvml.nvmlSystemGetDriverVersion) or ""
    major = version.partition(".")[0]
    if not (major.isdecimal() and int(major) >= SEVERAL_SLICES_DRIVER):
        return slices[:1]
    kept = {_instance(device): device for device in reversed(devices)}  # the first of each instance stays
    return [device for device in devices if kept[_instance(device)] is device]


def _instance(device: Any) -> tuple[str, int | str | None]:
    """The GPU instance that a slice is in, by its board; a device is its own where the driver does not say."""
    own = pynvml.nvmlDeviceGetUUID(device)
    number = ask(pynvml.nvmlDeviceGetGpuInstanceId, device) if is_slice(device) else None
    return (own, None) if number is None else (pynvml.nvmlDeviceGetUUID(board_of(device)), number)


def _numbers_are_unsure(entries: list[str], boards: list[Any | None]) -> bool:
    if not any(entry.isdecimal() for entry in entries):
        return False
    present = [board for board in boards if board is not None]
    kinds = {ask(pynvml.nvmlDeviceGetName, board) for board in present}
    by_speed = os.environ.get("CUDA_DEVICE_ORDER") != "PCI_BUS_ID"
    return (len(kinds) > 1 and by_speed) or any(map(has_mig_on, present))


def in_torch_order(shown: list[TorchDevice], devices: list[Any]) -> list[Any] | None:
    """NVML's handle of each of torch's devices; None: not all could be told."""
    left = list(devices)
    found = []
    for device in shown:
        # Slices of one board share its bus id, so a UUID that fits goes first.
        fitting = [handle for handle in left if same_uuid(device, uuids_of(handle))]
        fitting += [handle for handle in left if same_bus_id(device, bus_id_of(handle))]
        if not fitting:
            return None
        found.append(fitting[0])
        left.remove(fitting[0])
    return found


def uuids_of(handle: Any) -> list[str]:
    """The device's own UUID and its board's, which differ where it is a slice."""
    found = [ask(pynvml.nvmlDeviceGetUUID, each) for each in (handle, board_of(handle))]
    return [uuid for uuid in found if uuid is not None]


def bus_id_of(handle: Any) -> str | None:
    """The board's, `00000000:3B:00.0`."""
    pci = ask(pynvml.nvmlDeviceGetPciInfo, board_of(handle))
    bus_id = pci.busId if pci else None
    return bus_id.decode() if isinstance(bus_id, bytes) else bus_id
