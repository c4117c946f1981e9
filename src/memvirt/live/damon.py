# SPDX-License-Identifier: Apache-2.0
"""DAMON's physical-address mode: which of a set of frames are touched during an interval.

Each frame is a region of its own, so that DAMON's answer is exact for it. The kernel looks at the
accessed bits of all mappings of a frame, a hypervisor's second-level tables included: what a guest
under KVM touches is seen. A frame inside a large page of the host counts as touched if any part of
that large page is.

Source: Documentation/admin-guide/mm/damon/usage.rst (Linux 6.2 and later for ``tried_regions``).

The host has one DAMON. It is used only while nobody else does, and given back as it was found: also
after a crash, by the next user of this module, who finds the note of a process that is gone.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from .errors import KernelFeatureMissing, LiveError

ADMIN = Path("/sys/kernel/mm/damon/admin")
NOTE = Path("/run/memvirt-damon.json")
SAMPLE_MICROSECONDS = 100_000  # between two looks at a frame; 5 ms was found to go wrong
_NEVER = 10**9  # microseconds between updates of regions; also tells ours from others'
_BEFORE_END_SECONDS = 0.4
_LARGEST = (1 << 63) - 1


class DamonBusy(LiveError):
    """Somebody else on this host uses DAMON."""


def damon_problem(admin: Path = ADMIN) -> str:
    """Why DAMON's physical-address mode cannot be used here; "" if it can."""
    if not admin.is_dir():
        return "this kernel has no DAMON sysfs interface (CONFIG_DAMON_SYSFS)"
    if not os.access(admin / "kdamonds" / "nr_kdamonds", os.W_OK):
        return "DAMON needs root"
    return ""


