# SPDX-License-Identifier: Apache-2.0
"""What a QEMU that somebody has taken over may answer, and what it may call itself."""

from __future__ import annotations

import json
import os
import random
from typing import Any

import numpy as np

from memvirt.live.command_line import parse_command_line, parse_properties
from memvirt.live.discovery import monitor_addresses
from memvirt.live.process import Process
from memvirt.live.ram import read_ram_layout
from memvirt.live.vm import read_registers

from .case import Case, Verdict
from .files import refusal
from .mutations import STRANGE_NUMBERS, STRANGE_TEXTS, change_json, change_text

_FLAT = """FlatView #0
 AS "memory", root: system
 AS "cpu-memory-0", root: system
 Root memory region: system
  0000000000000000-000000000009ffff (prio 0, ram): mem0
  00000000000a0000-00000000000bffff (prio 1, i/o): vga-lowmem
  00000000000c0000-00000000003fffff (prio 0, ram): mem0 @00000000000c0000 KVM
  00000000fd000000-00000000fdffffff (prio 1, ram): vga.vram
"""
_REGISTERS = """EAX=00000000 EBX=00000000
RIP=ffffffff81000000 RFL=00000246 [---Z-P-] CPL=0 II=0 A20=1 SMM=0 HLT=1
CR0=80050033 CR2=00007f00 CR3=0000000001234000 CR4=000006f0
EFER=0000000000000d01
"""
_ADDRESS = "Host virtual address for 0x0 (mem0) is 0x{:x}\r\n"
_MEMDEV = [{"id": "mem0", "size": 4 << 20, "merge": True, "share": False}]
_CPUS = [{"cpu-index": 0, "qom-path": "/machine/unattached/device[0]", "thread-id": 7}]
_WORDS = (
    "qemu-system-x86_64", "-name", "guest=a,debug-threads=on", "-m", "size=4G,slots=4", "-qmp",
    "unix:/run/a,server=on,wait=off", "-chardev", "socket,id=m,path=/run/m", "-mon",
    "chardev=m,mode=control", "-object",
    '{"qom-type":"memory-backend-ram","id":"mem0","size":4194304}', "-qmp", "tcp:127.0.0.1:4444",
)  # fmt: skip


def _text(draw: random.Random, good: str) -> str:
    return change_text(draw, good).decode("utf-8", "replace") if draw.random() < 0.5 else good


def _json(draw: random.Random, good: Any) -> Any:
    value = change_json(draw, good) if draw.random() < 0.4 else good
    if isinstance(value, list) and value and draw.random() < 0.4:
        value = [change_json(draw, value[0])]
    return value


def make_live(draw: random.Random) -> Case:
    words = list(_WORDS)
    for _ in range(draw.choice((0, 1, 2, 6))):
        at = draw.randrange(len(words))
        choice = draw.random()
        if choice < 0.3:
            del words[at]
        elif choice < 0.6:
            words[at] = draw.choice(STRANGE_TEXTS + STRANGE_NUMBERS)
        else:
            words[at] = _text(draw, words[at])
    answers = {
        "mtree": _text(draw, _FLAT),
        "registers": _text(draw, _REGISTERS),
        "address": _text(draw, _ADDRESS),
        "memdev": _json(draw, _MEMDEV),
        "cpus": _json(draw, _CPUS),
        "bits": _json(draw, 40),
        "words": words,
    }
    return Case("live", {"answers.json": json.dumps(answers).encode()})


class _Liar:
    """A monitor that answers what the case says."""

    name = "liar"

    def __init__(self, answers: dict[str, Any]) -> None:
        self._answers = answers
        self._room = np.zeros((4 << 20) + 4096, np.uint8)  # its guest's memory, in this process
        self._start = (self._room.ctypes.data + 4095) & ~4095

    def execute(self, command: str, arguments: Any = None, *, timeout: Any = None) -> Any:
        named = {"query-memdev": "memdev", "query-cpus-fast": "cpus", "qom-get": "bits"}
        return self._answers[named[command]] if command in named else {}

    def human(self, line: str, *, cpu_index: int | None = None) -> str:
        if line.startswith("info"):
            return str(self._answers["mtree" if "mtree" in line else "registers"])
        return str(self._answers["address"]).replace("{:x}", f"{self._start:x}")

    def close(self) -> None:
        pass


def run_live(case: Case) -> Verdict:
    """The layout of its memory, its registers, and where its monitor is."""
    answers = json.loads(case.files["answers.json"])
    monitor = _Liar(answers)
    refused = None
    with Process(os.getpid()) as process:
        for read in (
            lambda: read_ram_layout(monitor, process),
            lambda: read_registers(monitor, 0),
            lambda: monitor_addresses(parse_command_line(answers["words"]), process),
            lambda: [parse_properties(word) for word in answers["words"]],
        ):
            try:
                read()
            except Exception as error:
                refused = refusal(error)
                if not refused.good:
                    return refused
    return refused or Verdict(True, "read")
