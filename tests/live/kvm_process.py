# SPDX-License-Identifier: Apache-2.0
"""A process with a tiny guest under KVM in private memory, as QEMU has it.

usage: kvm_process.py PAGES

Needs the standard library only. Prints the address of its memory once the guest has run, or "no
guest:" and why it cannot; then answers commands on standard
input with one line each:

    run     the guest walks over all its data pages once; "ran"
    spin    again and again, until the next line comes; "spun"
"""

import ctypes
import mmap
import select
import sys

from pager import kvm_guest

PAGE = 4096


def main():
    pages = int(sys.argv[1])
    memory = mmap.mmap(-1, pages * PAGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_NOHUGEPAGE)
    memory[:] = bytes(range(256)) * (pages * PAGE // 256)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    try:
        guest = kvm_guest.KvmGuest(memory, address, pages)
        guest.run()
    except (OSError, RuntimeError) as error:
        print(f"no guest: {error}", flush=True)
        return
    print(address, flush=True)
    for line in sys.stdin:
        guest.run()
        while line.strip() == "spin" and not select.select([sys.stdin], [], [], 0)[0]:
            guest.run()
        print("spun" if line.strip() == "spin" else "ran", flush=True)


main()
