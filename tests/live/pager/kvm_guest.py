# SPDX-License-Identifier: Apache-2.0
"""A tiny 64-bit guest on /dev/kvm, in memory that somebody else provides (standard library only).

It walks over all data pages in ring 3, adding up their first words and adding one to each, and ends
with an INT 3 whose handler in ring 0 writes to a port. Formats: Linux's include/uapi/linux/kvm.h;
Intel SDM vol. 3, chapters 4 (paging), 6 (IDT), 8 (TSS).
"""

import contextlib
import fcntl
import mmap
import os
import struct

PAGE = 4096
FIRST_DATA_PAGE = 16
PML4, PDPT, PD, PT, GDT, TSS, IDT, HANDLER, STACK_TOP, CODE = (
    0x1000, 0x2000, 0x3000, 0x4000, 0x5000, 0x6000, 0x7000, 0x8000, 0xA000, 0xA000,
)  # fmt: skip
PRESENT_WRITABLE_USER = 7
BREAKPOINT = 3
CREATE_VM, CREATE_VCPU, RUN, VCPU_MMAP_SIZE, SET_TSS_ADDR = 0xAE01, 0xAE41, 0xAE80, 0xAE04, 0xAE47
SET_MEMORY, SET_REGS, GET_REGS = 0x4020AE46, 0x4090AE82, 0x8090AE81
SET_SREGS, GET_SREGS, GET_CPUID, SET_CPUID = 0x4138AE84, 0x8138AE83, 0xC008AE05, 0x4008AE90
EXIT_IO = 2
REGISTERS = (
    "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp", "r8", "r9", "r10", "r11", "r12", "r13",
    "r14", "r15", "rip", "rflags",
)  # fmt: skip
# again: mov rax,[rsi]; add rbx,rax; inc qword [rsi]; add rsi,4096; dec r8; jnz again; int 3
PROGRAM = bytes.fromhex("488b06 4801c3 48ff06 4881c600100000 49ffc8 75eb cd03")
TELL = bytes.fromhex("e6f0 f4")  # out 0xf0,al; hlt


def segment(selector, kind, dpl, *, system=False, long=False, base=0, limit=0xFFFFFFFF):
    flags = (kind, 1, dpl, int(not long and not system), int(not system), int(long), 1, 0, 0, 0)
    return struct.pack("<QIH10B", base, limit, selector, *flags)


class KvmGuest:
    """The guest; ``memory`` of ``pages`` (at most 512) lies at ``address`` of this process."""

    def __init__(self, memory, address, pages):
        self.memory, self.pages = memory, pages
        self.kvm = os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)
        self.vm = fcntl.ioctl(self.kvm, CREATE_VM, 0)
        with contextlib.suppress(OSError):  # only Intel's processors need it
            fcntl.ioctl(self.vm, SET_TSS_ADDR, 0x3FFBD000)
        slot = struct.pack("<IIQQQ", 0, 0, 0, pages * PAGE, address)
        fcntl.ioctl(self.vm, SET_MEMORY, slot)
        self.vcpu = fcntl.ioctl(self.vm, CREATE_VCPU, 0)
        self.run_area = mmap.mmap(self.vcpu, fcntl.ioctl(self.kvm, VCPU_MMAP_SIZE, 0))
        cpuid = bytearray(struct.pack("<II", 200, 0) + bytes(40 * 200))
        fcntl.ioctl(self.kvm, GET_CPUID, cpuid, True)
        fcntl.ioctl(self.vcpu, SET_CPUID, cpuid)
        self.set_up_memory()

    def word(self, address, value):
        struct.pack_into("<Q", self.memory, address, value)

    def set_up_memory(self):
        for page in range(FIRST_DATA_PAGE):
            self.memory[page * PAGE : (page + 1) * PAGE] = bytes(PAGE)
        for table, entry in ((PML4, PDPT), (PDPT, PD), (PD, PT)):
            self.word(table, entry | PRESENT_WRITABLE_USER)
        for page in range(self.pages):
            self.word(PT + 8 * page, page * PAGE | PRESENT_WRITABLE_USER)
        descriptors = (
            0, 0x00AF9B000000FFFF, 0x00CF93000000FFFF, 0x00AFFB000000FFFF, 0x00CFF3000000FFFF,
            0x00008B0000000067 | TSS << 16, 0,
        )  # fmt: skip
        for number, descriptor in enumerate(descriptors):
            self.word(GDT + 8 * number, descriptor)
        self.word(TSS + 4, STACK_TOP)
        self.word(IDT + 16 * BREAKPOINT, HANDLER | 8 << 16 | 0xEE << 40)
        self.memory[HANDLER : HANDLER + len(TELL)] = TELL
        self.memory[CODE : CODE + len(PROGRAM)] = PROGRAM

    def set_up_processor(self):
        special = bytearray(312)
        fcntl.ioctl(self.vcpu, GET_SREGS, special, True)
        special[0:24] = segment(0x1B, 11, 3, long=True)
        for number in range(1, 6):
            special[24 * number : 24 * number + 24] = segment(0x23, 3, 3)
        special[144:168] = segment(0x28, 11, 0, system=True, base=TSS, limit=0x67)
        special[192:208] = struct.pack("<QHHHH", GDT, 55, 0, 0, 0)
        special[208:224] = struct.pack("<QHHHH", IDT, PAGE - 1, 0, 0, 0)
        cr0, cr4, efer = 0x80050033, 0x20, 0xD01
        struct.pack_into("<QQQQQQ", special, 224, cr0, 0, PML4, cr4, 0, efer)
        fcntl.ioctl(self.vcpu, SET_SREGS, bytes(special))
        start = {"rip": CODE, "rsp": STACK_TOP, "rflags": 2, "rsi": FIRST_DATA_PAGE * PAGE}
        start["r8"] = self.pages - FIRST_DATA_PAGE
        registers = struct.pack("<18Q", *(start.get(name, 0) for name in REGISTERS))
        fcntl.ioctl(self.vcpu, SET_REGS, registers)

    def run(self):
        """One walk over all data pages; the sum of their first words before it."""
        self.set_up_processor()
        fcntl.ioctl(self.vcpu, RUN, 0)
        reason = struct.unpack_from("<I", self.run_area, 8)[0]
        registers = bytearray(144)
        fcntl.ioctl(self.vcpu, GET_REGS, registers, True)
        values = dict(zip(REGISTERS, struct.unpack("<18Q", registers), strict=True))
        if reason != EXIT_IO:
            raise RuntimeError(f"the guest ended with reason {reason} at {values['rip']:#x}")
        return values["rbx"]
