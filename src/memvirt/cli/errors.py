# SPDX-License-Identifier: Apache-2.0
"""A user's mistake is one clear line and exit status 2, never a traceback."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

from memvirt.cpu.processor import ProcessorError
from memvirt.host.state_directory import StateDirectoryError
from memvirt.live.errors import LiveError
from memvirt.machine.memory import MachineMemoryExhausted
from memvirt.names import UnknownName
from memvirt.observe.snapshot import SnapshotError
from memvirt.output_file import OutputFileError
from memvirt.plan.dumps.dump import DumpError
from memvirt.plan.executor import SchedulerError
from memvirt.plan.findings import PlanDataError
from memvirt.plan.question import QuestionError
from memvirt.plan.units import AmountError
from memvirt.platform.boot.image import BootError
from memvirt.scenario.scenario import ScenarioError
from memvirt.size import SizeError
from memvirt.vm.virtual_machine import VirtualMachineError
from memvirt.vmkernel.admission import AdmissionError
from memvirt.vmm.stores.swap_file import SwapSpaceError

USAGE = 2
INTERRUPTED = 130
_MISTAKES = (
    BootError,
    SizeError,
    ProcessorError,
    VirtualMachineError,
    ScenarioError,
    SnapshotError,
    MachineMemoryExhausted,
    AdmissionError,
    SwapSpaceError,
    StateDirectoryError,
    OutputFileError,
    UnknownName,
    ProcessorError,
    LiveError,
    PlanDataError,
    DumpError,
    QuestionError,
    AmountError,
    SchedulerError,
)


class UsageError(Exception):
    """A command line that cannot be carried out; the message is one line."""


@contextlib.contextmanager
def planning_tools() -> Iterator[None]:
    """Import what planning needs inside the block; say how to install it if it is not there."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise UsageError(
            f"{error.name} is not installed; planning needs it: pip install 'memvirt[plan]'"
        ) from error


@contextlib.contextmanager
def user_errors() -> Iterator[None]:
    """Report a user's mistake inside the block and exit with status 2; 130 after Ctrl-C."""
    try:
        yield
    except KeyboardInterrupt:
        print("memvirt: interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except (*_MISTAKES, UsageError) as error:
        print(f"memvirt: {error}", file=sys.stderr)
        sys.exit(USAGE)
    except OSError as error:
        if error.filename is None:
            raise
        print(f"memvirt: {error.filename}: {error.strerror}", file=sys.stderr)
        sys.exit(USAGE)
