# SPDX-License-Identifier: Apache-2.0
"""The remote serial protocol without gdb: packets in any pieces, commands that are nonsense."""

from __future__ import annotations

from collections.abc import Iterator
from xml.etree import ElementTree

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from memvirt import Machine, VirtualMachine
from memvirt.gdb.packets import INTERRUPT, PacketReader, escaped, framed, unescaped
from memvirt.gdb.registers import REGISTERS, target_description
from memvirt.gdb.stub import After, Stub
from tests.small_guest import flat_guest

_CODE = 0x10_0000


@pytest.fixture(scope="module")
def vm() -> Iterator[VirtualMachine]:
    with VirtualMachine(Machine("64M", scatter_seed=3), memory="16M") as made:
        made.load(flat_guest("nop; jmp start"), protocol="flat")
        yield made


@pytest.fixture
def stub(vm: VirtualMachine) -> Stub:
    debugging = vm.processor.debugging
    assert debugging is not None
    return Stub(vm, debugging)


def ask(stub: Stub, packet: str) -> str:
    reply, after = stub.handle(packet.encode("latin-1"))
    assert after is After.NOTHING
    assert reply is not None
    return reply.decode("latin-1")


@given(st.lists(st.binary(max_size=40)), st.integers(1, 7))
def test_packets_arrive_whole_however_the_stream_is_cut(contents: list[bytes], size: int) -> None:
    stream = b"".join(b"+" + framed(escaped(content)) for content in contents)
    reader, got = PacketReader(), []
    for at in range(0, len(stream), size):
        got += reader.take(stream[at : at + size]).packets
    assert [unescaped(packet or b"") for packet in got] == contents


def test_a_damaged_packet_is_asked_for_again() -> None:
    received = PacketReader().take(b"$g#00\x03$g#67-")
    assert received.packets == (None, INTERRUPT, b"g")
    assert received.refused


def test_a_packet_without_an_end_does_not_grow_for_ever() -> None:
    reader = PacketReader()
    assert reader.take(b"$" + bytes(1 << 20)).packets == (None,)
    assert reader.take(b"$g#67").packets == (b"g",)


def test_the_description_names_every_register_in_the_order_of_g(stub: Stub) -> None:
    tree = ElementTree.fromstring(target_description().split("?>", 1)[1].split(">", 1)[1])
    names = [(reg.get("name"), int(reg.get("bitsize") or 0)) for reg in tree.iter("reg")]
    assert names == [(register.name, register.bits) for register in REGISTERS]
    assert len(ask(stub, "g")) == 2 * sum(register.bytes for register in REGISTERS)


def test_all_registers_written_back_change_nothing(stub: Stub) -> None:
    before = ask(stub, "g")
    assert ask(stub, f"G{before}") == "OK"
    assert ask(stub, "g") == before


def test_a_register_goes_and_comes(stub: Stub) -> None:
    number = [register.name for register in REGISTERS].index("r13")
    assert ask(stub, f"P{number:x}=8877665544332211") == "OK"
    assert ask(stub, f"p{number:x}") == "8877665544332211"
    cr3 = [register.name for register in REGISTERS].index("cr3")
    assert ask(stub, f"P{cr3:x}=0000000000000000") == "E01"


def test_memory_goes_and_comes(stub: Stub) -> None:
    assert ask(stub, "M200ffe,4:11223344") == "OK"  # over the end of a page
    assert ask(stub, "m200ffd,6") == "001122334400"
    assert ask(stub, "X200ffe,2:}\x03#"[:-1]) == "E16"  # one byte, where two are promised
    assert ask(stub, "X200ffe,1:}\x03") == "OK"
    assert ask(stub, "m200ffe,1") == "23"


def test_what_cannot_be_reached_is_an_error(stub: Stub) -> None:
    assert ask(stub, "m800000000000,4") == "E0e"  # not canonical
    assert ask(stub, "m40000000,4") == "E0e"  # mapped, and no memory there
    assert ask(stub, "mffffffff80000000,4") == "E0e"  # not mapped
    assert ask(stub, "mfffff0,20") == "00" * 0x10  # as much as there is


@pytest.mark.parametrize(
    ("packet", "answer"),
    [
        ("qC", "QC1"), ("qAttached", "1"), ("qfThreadInfo", "m1"), ("qsThreadInfo", "l"),
        ("Hg0", "OK"), ("T1", "OK"), ("vCont?", "vCont;c;C;s;S"), ("vMustReplyEmpty", ""),
        ("qUnknown", ""), ("pffff", "E16"), ("m", "E16"), ("mzz,4", "E16"), ("Z9,0,1", ""),
        ("Gxyz", "E16"), ("P0=1", "E16"), ("!", ""), ("\xff", ""), ("Z2,1000,0", "E16"),
        ("qXfer:features:read:other.xml:0,fff", "E00"), ("vCont;t", "E16"), ("cxyz", "E16"),
    ],
)  # fmt: skip
def test_answers(stub: Stub, packet: str, answer: str) -> None:
    if packet.startswith("Z2") and not stub._points.supports(2):
        pytest.skip("watchpoints need memvirt's own build")
    assert ask(stub, packet) == answer


def test_monitor_says_what_lies_behind_an_address(stub: Stub) -> None:
    def say(command: str) -> str:
        return bytes.fromhex(ask(stub, "qRcmd," + command.encode().hex())).decode()

    assert "pmap   PPN 0x100: private" in say(f"map {_CODE:#x}")
    assert "monitor map" in say("help")
    assert "monitor map" in say("nonsense")
    assert "guest memory   16.0 MiB" in say("statistics")
    assert "not canonical" in say("map 0x800000000000")
    assert "$rip is no address" in say("map $rip")
    assert say("screen") == "\n"


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.one_of(
        st.binary(max_size=60),
        st.builds(
            lambda kind, rest: kind + rest,
            st.sampled_from([b"m", b"M", b"X", b"Z0,", b"z2,", b"P", b"p", b"G", b"q", b"vCont;",
                             b"qRcmd,", b"qXfer:features:read:target.xml:", b"H", b"c", b"s"]),
            st.text("0123456789abcdef,:;=-+ ", max_size=24).map(str.encode),
        ),
    )
)  # fmt: skip
def test_nonsense_gets_an_answer(stub: Stub, packet: bytes) -> None:
    reply, after = stub.handle(packet)
    assert reply is not None or after in (After.RESUME, After.KILL)
    stub.release()
