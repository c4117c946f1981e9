# SPDX-License-Identifier: Apache-2.0
"""Run one system call inside another process, by ptrace (ptrace(2), x86-64 only).

A thread of the process is seized and stopped, its registers are set to the call's and the
instruction pointer to a SYSCALL instruction of its C library; after one step the result is read
and the registers are put back, so that a system call the stop interrupted is restarted by the
kernel as after any signal. The thread stands still for a few milliseconds.

If *we* are killed by SIGKILL in those milliseconds the thread runs on with foreign registers. All
other signals are held back meanwhile.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import signal
import time
from collections.abc import Iterator
from pathlib import Path

_SEIZE, _INTERRUPT, _GETREGS, _SETREGS, _SINGLESTEP, _DETACH = 0x4206, 0x4207, 12, 13, 9, 17
_WAIT_ALL = 0x40000000  # __WALL: threads as well as processes
_STOP_DEADLINE = 2.0  # seconds for a thread to stop; one in an uninterruptible wait never does
_SYSCALL_INSTRUCTION = b"\x0f\x05"  # Intel SDM vol. 2B, SYSCALL
# struct user_regs_struct of <sys/user.h>
_REGISTERS = (
    "r15", "r14", "r13", "r12", "rbp", "rbx", "r11", "r10", "r9", "r8", "rax", "rcx", "rdx", "rsi",
    "rdi", "orig_rax", "rip", "cs", "eflags", "rsp", "ss", "fs_base", "gs_base", "ds", "es", "fs",
    "gs",
)  # fmt: skip
_ARGUMENTS = ("rdi", "rsi", "rdx", "r10", "r8", "r9")

SYS_CLOSE = 3
SYS_IOCTL = 16
SYS_USERFAULTFD = 323

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.restype = ctypes.c_long
_libc.ptrace.argtypes = [ctypes.c_long] * 4


class InjectionError(Exception):
    """The process cannot be made to run a system call; the message says why."""


def _ptrace(request: int, thread: int, address: int = 0, data: int = 0) -> None:
    if _libc.ptrace(request, thread, address, data) < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _wait_for_stop(thread: int) -> None:
    deadline = time.monotonic() + _STOP_DEADLINE
    while True:
        found, status = os.waitpid(thread, os.WNOHANG | _WAIT_ALL)
        if found == thread:
            if not os.WIFSTOPPED(status):
                raise InjectionError(f"process {thread} ended")
            return
        if time.monotonic() > deadline:
            raise InjectionError(f"process {thread} does not stop; it waits in the kernel")
        time.sleep(0.0002)


def _system_call_instruction(pid: int) -> int:
    """The address of a SYSCALL instruction in the process's C library."""
    with Path(f"/proc/{pid}/maps").open() as maps, Path(f"/proc/{pid}/mem").open("rb", 0) as memory:
        for line in maps:
            fields = line.split()
            if len(fields) < 6 or "x" not in fields[1] or not _is_c_library(fields[5]):
                continue
            start, end = (int(bound, 16) for bound in fields[0].split("-"))
            memory.seek(start)
            found = memory.read(end - start).find(_SYSCALL_INSTRUCTION)
            if found >= 0:
                return start + found
    raise InjectionError(f"process {pid} has no C library with a SYSCALL instruction")


def _is_c_library(path: str) -> bool:
    return Path(path).name.startswith(("libc.so", "libc-", "ld-musl", "libc.musl"))


@contextlib.contextmanager
def _signals_held_back() -> Iterator[None]:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def run_system_call(pid: int, number: int, *arguments: int) -> int:
    """Run one system call in the main thread of ``pid``; returns what it returned.

    A negative result is the call's -errno. Raises InjectionError if the process cannot be traced
    (no right to, another tracer, ended, does not stop).
    """
    if platform.machine() != "x86_64":
        raise InjectionError(f"system calls are injected on x86_64 only, not {platform.machine()}")
    try:
        instruction = _system_call_instruction(pid)
        with _signals_held_back():
            _ptrace(_SEIZE, pid)
            return _run_seized(pid, instruction, number, arguments)
    except FileNotFoundError as error:
        raise InjectionError(f"process {pid} ended") from error
    except OSError as error:
        raise InjectionError(f"process {pid} cannot be traced: {error.strerror}") from error


def _run_seized(pid: int, instruction: int, number: int, arguments: tuple[int, ...]) -> int:
    try:
        _ptrace(_INTERRUPT, pid)
        _wait_for_stop(pid)
        before = (ctypes.c_ulonglong * len(_REGISTERS))()
        _ptrace(_GETREGS, pid, 0, ctypes.addressof(before))
        try:
            values = dict(zip(_ARGUMENTS, arguments, strict=False))
            # orig_rax -1: no interrupted call that the kernel would restart in front of ours.
            values |= {"rax": number, "rip": instruction, "orig_rax": -1}
            during = (ctypes.c_ulonglong * len(_REGISTERS))(*before)
            for name, value in values.items():
                during[_REGISTERS.index(name)] = value & (1 << 64) - 1
            _ptrace(_SETREGS, pid, 0, ctypes.addressof(during))
            _ptrace(_SINGLESTEP, pid)
            _wait_for_stop(pid)
            _ptrace(_GETREGS, pid, 0, ctypes.addressof(during))
        finally:
            with contextlib.suppress(OSError):  # the process ended meanwhile
                _ptrace(_SETREGS, pid, 0, ctypes.addressof(before))
    finally:
        with contextlib.suppress(OSError):
            _ptrace(_DETACH, pid)
    return ctypes.c_longlong(during[_REGISTERS.index("rax")]).value
