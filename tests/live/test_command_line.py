# SPDX-License-Identifier: Apache-2.0
"""QEMU command lines as people, libvirt and Proxmox write them."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from memvirt.live.command_line import parse_command_line, parse_properties
from memvirt.live.discovery import DiscoveredVm, TcpAddress, UnixAddress, monitor_addresses
from memvirt.live.manage.host_plan import VmSelector
from memvirt.live.pager.attachment import PagerError
from memvirt.live.pager.collisions import refuse_command_line
from memvirt.live.process import Process


def test_properties_know_doubled_commas_switches_and_implied_keys() -> None:
    assert parse_properties("q35,mem-merge=off,usb", implied="type") == {
        "type": "q35",
        "mem-merge": "off",
        "usb": "on",
    }
    assert parse_properties("socket,path=/tmp/a,,b,server,nowait", implied="backend") == {
        "backend": "socket",
        "path": "/tmp/a,b",
        "server": "on",
        "wait": "off",
    }


def test_json_objects_are_read_as_lists_are() -> None:
    text = json.dumps(
        {"qom-type": "memory-backend-memfd", "id": "pc.ram", "share": True, "size": 4}
    )
    assert parse_properties(text) == {
        "qom-type": "memory-backend-memfd",
        "id": "pc.ram",
        "share": "on",
        "size": "4",
    }
    assert parse_properties("{broken") == {}


def test_a_value_may_begin_with_a_dash_and_switches_take_none() -> None:
    line = parse_command_line(
        ["qemu", "-nodefaults", "-append", "-qmp unix:/no", "--name", "x", "disk.img", "-S"]
    )
    assert line.values("append") == ["-qmp unix:/no"]
    assert line.values("name") == ["x"]
    assert line.has("nodefaults")
    assert line.has("S")
    assert line.values("qmp") == []


def _addresses(*arguments: str) -> tuple[object, ...]:
    with Process(1) as process:
        return monitor_addresses(parse_command_line(["qemu", *arguments]), process)


def test_every_way_to_name_a_monitor(tmp_path: Path) -> None:
    path = tmp_path / "q"
    path.touch()
    unix = UnixAddress(str(path))
    assert _addresses("-qmp", f"unix:{path},server=on,wait=off") == (unix,)
    assert _addresses("-qmp-pretty", f"unix:{path},server,nowait") == (unix,)
    device = f"socket,id=m,path={path},server=on"
    assert _addresses("-chardev", device, "-mon", "chardev=m,mode=control") == (unix,)
    assert _addresses("-mon", "m,mode=control", "-chardev", device) == (unix,)
    assert _addresses("-chardev", device, "-qmp", "chardev:m") == (unix,)
    assert _addresses("-qmp", "tcp:localhost:4444,server=on") == (TcpAddress("localhost", 4444),)
    assert _addresses("-qmp", "tcp::4444,server") == (TcpAddress("127.0.0.1", 4444),)


def test_what_is_no_qmp_socket_is_never_taken_for_one() -> None:
    human = "socket,id=m,path=/tmp/x"
    assert _addresses("-chardev", human, "-mon", "chardev=m,mode=readline") == ()
    assert _addresses("-chardev", human, "-mon", "m") == ()
    assert _addresses("-chardev", human, "-serial", "chardev:m") == ()
    assert _addresses("-monitor", "unix:/tmp/x,server=on", "-qmp", "stdio") == ()
    # QEMU is the client there, and somebody else listens.
    assert _addresses("-chardev", human, "-mon", "chardev=m,mode=control") == ()
    assert _addresses("-qmp", "unix:/tmp/x") == _addresses("-qmp", "tcp::4444") == ()
    inherited = "socket,id=m,fd=30,server=on,wait=off"
    assert _addresses("-chardev", inherited, "-mon", "chardev=m,mode=control") == ()


# The shape of a command line of Proxmox VE 8, as `qm showcmd` prints it, with made-up values.
PROXMOX = """
/usr/bin/kvm -id 101 -name 'web,debug-threads=on' -no-shutdown
-chardev 'socket,id=qmp,path={}/101.qmp,server=on,wait=off' -mon 'chardev=qmp,mode=control'
-chardev 'socket,id=qmp-event,path={}/qmeventd.sock,reconnect=5'
-mon 'chardev=qmp-event,mode=control'
-pidfile /var/run/qemu-server/101.pid -daemonize
-smbios 'type=1,uuid=7b0c1f5e-58d0-4bd2-8b5e-0a8e4c1d2f33' -smp '4,sockets=1,cores=4,maxcpus=4'
-nodefaults -boot 'menu=on,strict=on,reboot-timeout=1000' -vnc 'unix:/run/101.vnc,password=on'
-cpu kvm64,enforce,+kvm_pv_eoi,+lahf_lm,+sep -m 'size=4096,slots=255,maxmem=4194304M'
-object 'iothread,id=iothread-virtioscsi0' -object 'memory-backend-ram,id=ram-node0,size=4096M'
-numa 'node,nodeid=0,cpus=0-3,memdev=ram-node0'
-device 'virtio-balloon-pci,id=balloon0,bus=pci.0,addr=0x3,free-page-reporting=on'
-netdev 'type=tap,id=net0,ifname=tap101i0,script=/var/lib/qemu-server/pve-bridge,vhost=on'
-device 'virtio-net-pci,mac=BC:24:11:00:00:01,netdev=net0,bus=pci.0,addr=0x12,id=net0'
-machine 'type=pc+pve0'
"""


def test_a_command_line_of_proxmox(tmp_path: Path) -> None:
    """Its QMP socket is found; the event daemon's, to which QEMU connects, is left alone."""
    for name in ("101.qmp", "qmeventd.sock"):
        (tmp_path / name).touch()
    line = parse_command_line(shlex.split(PROXMOX.format(tmp_path, tmp_path)))
    with Process(1) as process:
        assert monitor_addresses(line, process) == (UnixAddress(str(tmp_path / "101.qmp")),)
    vm = DiscoveredVm(7, "web", "kvm", "", line, (), "", "")
    assert line.properties("name", implied="guest") == [{"guest": "web", "debug-threads": "on"}]
    assert VmSelector("anything", command_line=r"-id 101\b").fits(vm)
    assert not VmSelector("anything", command_line=r"-id 10\b").fits(vm)
    assert vm.merges
    with pytest.raises(PagerError, match="vhost=on: vhost are not proved"):
        refuse_command_line("web", line)