class Damon:
    """The host's DAMON, held exclusively. Use as a context manager, or ``close`` it.

    Raises KernelFeatureMissing, DamonBusy.
    """

    def __init__(self, admin: Path = ADMIN, note: Path = NOTE) -> None:
        if problem := damon_problem(admin):
            raise KernelFeatureMissing(problem)
        self._kdamonds = admin / "kdamonds"
        self._note = note
        self._context = self._kdamonds / "0" / "contexts" / "0"
        self._lock = threading.Lock()
        self._interrupted = threading.Event()
        self._held = False
        self._claim = self._claim_it()
        try:
            self._restore_after_crash()
            count = int((self._kdamonds / "nr_kdamonds").read_text())
            if count:
                raise DamonBusy(
                    f"DAMON is in use on this host ({self._kdamonds}/nr_kdamonds is {count}); "
                    "memvirt does not take it away"
                )
            self._note.write_text(json.dumps({"pid": os.getpid()}))
            self._held = True
            self._prepare()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Damon:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _write(self, path: Path, value: object) -> None:
        path.write_text(str(value))

    def _claim_it(self) -> int:
        """A lock that ends with this process, however that ends. Raises DamonBusy."""
        claim = os.open(self._kdamonds, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(claim)
            raise DamonBusy(
                f"DAMON is used by memvirt already (process {self._owner()})"
            ) from error
        return claim

    def _owner(self) -> str:
        try:
            return str(json.loads(self._note.read_text())["pid"])
        except (OSError, ValueError, KeyError, TypeError):
            return "unknown"

    def _restore_after_crash(self) -> None:
        """The claim was free: a note is of a memvirt that ended without giving DAMON back.

        Unless somebody else has set DAMON up anew since then: theirs stays.
        """
        if self._note.exists():
            with contextlib.suppress(OSError, ValueError):
                intervals = self._context / "monitoring_attrs" / "intervals"
                if int((intervals / "update_us").read_text()) == _NEVER:
                    _stop(self._kdamonds)
            self._note.unlink(missing_ok=True)

    def _prepare(self) -> None:
        self._write(self._kdamonds / "nr_kdamonds", 1)
        self._write(self._kdamonds / "0" / "contexts" / "nr_contexts", 1)
        operations = (self._context / "avail_operations").read_text().split()
        if "paddr" not in operations:
            raise KernelFeatureMissing(
                "this kernel's DAMON has no physical-address mode (CONFIG_DAMON_PADDR)"
            )
        self._write(self._context / "operations", "paddr")
        self._write(self._context / "monitoring_attrs" / "intervals" / "update_us", _NEVER)
        self._write(self._context / "targets" / "nr_targets", 1)
        self._write(self._context / "schemes" / "nr_schemes", 1)
        scheme = self._context / "schemes" / "0"
        self._write(scheme / "action", "stat")
        for what in ("sz", "nr_accesses", "age"):
            self._write(scheme / "access_pattern" / what / "min", 0)
            # The kernel's types: unsigned long for sizes, unsigned int for the others.
            self._write(
                scheme / "access_pattern" / what / "max", _LARGEST if what == "sz" else 2**31 - 1
            )

    def touched(self, mpns: Sequence[int], seconds: float) -> dict[int, bool]:
        """Watch frames for ``seconds`` (a second at least) and say of each whether it was touched.

        Waits that long. Frames DAMON did not report are left out: of them nothing is known.
        Raises LiveError if DAMON stops meanwhile.
        """
        seconds = max(seconds, 1.0)
        frames = sorted(set(mpns))
        if not frames:
            return {}
        with self._lock:
            if not self._held:
                raise LiveError("DAMON has been given back already")
            self._set_up(frames, seconds)
            self._write(self._kdamonds / "0" / "state", "on")
            try:
                # The next write waits, with DAMON locked, until the scheme is applied at the end of
                # the aggregation interval; so it comes late, and waiting can be interrupted.
                if self._interrupted.wait(seconds - _BEFORE_END_SECONDS):
                    raise LiveError("DAMON was interrupted")
                self._write(self._kdamonds / "0" / "state", "update_schemes_tried_regions")
                return dict(self._collect(set(frames)))
            except OSError as error:
                raise LiveError(f"DAMON gave no answer: {error}") from error
            finally:
                with contextlib.suppress(OSError):
                    self._write(self._kdamonds / "0" / "state", "off")

    def _set_up(self, frames: Sequence[int], seconds: float) -> None:
        intervals = self._context / "monitoring_attrs" / "intervals"
        self._write(intervals / "aggr_us", int(seconds * 1e6))
        self._write(intervals / "sample_us", SAMPLE_MICROSECONDS)
        bounds = self._context / "monitoring_attrs" / "nr_regions"
        self._write(bounds / "max", max(20, 2 * len(frames)))
        self._write(bounds / "min", max(10, len(frames)))
        regions = self._context / "targets" / "0" / "regions"
        self._write(regions / "nr_regions", len(frames))
        for number, frame in enumerate(frames):
            self._write(regions / str(number) / "start", frame << 12)
            self._write(regions / str(number) / "end", (frame + 1) << 12)

    def _collect(self, wanted: set[int]) -> Iterator[tuple[int, bool]]:
        regions = self._context / "schemes" / "0" / "tried_regions"
        for entry in os.scandir(regions):
            if not entry.name.isdigit():
                continue
            region = Path(entry.path)
            start = int((region / "start").read_text()) >> 12
            end = int((region / "end").read_text()) >> 12
            accesses = int((region / "nr_accesses").read_text())
            for frame in range(start, end):
                if frame in wanted:
                    yield frame, accesses > 0

    def cpu_seconds(self) -> float:
        """Processor time of the kernel's thread so far; 0 while it does not run."""
        try:
            pid = int((self._kdamonds / "0" / "pid").read_text())
            fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        except (OSError, ValueError):
            return 0.0
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def interrupt(self) -> None:
        """Make a ``touched`` that waits in another thread end soon, with an error."""
        self._interrupted.set()

    def close(self) -> None:
        """Give DAMON back as it was found; may be called again."""
        if self._held:
            self.interrupt()
            with self._lock:
                _stop(self._kdamonds)
                self._note.unlink(missing_ok=True)
                self._held = False
        if self._claim >= 0:
            os.close(self._claim)
            self._claim = -1


def _stop(kdamonds: Path) -> None:
    with contextlib.suppress(OSError):
        (kdamonds / "0" / "state").write_text("off")
    for _ in range(100):  # the kernel refuses while its thread still ends
        try:
            (kdamonds / "nr_kdamonds").write_text("0")
            return
        except OSError:
            time.sleep(0.02)
    raise LiveError(f"DAMON cannot be stopped: write 0 to {kdamonds}/nr_kdamonds")
