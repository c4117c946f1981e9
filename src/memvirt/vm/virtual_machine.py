# SPDX-License-Identifier: Apache-2.0
"""A virtual machine: its VMM, its processor and its PC, put together and run.

from memvirt import Machine, VirtualMachine

machine = Machine("256M", scatter_seed=1)
with VirtualMachine(machine, memory="64M", paging="nested") as vm:
    vm.load("kernel.elf", append="workload=fill")
    print(vm.run(timeout=60).reason)
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from types import TracebackType

from memvirt.address import PAGE_BYTES
from memvirt.cpu.debugging import DebugStop
from memvirt.cpu.factory import software_processor
from memvirt.cpu.processor import ExitReason, Processor, ProcessorExit, ProcessorFactory
from memvirt.errors import MemvirtError
from memvirt.machine.memory import MachineMemory, MachineMemoryExhausted
from memvirt.notebook import one_line
from memvirt.platform.backdoor import complete_backdoor
from memvirt.platform.balloon import BalloonDevice, complete_balloon
from memvirt.platform.boot.detect import load_boot_image
from memvirt.platform.boot.fw_cfg_items import fw_cfg_items
from memvirt.platform.boot.image import BootImage
from memvirt.platform.boot.protocol import Protocol, boot_protocol
from memvirt.platform.fw_cfg import ItemBytes, fw_cfg_configure
from memvirt.platform.pc import Pc, new_pc, pc_keyboard_input, pc_serial_input
from memvirt.platform.text_screen import TextScreen, read_screen, text_mode
from memvirt.platform.uart import uart_drain
from memvirt.size import format_size, parse_size
from memvirt.state_record import record_word
from memvirt.vmm.balloon import BalloonedPages
from memvirt.vmm.monitor import PagingMode, VirtualMachineMonitor
from memvirt.vmm.reserve import FramesWanted
from memvirt.vmm.stores.backing import BackingStore, BackingStoreError, PageCorrupted

from .host_time import WATCH, HostCost, share_seconds
from .outcome import EndReason, Outcome
from .paging_choice import paging_mode
from .panic import panic_message
from .start_state import set_start_state

EXIT_SUCCESS = 0x10  # what a guest writes to the debug-exit port when all is well
MAXIMUM_MEMORY = 3 << 30  # above lies the hole for devices
QUANTUM_NS = 10_000_000
SERIAL_LOG_BYTES = 16 << 20  # of what a guest printed last are kept at least, twice that at most
_vm_ids = count(1)


class VirtualMachineError(MemvirtError):
    """A request about a virtual machine that cannot be met; the message says why."""


class VirtualMachine:
    """A VM of ``memory`` bytes of guest-physical memory on ``machine``.

    ``serial`` receives what the guest prints on COM1; ``processor`` makes the processor. Raises
    VirtualMachineError for sizes that cannot be, UnknownName for a paging mode there is not,
    MachineMemoryExhausted if the machine has no room for its tables.
    """

    def __init__(
        self,
        machine: MachineMemory,
        *,
        memory: int | str,
        paging: PagingMode | str = PagingMode.NESTED,
        name: str = "",
        serial: Callable[[bytes], object] | None = None,
        backing: BackingStore | None = None,
        processor: ProcessorFactory = software_processor,
    ) -> None:
        mode = paging_mode(paging)
        self.memory = parse_size(memory, what="guest memory")
        if self.memory > MAXIMUM_MEMORY:
            raise VirtualMachineError(
                f"guest memory is {self.memory >> 20} MiB; at most {MAXIMUM_MEMORY >> 20} MiB "
                "are supported"
            )
        self.vm_id = next(_vm_ids)
        self.name = name or f"vm{self.vm_id}"
        self.machine = machine
        self.vmm = VirtualMachineMonitor(
            machine, self.memory // PAGE_BYTES, mode, vm_id=self.vm_id, backing=backing
        )
        self.balloon = BalloonDevice(BalloonedPages(self.vmm))
        self.serial_log = bytearray()
        self.serial_lost = 0  # bytes printed before those in ``serial_log``
        self._serial = serial
        self.pc: Pc = new_pc(self.memory)
        self._console_bytes = record_word(self.pc, "uart", "output_count")
        try:
            self.processor: Processor = processor(self.vmm, self.pc)
        except BaseException:
            self.vmm.power_off()
            raise
        self._off = False
        self.last_screen: TextScreen | None = None  # what the VGA showed when it was powered off
        self._fw_cfg_items: list[ItemBytes] = []  # the device reads from them
        self.boot_image: BootImage | None = None
        self.outcome: Outcome | None = None
        self.waiting = False
        self.paused = ""
        self.debug_stop: DebugStop | None = None
        self._cost = HostCost()
        self.unfinished = False
        self._quantum_share = 0.0
        self._interrupted = False
        self._stop_wanted = False

    def __enter__(self) -> VirtualMachine:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.power_off()

    def __repr__(self) -> str:
        state = "powered off" if self._off else "on"
        if self.outcome is not None:
            state = f"ended: {self.outcome.reason.name}"
        return (
            f"<VirtualMachine {one_line(self.name)!r}: {format_size(self.memory)}, "
            f"{self.paging.name.lower()} paging, {state}>"
        )

    @property
    def paging(self) -> PagingMode:
        """How the processor translates; it never changes."""
        return self.vmm.paging

    @property
    def virtual_ns(self) -> int:
        """Virtual time since power-on, in nanoseconds."""
        return self.processor.virtual_ns

    @property
    def halted_ns(self) -> int:
        """Virtual time skipped because the processor had nothing to do."""
        return self.processor.halted_ns

    @property
    def host_seconds(self) -> float:
        """Host time spent running this VM."""
        return self._cost.wall_seconds

    @property
    def processor_seconds(self) -> float:
        """Time of the host's processors that its quanta have cost, without compiling."""
        return self._cost.processor_seconds

    # Boot --------------------------------------------------------------------------------------

    def load(
        self,
        image: str | Path | bytes,
        *,
        append: str = "",
        initrd: str | Path | bytes = b"",
        protocol: Protocol | str = Protocol.AUTO,
    ) -> BootImage:
        """Load a kernel image and set the processor to its entry point.

        ``protocol`` is a Protocol or its value, such as "flat". Raises BootError for an image that
        cannot be started, UnknownName for a protocol there is not.
        """
        loaded = load_boot_image(
            image,
            memory_bytes=self.memory,
            command_line=append,
            initrd=initrd,
            protocol=boot_protocol(protocol),
        )
        for segment in loaded.segments:
            self.vmm.write_physical(segment.gpa, segment.data)
        self._fw_cfg_items = fw_cfg_configure(self.pc[0].fw_cfg, fw_cfg_items(loaded, self.memory))
        set_start_state(self.processor, loaded.registers)
        self.boot_image = loaded
        return loaded

    # Running -----------------------------------------------------------------------------------

    def run(
        self,
        *,
        timeout: float | None = None,
        on_quantum: Callable[[VirtualMachine], object] | None = None,
    ) -> Outcome:
        """Run until the guest ends, dies, or ``timeout`` host seconds are over.

        ``on_quantum`` is called between quanta, and within one that costs the host much, with the
        processor stopped: the place to move, unmap and share pages, or to look around.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while self.outcome is None:
            if self.unfinished:
                self.resume_quantum()
            else:
                self.run_quantum()
            if self.outcome is None and on_quantum is not None:
                on_quantum(self)
            if deadline is not None and self.outcome is None and time.monotonic() >= deadline:
                self._end(EndReason.TIMEOUT, f"no verdict within {timeout:g} seconds")
        return self.outcome

    def run_quantum(
        self, nanoseconds: int = QUANTUM_NS, *, share: float | None = None
    ) -> Outcome | None:
        """Run for ``nanoseconds`` of virtual time; the outcome if the VM ended, else None.

        Time is charged by blocks of code, before they run. A block that would end after the quantum
        waits for the next, unless it has waited a few times already: so every guest comes on, by a
        block every few quanta, however short they are (a block takes 1,024 ns at most).

        A managed VM may stop early: ``waiting`` for frames, or ``paused`` with the reason why a
        page cannot be had now; a debugged one (``processor.debugging``) with ``debug_stop``. Every
        VM may, ``unfinished``, when its quantum has cost the host too much (``host_time``): more
        than ``share`` seconds of a processor, ``share_seconds`` if it is not given. Then
        ``resume_quantum`` goes on with what is left of the quantum. Raises ValueError for one below
        1 ns.
        """
        if nanoseconds < 1:
            raise ValueError(f"a quantum of {nanoseconds} ns; it must be 1 ns or more")
        self.processor.set_quantum(nanoseconds)
        self._quantum_share = share_seconds(nanoseconds)
        return self.resume_quantum(share=share)

    def resume_quantum(self, *, share: float | None = None) -> Outcome | None:
        """Go on to the end of the quantum begun last; ``share`` as for ``run_quantum``."""
        self.waiting, self.paused, self.unfinished = False, "", False
        self.debug_stop = None
        if self.outcome is not None:
            return self.outcome
        if self._off:
            raise VirtualMachineError(f"{self.name} is powered off: it cannot run any more")
        try:
            with WATCH.quantum(self, self._quantum_share if share is None else share, self._cost):
                self._run_quantum()
        except FramesWanted:
            self.waiting = True
        except BackingStoreError as error:
            self.paused = str(error)
        except PageCorrupted as error:
            self._end(EndReason.PAGE_LOST, str(error))
        except MachineMemoryExhausted as error:
            self._end(EndReason.OUT_OF_MEMORY, str(error))
        return self.outcome

    def _run_quantum(self) -> None:
        while self.outcome is None:
            left = self.processor.run()
            self._drain_serial()
            if not self._handle(left):
                break

    def interrupt_quantum(self) -> None:
        """Let the quantum that runs stop early, ``unfinished``. May be called from any thread."""
        self._interrupted = True
        self.processor.request_stop()

    def request_stop(self) -> None:
        """Let the quantum that runs be the VM's end. May be called from any thread."""
        self._stop_wanted = True
        self.processor.request_stop()

    def _handle(self, left: ProcessorExit) -> bool:
        """Do what the processor left for Python; False at the end of the quantum."""
        reason = left.reason
        if reason is ExitReason.NEED_FRAMES:
            self.vmm.reserve.refill()
        elif reason is ExitReason.NEED_PAGE:
            self.vmm.bring_back(left.ppn, write=left.write)
        elif reason is ExitReason.DEVICE:
            self._handle_device()
        elif reason in (ExitReason.BACKDOOR, ExitReason.BALLOON):
            self._handle_call(left)
        elif reason in (ExitReason.QUANTUM_END, ExitReason.DEBUG):
            self.debug_stop = left.debug
            return False
        elif reason is ExitReason.STOP_REQUESTED:
            self.unfinished = self._interrupted and not self._stop_wanted
            self._interrupted = False
            if not self.unfinished:
                self._end(EndReason.STOPPED, "")
            return False
        elif reason is ExitReason.HALTED:
            return self._handle_halt()
        elif reason is ExitReason.TRIPLE_FAULT:
            self._end(EndReason.TRIPLE_FAULT, left.detail)
        elif reason is ExitReason.NO_FIRMWARE:
            what = f"int {left.vector:#x} in real mode, and there is no BIOS"
            self._end(EndReason.NO_FIRMWARE, what)
        elif reason is ExitReason.MISCONFIGURED:
            self._end(EndReason.MISCONFIGURED, left.detail)
        else:
            self._end(EndReason.ENGINE_ERROR, left.detail)
        return True

    def _handle_call(self, left: ProcessorExit) -> None:
        """Complete an IN that is a call to the hypervisor."""
        processor = self.processor
        if left.reason is ExitReason.BACKDOOR:
            complete_backdoor(processor)
        else:
            complete_balloon(self.balloon, processor, wide=processor.in_64_bit_code)
        processor.set("rip", processor.get("rip") + left.instruction_bytes)

    def _handle_device(self) -> None:
        requests = self.pc[0].control
        if requests.exit_requested:
            value = int(requests.exit_value)
            good = value == self.success_code
            self._end(EndReason.SUCCESS if good else EndReason.FAILURE, f"exit value {value:#x}")
        elif requests.poweroff_requested:
            self._end(EndReason.POWER_OFF, "")
        elif requests.reset_requested:
            panic = panic_message(self.serial_log)
            self._end(EndReason.PANIC if panic else EndReason.RESET, panic)
        # Else the console was full. It is drained now, and the guest's write happens again.

    def _handle_halt(self) -> bool:
        """Halted for good, unless input may come: then let the quantum's time pass."""
        if not self.processor.interrupts_enabled or not self.wakes_on_input:
            self._end(EndReason.HALTED, "")
            return True
        self.processor.end_quantum()
        return False

    # Whether input may wake a halted guest. Who sets it waits for it between quanta, as no VM does.
    wakes_on_input = False

    success_code = EXIT_SUCCESS
    """What the guest writes to the debug-exit port when all is well."""

    def _drain_serial(self) -> None:
        if self._console_bytes[0]:
            data = uart_drain(self.pc[0].uart)
            self.serial_log += data
            if len(self.serial_log) > 2 * SERIAL_LOG_BYTES:
                self.serial_lost += len(self.serial_log) - SERIAL_LOG_BYTES
                del self.serial_log[:-SERIAL_LOG_BYTES]
            if self._serial is not None:
                self._serial(data)

    def type(self, data: bytes) -> int:
        """Type ``data`` on the serial console; returns the number of bytes accepted."""
        return int(pc_serial_input(self.pc[0], data))

    def press(self, typed: bytes) -> int:
        """Press the keys (US layout) a terminal sends as ``typed``; returns the bytes taken."""
        return pc_keyboard_input(self.pc[0], typed)

    @property
    def display(self) -> TextScreen | None:
        """What the VGA shows now, the processor stopped; None in a graphics mode.

        Read wherever its pages are; nothing changes. Raises VirtualMachineError if it is powered
        off, BackingStoreError or PageCorrupted for a page that cannot be read.
        """
        if self._off:
            raise VirtualMachineError(f"{self.name} is powered off: it shows nothing")
        mode = text_mode(self.pc[0].vga)
        return None if mode is None else read_screen(mode, self.vmm.read_page, self.vmm.pmap.pages)

    def _end(self, reason: EndReason, detail: str) -> None:
        requests = self.pc[0].control
        self.outcome = Outcome(
            reason=reason,
            exit_value=int(requests.exit_value) if requests.exit_requested else None,
            detail=detail,
            virtual_seconds=self.virtual_ns / 1e9,
            host_seconds=self.host_seconds,
        )

    def stop(self, reason: EndReason = EndReason.STOPPED, detail: str = "") -> None:
        """End the VM from outside, its processor stopped already."""
        if self.outcome is None:
            self._end(reason, detail)

    def power_off(self) -> None:
        """Stop the VM and give all its frames back. Calling again does nothing."""
        if not self._off:
            with contextlib.suppress(BackingStoreError, PageCorrupted):
                self.last_screen = self.display
        self._off = True
        self.processor.close()
        self.vmm.power_off()
