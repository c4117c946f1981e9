# SPDX-License-Identifier: Apache-2.0
"""The hypervisor as a guest finds it: CPUID, the backdoor, and how an IN reaches them."""

from __future__ import annotations

import struct

import pytest

from memvirt import EndReason, Machine, PagingMode, VirtualMachine
from memvirt.platform.backdoor import NOT_AVAILABLE, backdoor
from memvirt.platform.boot.protocol import Protocol
from memvirt.platform.ports import BACKDOOR_MAGIC, BALLOON_MAGIC, PORT_BACKDOOR, PORT_BALLOON

MODES = [PagingMode.SHADOW, PagingMode.NESTED, PagingMode.FLAT]
IN, REX_IN, IN_16 = b"\xed", b"\x48\xed", b"\x66\xed"
CPUID = b"\x0f\xa2"
FOREVER = b"\xeb\xfe"
ENTRY, USER_CODE = 0x10_0000, 0x10_0800
TABLES, GDT = 0x20_0000, 0x20_4000


def load(**registers: int) -> bytes:
    """``mov`` of 64-bit constants."""
    numbers = {"rax": 0, "rcx": 1, "rdx": 2, "rbx": 3, "rsi": 6}
    return b"".join(
        struct.pack("<BBQ", 0x48, 0xB8 + numbers[name], value) for name, value in registers.items()
    )


def run(code: bytes, *, paging: PagingMode = PagingMode.NESTED, ring: int = 0) -> VirtualMachine:
    """Run ``code`` in 64-bit mode until it loops; the VM, stopped."""
    vm = VirtualMachine(Machine("16M"), memory="4M", paging=paging)
    image = code
    if ring == 3:
        to_user = (
            b"\x6a\x23"  # push SS, RSP, RFLAGS, CS, RIP; iretq
            + b"\x68" + struct.pack("<I", USER_CODE)
            + b"\x6a\x02\x6a\x2b"
            + b"\x68" + struct.pack("<I", USER_CODE)
            + b"\x48\xcf"
        )  # fmt: skip
        image = to_user.ljust(USER_CODE - ENTRY, b"\xf4") + code
    vm.load(image, protocol=Protocol.FLAT)
    if ring == 3:
        _allow_user(vm)
    vm.run_quantum(1_000_000)
    return vm


def _allow_user(vm: VirtualMachine) -> None:
    """Tables that map the first 2 MiB twice over for ring 3 too, and descriptors for it."""
    for table in range(2):
        entry = TABLES + (table + 1) * 0x1000 | 7
        vm.vmm.write_physical(TABLES + table * 0x1000, struct.pack("<Q", entry))
    vm.vmm.write_physical(TABLES + 0x2000, struct.pack("<QQ", 0x87, 0x200087))
    descriptors = (
        0, 0x00AF9B000000FFFF, 0x00CF93000000FFFF, 0, 0x00CFF3000000FFFF, 0x00AFFB000000FFFF
    )  # fmt: skip
    vm.vmm.write_physical(GDT, struct.pack("<6Q", *descriptors))
    gdtr = vm.processor.segment("gdtr")
    vm.processor.set_segment("gdtr", type(gdtr)(0, GDT, 47, 0))
    vm.processor.set("cr3", TABLES)
    vm.processor.set("rsp", USER_CODE)


def backdoor_call(command: int, *, instruction: bytes = IN) -> bytes:
    high = 0x1234_5678 << 32
    code = load(
        rax=high | BACKDOOR_MAGIC, rcx=high | command, rdx=PORT_BACKDOOR, rbx=0xFFFF_FFFF, rsi=99
    )
    return code + instruction + FOREVER


def registers(vm: VirtualMachine) -> dict[str, int]:
    return {name: vm.processor.get(name) for name in ("rax", "rbx", "rcx", "rdx", "rsi")}


@pytest.mark.parametrize("paging", MODES)
@pytest.mark.parametrize("instruction", [IN, REX_IN])
def test_what_linux_asks(paging: PagingMode, instruction: bytes) -> None:
    """GETVERSION must give its magic back in EBX, GETHZ the frequencies of this machine."""
    with run(backdoor_call(10, instruction=instruction), paging=paging) as vm:
        found = registers(vm)
        assert (found["rax"], found["rbx"], found["rsi"]) == (6, BACKDOOR_MAGIC, 99)
        code = backdoor_call(10, instruction=instruction)
        assert vm.processor.get("rip") == ENTRY + len(code) - len(FOREVER)
    with run(backdoor_call(45), paging=paging) as vm:
        found = registers(vm)
        assert (found["rax"], found["rbx"], found["rcx"]) == (1_000_000_000, 0, 1_000_000_000)


