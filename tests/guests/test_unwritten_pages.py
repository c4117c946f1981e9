# SPDX-License-Identifier: Apache-2.0
"""Guests verify their memory while a scan trusts what the VMM says of unwritten pages."""

from __future__ import annotations

import numpy as np
import pytest

from memvirt import EndReason, Machine, PagingMode, VirtualMachine
from memvirt.host.vmm_memory import VmmMemory
from memvirt.images import image_path
from memvirt.vmkernel.sharing import PageSharing
from memvirt.vmm.check import check_machine


@pytest.mark.parametrize("paging", [PagingMode.SHADOW, PagingMode.NESTED])
@pytest.mark.parametrize(
    ("workload", "quantum_ns"),
    [("identical", 1_000_000), ("selfmod rounds=20", 50_000), ("churn", 1_000_000)],
)
def test_a_scan_never_trusts_a_page_that_was_written(
    paging: PagingMode, workload: str, quantum_ns: int
) -> None:
    machine = Machine("48M", scatter_seed=1)
    with VirtualMachine(machine, memory="24M", paging=paging) as vm:
        vm.load(image_path("bundled"), append=f"workload={workload} seed=2")
        guest, sharing = VmmMemory(vm.vmm), PageSharing(np.random.default_rng(3))
        sharing.add(guest)
        rounds = 0
        while vm.run_quantum(quantum_ns) is None:
            if rounds % 4 == 0:
                assert sharing.wrong_keys(guest).size == 0
            sharing.scan(guest, guest.pages / 3)
            rounds += 1
        assert sharing.wrong_keys(guest).size == 0
        assert vm.outcome is not None
        assert vm.outcome.reason is EndReason.SUCCESS, bytes(vm.serial_log[-300:])
        assert check_machine(machine, [vm.vmm]) == []
        assert sharing.scanned > sharing.unchanged > 0
