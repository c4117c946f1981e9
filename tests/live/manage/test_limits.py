# SPDX-License-Identifier: Apache-2.0
"""The limit of a control group of version 1 as a lever: nobody is killed, and it is put back."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from memvirt.cli.manage import ManageCommand, manage
from memvirt.live.errors import LiveError
from memvirt.live.manage import manager
from memvirt.live.manage.cgroup import MemoryCgroup
from memvirt.live.manage.group_reclaim import GroupReclaim, give_limits_back
from memvirt.live.manage.ledger import Ledger
from memvirt.live.manage.restore import restore_all

from .model import ModelVm

MIB = 256
NONE_V1 = str(0x7FFFFFFFFFFFF000)
HOST = """
[machine]
memory = "240M"
[[vm]]
name = "vm"
memory = "256M"
"""


def plenty() -> int:
    """Pages of free swap."""
    return 1 << 20


class Version1:
    """A group of version 1 with 100 MiB; ``refused``: why its limit cannot be lowered or raised."""

    def __init__(self, root: Path, patch: pytest.MonkeyPatch) -> None:
        directory = root / "memory" / "vm"
        directory.mkdir(parents=True)
        self.limit, self.switch = (
            directory / f"memory.{name}" for name in ("limit_in_bytes", "oom_control")
        )
        self.written: list[tuple[str, str]] = []
        self.lowering = self.raising = 0
        write_text = Path.write_text

        def write(path: Path, text: str, *more: Any) -> int:
            if path == self.limit:
                refused = self.raising if text == NONE_V1 else self.lowering
                if refused:
                    raise OSError(refused, os.strerror(refused))
            if path in (self.limit, self.switch):
                self.written.append((path.name, text))
            if path == self.switch:
                text = f"oom_kill_disable {text}\nunder_oom 0\noom_kill 0\n"
            return write_text(path, text, *more)

        patch.setattr(Path, "write_text", write)
        for file, text in ((self.limit, NONE_V1), (self.switch, "0")):
            file.write_text(text)
        (directory / "memory.usage_in_bytes").write_text(str(100 << 20))
        (directory / "cgroup.procs").write_text("4711\n")
        self.written.clear()
        self.group = MemoryCgroup("vm", root)

    def now(self) -> tuple[str, str]:
        """The limit, and whether its OOM killer is off."""
        return self.limit.read_text(), self.switch.read_text().split()[1]


@pytest.fixture
def version_1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Version1:
    return Version1(tmp_path, monkeypatch)


def test_the_limit_of_version_1_is_as_it_was_also_if_it_cannot_be_lowered(
    tmp_path: Path, version_1: Version1
) -> None:
    vm: Any = ModelVm("vm", 4711, 16)
    with Ledger(tmp_path / "ledger") as ledger:
        lever = GroupReclaim(version_1.group, vm.process, ledger, plenty)
        assert lever.lever == "memory.limit_in_bytes of vm"
        assert lever.impossible == ""
        lever.take(1024 + 256)
        limit, switch = version_1.limit.name, version_1.switch.name
        assert version_1.written == [
            (switch, "1"),  # nobody is killed for the limit
            (limit, str(96 << 20)), (limit, NONE_V1),
            (limit, str(99 << 20)), (limit, NONE_V1),
            (switch, "0"),
        ]  # fmt: skip
        version_1.lowering = errno.EBUSY
        lever.take(256)
        assert version_1.now() == (NONE_V1, "0")
        version_1.lowering = errno.EACCES
        with pytest.raises(PermissionError):
            lever.take(256)
        assert version_1.now() == (NONE_V1, "0")
        assert ledger.record.empty
        version_1.switch.unlink()
        assert lever.impossible == "control group vm has no memory.oom_control"


def test_the_oom_killer_stays_off_as_long_as_a_limit_is_low(
    tmp_path: Path, version_1: Version1
) -> None:
    vm: Any = ModelVm("vm", 4711, 16)
    with Ledger(tmp_path / "ledger") as ledger:
        version_1.raising = errno.EINVAL
        with pytest.raises(OSError, match="Invalid argument"):
            GroupReclaim(version_1.group, vm.process, ledger, plenty).take(256)
        assert version_1.now() == (str(99 << 20), "1")
        said: list[str] = []
        assert not restore_all(ledger, said.append)
        assert said == give_limits_back(ledger) == [
            f"{version_1.limit}: cannot be set back to {NONE_V1}: Invalid argument",
            f"{version_1.switch}: stays as it is: nobody must be killed for a low limit",
        ]  # fmt: skip
        assert version_1.now() == (str(99 << 20), "1")
        version_1.raising = 0
        GroupReclaim(version_1.group, vm.process, ledger, plenty).take(256)
        assert version_1.now() == (NONE_V1, "0")
        assert ledger.record.empty


@pytest.mark.parametrize("restored_by", ["the next manager", "--restore"])
def test_the_limit_of_version_1_is_put_back_before_its_oom_killer_after_a_death(
    restored_by: str, tmp_path: Path, version_1: Version1
) -> None:
    with Ledger(tmp_path / "ledger") as ledger:
        ledger.change_setting(version_1.switch, "1")
        ledger.change_setting(version_1.limit, str(1 << 20))  # here it is killed
    version_1.written.clear()
    said: list[str] = []
    with Ledger(tmp_path / "ledger") as ledger:
        if restored_by == "--restore":
            assert restore_all(ledger, said.append)
        else:
            said = give_limits_back(ledger)
        assert ledger.record.empty
    assert said == [f"{version_1.limit}: {NONE_V1} again", f"{version_1.switch}: 0 again"]
    assert [name for name, _ in version_1.written] == [
        "memory.limit_in_bytes",
        "memory.oom_control",
    ]


def test_no_limit_is_lowered_with_little_free_swap(tmp_path: Path, version_1: Version1) -> None:
    vm: Any = ModelVm("vm", 4711, 16)
    free = 64 * MIB - 1
    with Ledger(tmp_path / "ledger") as ledger:
        lever = GroupReclaim(version_1.group, vm.process, ledger, lambda: free)
        with pytest.raises(LiveError, match=r"vm is left alone: less than 64.0 MiB of swap are"):
            lever.take(1024)
        assert version_1.written == []
        free += 1
        counts = iter((free, free, free - 1))
        lever = GroupReclaim(version_1.group, vm.process, ledger, lambda: next(counts))
        lever.take(4096)
        assert len(version_1.written) == 4  # the first part of four
        assert ledger.record.empty


def test_a_lowered_limit_is_put_back_also_if_nothing_can_be_managed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    limit, broken = tmp_path / "a" / "memory.limit_in_bytes", tmp_path / "memory.limit_in_bytes"
    limit.parent.mkdir()
    limit.write_text(NONE_V1)
    monkeypatch.setenv("MEMVIRT_MANAGE_DIR", str(tmp_path / "ledger"))
    with Ledger() as ledger:
        ledger.record.settings[str(broken)] = NONE_V1
        ledger.change_setting(limit, str(1 << 20))  # here it is killed
    broken.mkdir()  # cannot be read
    file = tmp_path / "host.toml"
    file.write_text(HOST)
    monkeypatch.setattr(manager, "open_kernel_pages", lambda: (None, "no page flags"))
    with pytest.raises(LiveError, match="no page flags"):
        manage(ManageCommand(file))
    assert limit.read_text() == NONE_V1
    assert capsys.readouterr().out.splitlines() == [
        f"{limit}: {NONE_V1} again",
        f"{broken}: cannot be set back to {NONE_V1}: Is a directory",
    ]
    with Ledger() as ledger:
        assert ledger.record.settings == {str(broken): NONE_V1}
