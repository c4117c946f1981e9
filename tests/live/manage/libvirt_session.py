# SPDX-License-Identifier: Apache-2.0
"""A domain of a libvirt of its own, managed: run by test_libvirt_domain.py in a mount namespace.

usage: python -m tests.live.manage.libvirt_session DIRECTORY KERNEL INITRD

Over libvirt's directories lie others, which end with the namespace: the host's libvirt, if it has
one, sees nothing of this.
"""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path

from memvirt.live.discovery import find_vm
from memvirt.live.libvirt_domain import LibvirtMonitor
from memvirt.live.vm import LiveVm
from tests.waiting import until

from .conftest import Command

NAME = "memvirt-test-domain"
MIB = 192
PLACES = ("/etc/libvirt", "/run/libvirt", "/var/lib/libvirt", "/var/log/libvirt",
          "/var/cache/libvirt")  # fmt: skip
QEMU_CONFIGURATION = """
namespaces = []
stdio_handler = "file"
security_driver = "none"
user = "root"
group = "root"
remember_owner = 0
cgroup_controllers = []
"""
DOMAIN = """
<domain type='qemu'>
  <name>{name}</name>
  <memory unit='MiB'>{mib}</memory>
  <vcpu>1</vcpu>
  <os>
    <type arch='x86_64' machine='q35'>hvm</type>
    <kernel>{kernel}</kernel>
    <initrd>{initrd}</initrd>
    <cmdline>console=ttyS0 quiet panic=-1 memory=48 churn=32</cmdline>
  </os>
  <features><acpi/></features>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <serial type='file'><source path='{serial}'/></serial>
    <memballoon model='virtio' autodeflate='on'/>
  </devices>
</domain>
"""
HOST = """
[machine]
memory = "{budget}M"
[live]
interval = 0.3
pageout = false
working_set = "off"
[[vm]]
name = "guest"
memory = "{mib}M"
live.domain = "{name}"
"""


def virsh(*words: str) -> str:
    command = ["virsh", "-c", "qemu:///system", *words]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def reachable() -> bool:
    command = ["virsh", "-c", "qemu:///system", "version"]
    return subprocess.run(command, check=False, capture_output=True).returncode == 0


def actual() -> int:
    """MiB the guest has, by libvirt's word."""
    match = re.search(r"^actual (\d+)$", virsh("dommemstat", NAME), re.MULTILINE)
    assert match is not None
    return int(match[1]) >> 10


def ready(serial: Path) -> bool:
    return serial.exists() and "verify: ready" in serial.read_text("latin1")


def foretell() -> str:
    """The sharing forecast of the domain, by its name."""
    command = [sys.executable, "-m", "memvirt", "watch", NAME, "--forecast"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def restart(directory: Path, description: Path) -> None:
    """Another QEMU under the same name and UUID."""
    virsh("destroy", NAME)
    (directory / "serial.log").unlink()
    virsh("create", str(description))


def manage_domain(directory: Path, description: Path) -> None:
    """Watch, press, start it anew meanwhile, and let go."""
    serial = directory / "serial.log"
    until(lambda: ready(serial), "the guest is ready", 300)
    found = find_vm(NAME)
    assert found.domain == NAME
    with LiveVm(found) as vm:
        assert isinstance(vm.ask(), LibvirtMonitor)
        assert vm.layout.pages == MIB << 8
    assert re.search(rf"^{NAME}\b", foretell(), re.MULTILINE), foretell()
    until(lambda: "verify: churn" in serial.read_text("latin1"), "it uses its memory", 300)
    resident = int(Path(f"/proc/{found.pid}/statm").read_text().split()[1]) >> 8
    file = directory / "host.toml"
    file.write_text(HOST.format(budget=resident + 2, mib=MIB, name=NAME))
    command = Command(file)
    try:
        command.wait_for(r"guest +balloon +\+")
        until(lambda: actual() < MIB, "the guest gives memory, and libvirt knows")
        configured = virsh("dominfo", NAME)
        used = re.search(r"^Used memory: +(\d+) KiB$", configured, re.MULTILINE)
        assert used is not None
        assert int(used[1]) >> 10 < MIB, configured
        restart(directory, description)
        until(lambda: len(re.findall("levers: balloon", command.text)) > 1, "the next is managed")
        assert find_vm(NAME).pid != found.pid
        until(lambda: ready(serial), "the guest is ready again", 300)
        command.wait_for(r"(?s)levers: balloon.*levers: balloon.*guest +balloon +\+")
        until(lambda: actual() < MIB, "the next guest gives memory")
    finally:
        assert command.end(signal.SIGTERM) == 0, command.text
    assert "has its 192.0 MiB again" in command.text
    until(lambda: actual() == MIB, "it has all of it again")
    assert "WRONG" not in serial.read_text("latin1")


def main() -> None:
    """Exit status 0 if all was as it should be."""
    directory, kernel, initrd = map(Path, sys.argv[1:])
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)
    for place in PLACES:
        over = directory / place.replace("/", "-")
        over.mkdir()
        subprocess.run(["mount", "--bind", over, place], check=True)
    Path("/etc/libvirt/qemu.conf").write_text(QEMU_CONFIGURATION)
    with (directory / "libvirtd.log").open("wb") as log:
        daemon = subprocess.Popen(["libvirtd"], stdout=log, stderr=log)
    try:
        until(reachable, "libvirtd answers")
        description = directory / "domain.xml"
        description.write_text(
            DOMAIN.format(
                name=NAME, mib=MIB, kernel=kernel, initrd=initrd, serial=directory / "serial.log"
            )
        )
        virsh("create", str(description))
        try:
            manage_domain(directory, description)
        finally:
            virsh("destroy", NAME)
    finally:
        daemon.terminate()
        daemon.wait()
    print("the domain was managed, and is as it was")


if __name__ == "__main__":
    main()
