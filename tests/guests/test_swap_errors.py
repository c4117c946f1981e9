# SPDX-License-Identifier: Apache-2.0
"""A disk that fails under a running host: guests wait, nobody loses a page, and they go on."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from memvirt.host.host import Host
from memvirt.scenario.scenario import Scenario, parse_scenario
from memvirt.vm.outcome import EndReason
from memvirt.vmkernel.admission import AdmissionError
from memvirt.vmkernel.events import Mechanism
from memvirt.vmm.stores.swap_file import SwapFile, SwapSpaceError


def scenario(extra: str = "") -> Scenario:
    return parse_scenario(
        f"""
        seed = 5
        timeout = 120
        [machine]
        memory = "24M"
        quantum_ms = 2
        {extra}
        [machine.Mem]
        ShareScanTime = 0
        MemZipEnable = false
        [[vm]]
        name = "fill"
        memory = "24M"
        append = "workload=fill percent=80 balloon=0"
        [[vm]]
        name = "random"
        paging = "shadow"
        memory = "16M"
        append = "workload=random percent=70 operations=400000 balloon=0"
        """,
        "test",
    )


class Disk:
    """Makes the calls of swap files fail, from one number of calls to another."""

    def __init__(self, first: int, last: int, number: int) -> None:
        self.calls = 0
        self.first, self.last, self.number = first, last, number

    def check(self) -> None:
        self.calls += 1
        if self.first <= self.calls < self.last:
            raise OSError(self.number, os.strerror(self.number))


def is_swap_file(fd: int) -> bool:
    return os.readlink(f"/proc/self/fd/{fd}").endswith(".vswp")


@pytest.fixture
def failing_writes(monkeypatch: pytest.MonkeyPatch) -> Disk:
    disk = Disk(10, 300, errno.ENOSPC)
    write = SwapFile._write_at

    def write_at(self: SwapFile, views: list[memoryview], offset: int) -> None:
        disk.check()
        write(self, views, offset)

    monkeypatch.setattr(SwapFile, "_write_at", write_at)
    return disk


def test_guests_wait_while_swap_cannot_be_written(failing_writes: Disk) -> None:
    with Host(scenario()) as host:
        assert host.run(), [vm.outcome for vm in host.vms]
        pauses = [event for event in host.events if event.mechanism == Mechanism.PAUSE]
        assert any("No space left on device" in event.reason for event in pauses)
        assert any(event.mechanism == Mechanism.RESUME for event in host.events)
    assert failing_writes.calls > failing_writes.last
    assert host.machine.free_frames == host.machine.frames


def test_a_guest_waits_for_a_page_that_cannot_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Disk(5, 15, errno.EIO)
    pread = os.pread

    def failing(fd: int, size: int, offset: int) -> bytes:
        if is_swap_file(fd):
            disk.check()
        return pread(fd, size, offset)

    monkeypatch.setattr("memvirt.vmm.stores.swap_file.os.pread", failing)
    with Host(scenario(), check_every=1) as host:  # the checker meets the errors too
        assert host.run(), [vm.outcome for vm in host.vms]
        pauses = [event for event in host.events if event.mechanism == Mechanism.PAUSE]
        assert any("cannot be read: Input/output error" in event.reason for event in pauses), pauses
    assert disk.calls > disk.last


def test_a_damaged_page_is_never_given_to_the_guest(monkeypatch: pytest.MonkeyPatch) -> None:
    pread = os.pread

    def damaged(fd: int, size: int, offset: int) -> bytes:
        content = bytearray(pread(fd, size, offset))
        if is_swap_file(fd):
            content[7] ^= 1
        return bytes(content)

    monkeypatch.setattr("memvirt.vmm.stores.swap_file.os.pread", damaged)
    with Host(scenario()) as host:
        assert not host.run()
        lost = [vm for vm in host.vms if vm.outcome and vm.outcome.reason is EndReason.PAGE_LOST]
        assert lost
        assert all(vm.outcome and "is not what was written" in vm.outcome.detail for vm in lost)
        assert all(b"verdict: failure" not in vm.serial_log for vm in host.vms)
    assert host.machine.free_frames == host.machine.frames


def test_a_vm_without_its_swap_is_refused() -> None:
    with pytest.raises(AdmissionError, match=r"random .* needs 16.0 MiB of swap .* 6.0 MiB of 30"):
        Host(scenario('swap = "30M"'))


def test_a_late_vm_that_does_not_fit_harms_nobody(tmp_path: Path) -> None:
    (tmp_path / "initrd").write_bytes(bytes(14 << 20))
    late = f"""
        [[vm]]
        name = "late"
        memory = "24M"
        start = 0.1
        initrd = "{tmp_path}/initrd"
        """
    text = """
        [machine]
        memory = "32M"
        state_directory = "STATE"
        [[vm]]
        name = "first"
        memory = "24M"
        reservation = "23M"
        append = "workload=fill percent=80 passes=4 balloon=0"
        """.replace("STATE", f"{tmp_path}/state")
    with Host(parse_scenario(text + late, "test")) as host:
        assert not host.run()
        assert [vm.name for vm in host.vms] == ["first"]
        assert host.vms[0].outcome is not None
        assert host.vms[0].outcome.succeeded
        (refusal,) = host.refusals
        assert refusal.startswith("VM late was not started: ")
        assert host.kernel.admission.reserved == 0
    assert host.machine.free_frames == host.machine.frames
    assert not (tmp_path / "state").exists()


def test_a_file_system_without_room_is_a_clear_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def full(fd: int, offset: int, size: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("memvirt.vmm.stores.swap_file.os.posix_fallocate", full)
    with pytest.raises(SwapSpaceError, match="24576 KiB cannot be made: No space left on device"):
        Host(scenario(f'state_directory = "{tmp_path}/state"'))
    assert not (tmp_path / "state").exists()
