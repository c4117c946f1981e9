# SPDX-License-Identifier: Apache-2.0
"""QEMU command lines as people, libvirt and Proxmox write them."""

from __future__ import annotations

import json
from pathlib import Path

from memvirt.live.command_line import parse_command_line, parse_properties
from memvirt.live.discovery import TcpAddress, UnixAddress, monitor_addresses
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
    assert _addresses("-qmp", "tcp::4444") == (TcpAddress("127.0.0.1", 4444),)


def test_what_is_no_qmp_socket_is_never_taken_for_one() -> None:
    human = "socket,id=m,path=/tmp/x"
    assert _addresses("-chardev", human, "-mon", "chardev=m,mode=readline") == ()
    assert _addresses("-chardev", human, "-mon", "m") == ()
    assert _addresses("-chardev", human, "-serial", "chardev:m") == ()
    assert _addresses("-monitor", "unix:/tmp/x,server=on", "-qmp", "stdio") == ()
    inherited = "socket,id=m,fd=30,server=on,wait=off"
    assert _addresses("-chardev", inherited, "-mon", "chardev=m,mode=control") == ()
