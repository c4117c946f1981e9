# SPDX-License-Identifier: Apache-2.0
"""The processor a VM gets if nobody chooses another.

The processor's kernels are imported when the first one is made: what only describes it waits for no
compiler.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from .processor import Processor, ProcessorError
from .unicorn.library import EngineChoiceError, find_engine

if TYPE_CHECKING:
    from memvirt.platform.pc import Pc
    from memvirt.vmm.monitor import VirtualMachineMonitor

_LARGE = ("on_in", "on_out")  # callbacks


def software_processor(vmm: VirtualMachineMonitor, pc: Pc) -> Processor:
    """The embedded software processor: real x86-64 code, no privileges needed.

    Raises ProcessorError or EngineLayoutError where the installed engine cannot be used.
    """
    from .unicorn.processor import UnicornProcessor  # noqa: PLC0415  compiles kernels

    return UnicornProcessor(vmm, pc)


def processor_code() -> list[Callable[[], object]]:
    """Steps that compile, or load, all that a VM's processor runs; in whatever order they are done.

    First what C calls in it, in the order it is defined; at the end the steps with most parts that
    no other has: ports, and the run loop. So two processes that begin at both ends meet at a small
    one, which they may then both compile.
    """
    from numba import types  # noqa: PLC0415

    from memvirt.compiled import CALLBACKS, compile_ahead  # noqa: PLC0415

    from .unicorn import processor  # noqa: F401, PLC0415  defines them
    from .unicorn.run import run_at  # noqa: PLC0415

    callbacks = sorted(CALLBACKS, key=lambda made: made.function.__name__ in _LARGE)
    steps: list[Callable[[], object]] = [partial(getattr, made, "address") for made in callbacks]
    return [*steps, partial(compile_ahead, run_at, types.int64)]


def describe_processor() -> str:
    """The software processor's engine and whose build of it is used, for people to read.

    Raises ProcessorError where the environment asks for a build that is not there.
    """
    try:
        return str(find_engine())
    except EngineChoiceError as error:
        raise ProcessorError(str(error)) from None
