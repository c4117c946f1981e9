# SPDX-License-Identifier: Apache-2.0
"""A process that plays a VMM which hands its userfaultfd over.

usage: toy_vmm.py firecracker|cloud-hypervisor SOCKET PAGES

Needs the standard library only. Commands on standard input, one line of answer each:

    read PAGE             the first 8 bytes of the page, as a number
    sum                   the sum of the first words of all pages
    write PAGE VALUE      "ok"
    discard PAGE COUNT    madvise(MADV_DONTNEED), and a hole in the memfd; "ok"
    hand-off              again; "ok" once the pager has answered (cloud-hypervisor)
    add                   register one more region and say so; the first word of its first page
    kvm                   make a guest on /dev/kvm in this memory (kvm_guest.py); "ok"
    run                   run that guest; the sum it found
"""

import ctypes
import fcntl
import json
import mmap
import os
import socket
import struct
import sys

import kvm_guest

PAGE = 4096
SYS_USERFAULTFD = 323
EVENT_REMOVE, MISSING_SHMEM, WP_SHMEM = 1 << 3, 1 << 5, 1 << 12
API, REGISTER = 0xC018AA3F, 0xC020AA00

libc = ctypes.CDLL(None, use_errno=True)
libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long]


def address_of(memory):
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


class ToyVmm:
    def __init__(self, dialect, path, pages):
        self.shared = dialect == "cloud-hypervisor"
        self.path, self.pages = path, pages
        self.memfd = -1
        self.connection = None
        self.memory = self.map(pages)
        self.start = address_of(self.memory)
        if self.shared:
            for page in range(pages):
                struct.pack_into("<Q", self.memory, page * PAGE, page * 7 + 1)
        self.faults = libc.syscall(SYS_USERFAULTFD, os.O_CLOEXEC | os.O_NONBLOCK)
        features = MISSING_SHMEM | WP_SHMEM if self.shared else EVENT_REMOVE
        fcntl.ioctl(self.faults, API, bytearray(struct.pack("<QQQ", 0xAA, features, 0)), True)
        self.register(self.start, pages)
        self.hand_off()

    def map(self, pages):
        if not self.shared:
            return mmap.mmap(-1, pages * PAGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.memfd = os.memfd_create("ram")
        os.ftruncate(self.memfd, pages * PAGE)
        return mmap.mmap(self.memfd, pages * PAGE)

    def register(self, start, pages):
        mode = 3 if self.shared else 1
        message = bytearray(struct.pack("<QQQQ", start, pages * PAGE, mode, 0))
        fcntl.ioctl(self.faults, REGISTER, message, True)

    def hand_off(self):
        if self.connection is not None:
            self.connection.close()
        self.connection = socket.socket(socket.AF_UNIX)
        self.connection.connect(self.path)
        size = self.pages * PAGE
        if not self.shared:
            region = {"base_host_virt_addr": self.start, "size": size, "offset": 0}
            region |= {"page_size": PAGE, "page_size_kib": PAGE}
            self.send(json.dumps([region]).encode(), descriptor=True)
            return
        region = {"guest_phys_addr": 0, "host_virt_addr": self.start, "size": size}
        region["backing_file_offset"] = 0
        body = {"type": "handoff", "version": 0, "vmm_pid": os.getpid(), "mode": "MISSING|WP"}
        self.send_frame(body | {"regions": [region]}, descriptor=True)
        assert self.connection.recv(1)

    def send_frame(self, body, descriptor=False):
        data = json.dumps(body).encode()
        self.send(struct.pack("<I", len(data)) + data, descriptor)

    def send(self, data, descriptor=False):
        rights = struct.pack("i", self.faults)
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)] if descriptor else []
        self.connection.sendmsg([data], ancillary)

    def word(self, page):
        return struct.unpack_from("<Q", self.memory, page * PAGE)[0]

    def discard(self, page, count):
        if self.shared:
            libc.fallocate(self.memfd, 3, page * PAGE, count * PAGE)
        libc.madvise(self.start + page * PAGE, count * PAGE, 4)
        return "ok"

    def add(self):
        self.more = self.map_more()
        start = address_of(self.more)
        self.register(start, 4)
        region = {"guest_phys_addr": 1 << 32, "host_virt_addr": start, "size": 4 * PAGE}
        region["backing_file_offset"] = 0
        self.send_frame({"type": "add_region", "region": region})
        assert self.connection.recv(1)
        return struct.unpack_from("<Q", self.more, 0)[0]

    def map_more(self):
        memfd = os.memfd_create("more")
        os.ftruncate(memfd, 4 * PAGE)
        return mmap.mmap(memfd, 4 * PAGE)

    def command(self, words):
        if words[0] == "read":
            return self.word(int(words[1]))
        if words[0] == "sum":
            return sum(self.word(page) for page in range(self.pages))
        if words[0] == "write":
            struct.pack_into("<Q", self.memory, int(words[1]) * PAGE, int(words[2]))
            return "ok"
        if words[0] == "discard":
            return self.discard(int(words[1]), int(words[2]))
        if words[0] == "hand-off":
            self.hand_off()
            return "ok"
        if words[0] == "add":
            return self.add()
        if words[0] == "kvm":
            self.guest = kvm_guest.KvmGuest(self.memory, self.start, self.pages)
            return "ok"
        if words[0] == "run":
            return self.guest.run()
        raise ValueError(words)


def main():
    vmm = ToyVmm(sys.argv[1], sys.argv[2], int(sys.argv[3]))
    print("ready", flush=True)
    for line in sys.stdin:
        print(vmm.command(line.split()), flush=True)


main()
