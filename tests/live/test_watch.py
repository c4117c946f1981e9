# SPDX-License-Identifier: Apache-2.0
"""``memvirt watch`` and ``memvirt map --vm`` as a user runs them."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from memvirt.cli.main import app
from memvirt.live import qmp
from memvirt.live.discovery import discover, find_vm
from memvirt.live.errors import VmNotFound
from memvirt.live.watch import LiveHost
from memvirt.live.working_set import uses_kvm
from memvirt.live.working_set_way import WorkingSetWay
from memvirt.observe.live_esxtop import LIVE_COLUMNS, LIVE_PRIORITY
from memvirt.observe.record import read_record

from .conftest import Qemu, stop_in_kernel

pytestmark = pytest.mark.qemu


def memvirt(*words: str | Path) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


def test_every_column_has_a_place() -> None:
    assert sorted(LIVE_PRIORITY) == sorted(column.name for column in LIVE_COLUMNS)


def test_both_guests_are_discovered(anonymous_vm: Qemu, memfd_vm: Qemu) -> None:
    found = {vm.pid: vm for vm in discover()}
    assert found[anonymous_vm.pid].name == anonymous_vm.name
    assert found[memfd_vm.pid].program == "qemu-system-x86_64"
    assert find_vm(str(memfd_vm.pid)).name == memfd_vm.name
    with pytest.raises(VmNotFound, match="no VM nobody; there are"):
        find_vm("nobody")


def test_vms_of_one_name_get_their_process_number(start_qemu: Callable[..., Qemu]) -> None:
    twins = [start_qemu("twin", "-accel", "tcg", "-m", "16M", "-S") for _ in range(2)]
    found = discover([twin.pid for twin in twins])
    assert sorted(vm.name for vm in found) == sorted(f"twin.{twin.pid}" for twin in twins)


def test_one_sample_as_json(anonymous_vm: Qemu, memfd_vm: Qemu) -> None:
    done = memvirt("watch", anonymous_vm.name, memfd_vm.name, "--json", "--working-set", "off")
    assert done.exit_code == 0, done.output
    sample = json.loads(done.stdout)
    vms = {vm["name"]: vm for vm in sample["vms"]}
    assert vms[anonymous_vm.name]["memory"] == 256 << 8
    assert vms[memfd_vm.name]["memory"] == 5 << 18
    for vm in vms.values():
        assert vm["condition"] == "running"
        assert 10_000 < vm["granted"] <= vm["memory"]
        assert vm["untouched"] + vm["granted"] + vm["zero"] + vm["swapped"] == vm["memory"]
        assert 1_000 < vm["overhead"] < 200_000
        assert vm["touched"] is None  # unknown, not 0
        assert vm["kvm"] is False
    assert vms[anonymous_vm.name]["balloon_driver"] is True
    assert vms[memfd_vm.name]["balloon_driver"] is False
    assert sample["host"]["total"] > sample["host"]["free"] > 0


def test_the_table(anonymous_vm: Qemu) -> None:
    done = memvirt("watch", anonymous_vm.name, "--once", "--working-set", "off")
    assert done.exit_code == 0
    assert re.search(r"^PMEM  /MB:", done.stdout, re.MULTILINE)
    heading, row = (line for line in done.stdout.splitlines() if re.match("NAME|anonymous-", line))
    cells = dict(zip(heading.split(), row.split(), strict=True))
    assert cells["MEMSZ"] == "256.0"
    assert cells["TCHD"] == "unknown"
    assert float(cells["GRANT"]) > 40
    chosen = memvirt("watch", anonymous_vm.name, "--once", "--columns", "name,memsz")
    assert re.search(r"^NAME +MEMSZ *$", chosen.stdout, re.MULTILINE)


def test_batch_and_record(memfd_vm: Qemu, tmp_path: Path) -> None:
    record = tmp_path / "watch.parquet"
    done = memvirt(
        "watch", memfd_vm.name, "--batch", "-n", "2", "--interval", "0.05", "--record", record,
        "--working-set", "off",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    heading, *rows = csv.reader(io.StringIO(done.stdout))
    assert len(rows) == 2
    size = next(
        i
        for i, name in enumerate(heading)
        if name.endswith(f"(1:{memfd_vm.name})\\Memory Size MBytes")
    )
    touched = next(i for i, name in enumerate(heading) if name.endswith("\\Touched MBytes"))
    assert [row[size] for row in rows] == ["5120.00"] * 2
    assert [row[touched] for row in rows] == ["", ""]
    columns, about = read_record(record)
    assert about["name"] == "live"
    assert list(columns["memory"]) == [5 << 18] * 2
    assert list(columns["touched"]) != [0, 0]


def test_forecast_of_two_guests(anonymous_vm: Qemu, memfd_vm: Qemu) -> None:
    names = [anonymous_vm.name, memfd_vm.name]
    words = ["watch", *names, "--forecast", "--salt", f"{memfd_vm.name}=other"]
    done = memvirt(*words, "--json")
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    assert result["pairs"][0]["common"] > 5_000  # both run the same kernel
    assert result["saved"] - result["salted_saved"] >= result["pairs"][0]["common"]
    text = memvirt(*words).stdout
    assert "different salts: never shared" in text
    assert "KSM merges private pages only" in text


def test_map_of_a_live_vm(anonymous_vm: Qemu) -> None:
    name = anonymous_vm.name
    with anonymous_vm.open() as vm:
        stop_in_kernel(vm)
        rip = vm.registers().rip
    try:
        done = memvirt("map", "--vm", name, hex(rip))
        assert done.exit_code == 0, done.output
        levels = ["PML5E", "PML4E", "PDPTE", "PDE"]
        assert re.findall(r"^  (P\w+)", done.stdout, re.MULTILINE)[:4] == levels
        assert re.search(r"^host virtual     hVA 0x", done.stdout, re.MULTILINE)
        figures = json.loads(memvirt("map", "--vm", name, hex(rip), "--json").stdout)
        assert figures["gva"] == hex(rip)
        assert figures["frame"]["state"] == "private"
        if os.geteuid() == 0:
            back = memvirt("map", "--vm", name, "--frame", figures["frame"]["mpn"])
            assert f"PPN {figures['frame']['ppn']}" in back.stdout
        physical = memvirt("map", "--vm", name, "--physical", figures["gpa"])
        assert figures["frame"]["host_address"][2:] in physical.stdout
        whole = memvirt("map", "--vm", name, f"{rip & ~0xFFF:#x}+0x2000")
        assert "KiB" in whole.stdout
    finally:
        with anonymous_vm.open() as vm:
            vm.ask().execute("cont")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["watch", "nobody"], "no VM nobody"),
        (["watch", "--columns", "NONE"], "--columns: no column NONE"),
        (["watch", "--salt", "a=b"], "--salt and --rate need --forecast"),
        (["watch", "--batch", "--json"], "exclude each other"),
        (["watch", "NAME", "--forecast", "--salt", "x=y"], "no VM x; there are NAME"),
        (["watch", "--record", "/nowhere/x"], "the directory /nowhere does not exist"),
        (["map", "--vm", "nobody", "0"], "no VM nobody"),
        (["map", "--vm", "NAME", "zero"], "zero is no address"),
        (["map", "--vm", "NAME", "0x2000-0x1000"], "the range is empty"),
        (["map", "--vm", "NAME", "0x0100000000000000"], "not canonical"),
        (["map", "--vm", "NAME", "--cpu", "9", "0"], "no virtual processor 9"),
        (["map", "--frame", "0"], "need --vm"),
        (["map", "--vm", "NAME", "--frame", "--physical", "0"], "exclude each other"),
    ],
)
def test_mistakes_are_one_line(anonymous_vm: Qemu, words: list[str], message: str) -> None:
    done = memvirt(*(anonymous_vm.name if word == "NAME" else word for word in words))
    assert done.exit_code == 2
    assert message.replace("NAME", anonymous_vm.name) in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_vm_without_a_monitor(start_qemu: Callable[..., Qemu]) -> None:
    quiet = start_qemu("quiet", "-accel", "tcg", "-m", "16M", "-S", monitor=False)
    with LiveHost(wanted=lambda vm: vm.pid == quiet.pid, way=WorkingSetWay.OFF) as host:
        (vm,) = host.sample().vms
    assert vm.condition == "unreachable"
    assert vm.memory is None
    assert f"quiet (process {quiet.pid}): no QMP socket; add to its command line: -qmp" in vm.reason


def test_a_vm_under_kvm_is_told_from_one_under_tcg(start_qemu: Callable[..., Qemu]) -> None:
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        pytest.skip("no /dev/kvm")
    fast = start_qemu("fast", "-accel", "kvm", "-m", "16M", "-S")
    with fast.open() as vm:
        assert uses_kvm(vm.process)
        assert vm.registers().cr0 & 1 == 0  # stopped before its first instruction
        assert vm.layout.pages == 16 << 8


def test_the_documentation_names_every_column() -> None:
    text = (Path(__file__).parents[2] / "docs" / "live.md").read_text()
    for column in LIVE_COLUMNS:
        assert re.search(rf"^\|[^|]*{re.escape(column.name)}[ ,|]", text, re.MULTILINE), column.name


def test_a_vm_that_hangs_and_one_that_ends(
    start_qemu: Callable[..., Qemu], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others are still seen, what is unknown is said to be, and nothing raises."""
    first, second = (
        start_qemu(name, "-accel", "tcg", "-m", "16M", "-S") for name in ("hangs", "ends")
    )
    pids = {first.pid, second.pid}
    with LiveHost(wanted=lambda vm: vm.pid in pids, way=WorkingSetWay.OFF) as host:
        assert [vm.condition for vm in host.sample().vms] == ["prelaunch", "prelaunch"]
        monkeypatch.setattr(qmp, "CONNECT_SECONDS", 5.0)
        os.kill(first.pid, signal.SIGSTOP)
        try:
            hanging, other = host.sample().vms
            assert hanging.condition == "unknown"
            assert hanging.balloon is None
            assert "another client holds the monitor, or QEMU hangs" in hanging.reason
            assert hanging.granted is not None  # the kernel still tells
            assert other.condition == "prelaunch"
        finally:
            os.kill(first.pid, signal.SIGCONT)
        second.process.kill()
        second.process.wait()
        assert [vm.name for vm in host.sample().vms] == ["hangs"]
