# SPDX-License-Identifier: Apache-2.0
"""``make live-demo``: three VMs of QEMU, watched, forecast, managed under pressure, and verified.

The guests verify every page before they write it anew. Pressure is made by the memory that the
demonstration's HOST.toml says the VMs may have together, never by exhausting this machine.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from memvirt.live.errors import CommandError
from tests.waiting import until

from .pager.conftest import make_verifying_guest
from .pager.qemu_guest import VerifyingVm

_MEMORY = 192  # MiB of each VM
_SHARES = {"gold": 4000, "silver": 2000, "bronze": 500}
_SECONDS = 25


def _say(text: str) -> None:
    print(f"\n== {text}", flush=True)


def _memvirt(*words: str | Path) -> None:
    command = [sys.executable, "-m", "memvirt", *map(str, words)]
    print(f"$ memvirt {' '.join(map(str, words))}", flush=True)
    subprocess.run(command, check=True)


def _resident(vm: VerifyingVm) -> int:
    return int(Path(f"/proc/{vm.pid}/statm").read_text().split()[1]) >> 8


def _actual(vm: VerifyingVm) -> int:
    with vm.monitor() as monitor:
        try:
            return int(monitor.execute("query-balloon")["actual"]) >> 20
        except CommandError:
            return 0


def _demonstrate(directory: Path, vms: list[VerifyingVm]) -> None:
    names = [vm.name for vm in vms]
    _say("what they use: memvirt watch, two samples in esxtop's batch layout (first 100 columns)")
    batch = subprocess.run(
        [sys.executable, "-m", "memvirt", "watch", *names, "--batch", "-n", "2", "--working-set",
         "off"],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    for line in batch.stdout.splitlines():
        print(line[:100])
    _memvirt("watch", *names, "--once", "--working-set", "off")
    _say("what sharing would save")
    _memvirt("watch", *names, "--forecast")
    total = sum(_resident(vm) for vm in vms)
    budget = total + 14
    _say(f"their processes use {total} MiB; together they may have {budget} MiB, 6 % of it free")
    file = directory / "host.toml"
    text = f'[machine]\nmemory = "{budget}M"\nMem.BalancePeriod = 5\nMem.SamplePeriod = 5\n'
    text += "[live]\ninterval = 0.5\npageout = false\n"
    for vm, (name, shares) in zip(vms, _SHARES.items(), strict=True):
        text += f'[[vm]]\nname = "{vm.name}"\nmemory = "{_MEMORY}M"\nshares = {shares}\n'
        text += 'reservation = "128M"\n' if name == "silver" else ""
    file.write_text(text)
    print(text)
    _say("what would be done")
    _memvirt("manage", file, "--dry-run", "--seconds", "2", "--status", "0")
    _say("do it, and put everything back")
    _memvirt("manage", file, "--seconds", str(_SECONDS), "--status", "5")
    until(lambda: all(_actual(vm) == _MEMORY for vm in vms), "every balloon was put back")
    print(f"memory of the guests now: { ({vm.name: _actual(vm) for vm in vms}) } MiB")
    _say("the guests go on and verify their memory")
    for vm in vms:
        vm.wait_for_progress(("memory",))
        vm.assert_nothing_wrong()
        print(f"{vm.name}: {vm.results()['memory'][0]} pages verified, 0 words wrong")


def main() -> None:
    """Run the demonstration. Exit status 0 if all was verified and restored."""
    if os.geteuid() != 0:
        raise SystemExit("live-demo: managing live VMs needs root")
    with tempfile.TemporaryDirectory(prefix="memvirt-demo-") as made:
        directory = Path(made)
        os.environ["MEMVIRT_MANAGE_DIR"] = str(directory / "record")
        kernel, initrd = make_verifying_guest(directory)
        vms: list[VerifyingVm] = []
        try:
            _say("three VMs start (QEMU, TCG)")
            for name in _SHARES:
                (directory / name).mkdir()
                vms.append(
                    VerifyingVm(
                        directory / name, kernel, initrd, memory=f"{_MEMORY}M", kind="ram",
                        command_line="memory=48 churn=32", backend="share=off", disks=False,
                        balloon="deflate-on-oom=on", name=name,
                    )
                )  # fmt: skip
            for vm in vms:
                vm.wait_until_ready()
            until(lambda: all(_resident(vm) > 110 for vm in vms), "the guests use their memory")
            _demonstrate(directory, vms)
        finally:
            for vm in vms:
                vm.kill()
    _say("all verified, all restored")


if __name__ == "__main__":
    main()