def test_vcpu_information() -> None:
    assert backdoor(68).eax & (1 << 31 | 1 << 3) == 0


@pytest.mark.parametrize("command", [0, 9, 39, 41, 91, 0xFFFF])
def test_other_commands_are_not_available(command: int) -> None:
    with run(backdoor_call(command)) as vm:
        found = registers(vm)
        assert found["rax"] == NOT_AVAILABLE
        assert found["rbx"] == 0xFFFF_FFFF
        assert found["rcx"] & 0xFFFF == command


@pytest.mark.parametrize("port", [PORT_BACKDOOR, PORT_BALLOON])
@pytest.mark.parametrize(
    ("magic", "instruction", "value"),
    [
        (BACKDOOR_MAGIC ^ 1, IN, 0xFFFF_FFFF),
        (BALLOON_MAGIC ^ 1, IN, 0xFFFF_FFFF),
        (None, IN_16, None),
        (None, b"\xec", None),
    ],
)
def test_without_the_magic_or_at_another_width_nothing_is_there(
    port: int, magic: int | None, instruction: bytes, value: int | None
) -> None:
    own = BACKDOOR_MAGIC if port == PORT_BACKDOOR else BALLOON_MAGIC
    rax = own if magic is None else magic
    code = load(rax=rax, rcx=10, rdx=port, rbx=5, rsi=6) + instruction + FOREVER
    with run(code) as vm:
        found = registers(vm)
        width = {IN: 32, IN_16: 16, b"\xec": 8}[instruction]
        mask = (1 << width) - 1
        assert found["rax"] == (value if value is not None else rax | mask)
        assert (found["rbx"], found["rcx"], found["rsi"]) == (5, 10, 6)
        assert vm.balloon.starts == 0


@pytest.mark.parametrize("paging", MODES)
def test_what_follows_in_the_same_block_happens_once_and_afterwards(paging: PagingMode) -> None:
    """The engine runs on to the end of the block before the call is made."""
    code = (
        load(rax=BACKDOOR_MAGIC, rcx=10, rdx=PORT_BACKDOOR, rbx=0, rsi=0)
        + IN
        + b"\x48\xff\xc6"  # inc rsi
        + b"\x48\x01\xc6"  # add rsi, rax
        + b"\x56"  # push rsi
        + FOREVER
    )
    with run(code, paging=paging) as vm:
        assert registers(vm)["rsi"] == 7
        pushed = vm.vmm.read_physical(vm.processor.get("rsp"), 8)
        assert pushed == struct.pack("<Q", 7)


@pytest.mark.parametrize("paging", MODES)
def test_ring_3_may_use_the_backdoor_but_not_the_balloon(paging: PagingMode) -> None:
    with run(backdoor_call(10), paging=paging, ring=3) as vm:
        assert vm.processor.privilege_level == 3
        assert registers(vm)["rbx"] == BACKDOOR_MAGIC
        assert vm.outcome is None
    start = load(rax=BALLOON_MAGIC, rcx=0, rdx=PORT_BALLOON, rbx=0x3E, rsi=0) + IN + FOREVER
    with run(start, paging=paging, ring=3) as vm:  # #GP, and no handler
        assert vm.outcome is not None
        assert vm.outcome.reason is EndReason.TRIPLE_FAULT
        assert vm.balloon.starts == 0
    with run(start, paging=paging) as vm:
        assert vm.balloon.connected
        assert registers(vm)["rax"] == 0x0300_0000
        assert registers(vm)["rcx"] == 0x2E


def cpuid(leaf: int) -> tuple[int, int, int, int]:
    with run(load(rax=leaf, rcx=0) + CPUID + FOREVER) as vm:
        found = registers(vm)
        return found["rax"], found["rbx"], found["rcx"], found["rdx"]


def test_cpuid_names_vmware_and_this_hypervisor() -> None:
    assert cpuid(1)[2] >> 31 == 1
    last, *words = cpuid(0x4000_0000)
    assert struct.pack("<3I", *words) == b"VMwareVMware"
    assert last == 0x4000_0010
    # ECX bits 0 and 1 would announce vmmcall and vmcall, which Linux would then use.
    assert cpuid(0x4000_0010) == (1_000_000, 1_000_000, 0, 0)
    last, *words = cpuid(0x4000_0100)
    assert struct.pack("<3I", *words) == b"memvirt VMM "
    assert last == 0x4000_0100
