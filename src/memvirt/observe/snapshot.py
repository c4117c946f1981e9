# SPDX-License-Identifier: Apache-2.0
"""Snapshots: what the observers need of one stopped VM, in a file.

A ZIP archive. ``meta.json``: format, name, paging mode, registers, what translations depend on, and
the counts, and what the display is set to. ``state``, ``frame``, ``flags``: the pmap (little-endian
arrays by PPN). ``mpns``: the frames kept, in order; ``frames/N``: their content, 256 frames to a
member. ``kept_ppns`` and ``kept/N``: the same for compressed and swapped pages. A page that could
not be read when the snapshot was taken is in neither.

A snapshot may come from anybody, so nothing in it is believed. The members and their sizes must be
those that the counts ask for, every number must be in its range, and every resident page's frame
must be there, before anything is used. Content is unpacked when it is asked for, a member (1 MiB)
at a time: what a file expands to is bounded whatever it says. No value of a snapshot is used as a
length or a loop's bound.
"""

from __future__ import annotations

import json
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from memvirt.address import (
    PAGE_BYTES,
    PAGE_SHIFT,
    GuestPhysicalAddress,
    MachinePageNumber,
    MpnArray,
    PhysicalPageNumber,
    PpnArray,
)
from memvirt.errors import MemvirtError
from memvirt.machine.memory import FrameKind
from memvirt.output_file import OutputFile
from memvirt.platform.text_screen import TextMode
from memvirt.vm.virtual_machine import MAXIMUM_MEMORY, VirtualMachine
from memvirt.vmm.monitor import PagingMode
from memvirt.vmm.pmap import KEPT, RESIDENT, PageState

from .view import REGISTERS, PageUnavailable, Translation, VmView, live_view

__all__ = ["SnapshotError", "load_snapshot", "save_snapshot"]

FORMAT = "memvirt snapshot 2"
_MOST_PAGES = MAXIMUM_MEMORY >> PAGE_SHIFT
_MOST_FRAMES = 2 * _MOST_PAGES + (1 << 16)  # pages and the tables that map them
_MOST_META_BYTES = 1 << 16
_MOST_NAME = 1024
_PIECE = 256  # pages in a member
_SAVED_KINDS = (FrameKind.GUEST, FrameKind.SHADOW, FrameKind.NESTED)
# Everything that zipfile, zlib and json raise for a file that is none, or is damaged.
_DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    NotImplementedError,
    RuntimeError,
    OverflowError,
    LookupError,
    ValueError,
)

# A VGA's registers cannot say more; the highest multiples that they can form.
_MOST_COLUMNS, _MOST_ROWS, _MOST_PITCH = 256, 1024, 510
_Word = Annotated[int, Field(ge=0, lt=1 << 64)]
_Mpn = Annotated[int, Field(ge=0, lt=1 << 32)]
_Count = Annotated[int, Field(ge=0, le=_MOST_FRAMES)]


class SnapshotError(MemvirtError):
    """A file that is no snapshot, or a damaged one; the message names it."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class _TranslationMeta(_Strict):
    privilege_level: Annotated[int, Field(ge=0, le=3)]
    physical_address_bits: Annotated[int, Field(ge=36, le=52)]
    has_1gib_pages: bool
    root: _Mpn | None
    root_cr3: _Word
    levels: Annotated[int, Field(ge=4, le=5)]


class _DisplayMeta(_Strict):
    base: Literal[0xA0000, 0xB0000, 0xB8000]
    columns: Annotated[int, Field(ge=1, le=_MOST_COLUMNS)]
    rows: Annotated[int, Field(ge=1, le=_MOST_ROWS)]
    pitch: Annotated[int, Field(ge=1, le=_MOST_PITCH)]
    start: Annotated[int, Field(ge=0, le=0xFFFF)]
    cursor: Annotated[int, Field(ge=0, le=0xFFFF)] | None
    blink: bool


class _Meta(_Strict):
    format: Literal["memvirt snapshot 2"]
    name: Annotated[str, Field(max_length=_MOST_NAME)]
    paging: Literal["SHADOW", "NESTED", "FLAT"]
    registers: dict[str, _Word]
    translation: _TranslationMeta
    pages: Annotated[int, Field(ge=1, le=_MOST_PAGES)]
    frames: _Count
    kept: _Count
    display: _DisplayMeta | None = None  # snapshots of earlier releases have none


def _pieces(count: int) -> Iterator[tuple[int, int]]:
    """Begin and end of each member's pages."""
    return ((at, min(at + _PIECE, count)) for at in range(0, count, _PIECE))


def _sizes(meta: _Meta) -> dict[str, int]:
    """Every member but ``meta.json``, and the bytes it must have."""
    sizes = {
        "state": meta.pages,
        "frame": 4 * meta.pages,
        "flags": meta.pages,
        "mpns": 4 * meta.frames,
        "kept_ppns": 4 * meta.kept,
    }
    for folder, count in (("frames", meta.frames), ("kept", meta.kept)):
        for number, (begin, end) in enumerate(_pieces(count)):
            sizes[f"{folder}/{number}"] = (end - begin) * PAGE_BYTES
    return sizes


# Writing ---------------------------------------------------------------------------------------


def _readable(view: VmView) -> Iterator[tuple[int, bytes]]:
    for ppn in view.kept:
        try:
            yield ppn, view.kept[ppn]
        except PageUnavailable:
            continue


def _write_pieces(archive: zipfile.ZipFile, folder: str, pages: Iterable[bytes]) -> None:
    number, piece = 0, bytearray()
    for page in pages:
        piece += page
        if len(piece) == _PIECE * PAGE_BYTES:
            archive.writestr(f"{folder}/{number}", bytes(piece))
            number, piece = number + 1, bytearray()
    if piece:
        archive.writestr(f"{folder}/{number}", bytes(piece))


def save_snapshot(vm: VirtualMachine, path: str | Path) -> None:
    """Write what a view of ``vm`` (stopped) needs to ``path``, all or nothing.

    It holds the guest's memory: it is readable by its owner only. Raises OutputFileError.
    """
    view, vmm = live_view(vm), vm.vmm
    machine, pmap = vmm.machine, vmm.pmap
    owned = machine.owned_by(vm.vm_id)
    mpns = np.union1d(
        owned[np.isin(machine.kind[owned], _SAVED_KINDS)],
        pmap.frame[pmap.state == PageState.SHARED],
    ).astype("<u4")
    kept: list[int] = []

    def kept_pages() -> Iterator[bytes]:
        for ppn, content in _readable(view):
            kept.append(ppn)
            yield content

    with (
        OutputFile(Path(path), private=True) as file,
        zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=3) as archive,
    ):
        _write_pieces(archive, "kept", kept_pages())
        _write_pieces(archive, "frames", (view.frames[mpn] for mpn in mpns.tolist()))
        for name, array in (
            ("state", pmap.state),
            ("frame", pmap.frame.astype("<u4")),
            ("flags", pmap.flags),
            ("mpns", mpns),
            ("kept_ppns", np.array(kept, "<u4")),
        ):
            archive.writestr(name, array.tobytes())
        meta = {
            "format": FORMAT,
            "name": vm.name.encode("utf-8", "replace").decode()[:_MOST_NAME],
            "paging": vm.paging.name,
            "registers": dict(view.registers),
            "translation": asdict(view.translation),
            "pages": pmap.pages,
            "frames": int(mpns.size),
            "kept": len(kept),
            "display": None if view.display is None else asdict(view.display),
        }
        archive.writestr("meta.json", json.dumps(meta))


# Reading ---------------------------------------------------------------------------------------


class _Archive:
    """The members of a snapshot file by name, each read in full and with its exact size."""

    def __init__(self, path: Path) -> None:
        self.path = path
        if not stat.S_ISREG(path.stat().st_mode):
            raise ValueError("not a regular file")
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
        self._members = {member.filename: member for member in members}
        if len(self._members) != len(members):
            raise ValueError("a member is there twice")
        if "meta.npy" in self._members:
            raise ValueError("an older memvirt wrote it: take it again")

    def check(self, sizes: dict[str, int]) -> None:
        """Raise ValueError unless the members, and their sizes, are those of ``sizes``."""
        if self._members.keys() != sizes.keys():
            odd = sorted(self._members.keys() ^ sizes.keys())[0]
            what = "is missing" if odd in sizes else "should not be there"
            raise ValueError(f"member {odd[:40]!r} {what}")
        for name, size in sizes.items():
            if self._members[name].file_size != size:
                found = self._members[name].file_size
                raise ValueError(f"member {name} has {found} bytes, where {size} are needed")

    def read(self, name: str, most: int = _PIECE * PAGE_BYTES) -> bytes:
        """A member's content. Raises ValueError if it is not there, or says it has more bytes."""
        member = self._members.get(name)
        if member is None:
            raise ValueError(f"member {name} is missing")
        if member.file_size > most:
            raise ValueError(f"member {name} has {member.file_size} bytes, more than {most}")
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError(f"member {name} is packed by method {member.compress_type}")
        with zipfile.ZipFile(self.path) as archive, archive.open(member) as file:
            data = file.read(member.file_size + 1)  # to the end: there its checksum is verified
        if len(data) != member.file_size:
            raise ValueError(f"member {name} has not the size it says")
        return data


_Number = TypeVar("_Number", MachinePageNumber, PhysicalPageNumber)


class _Pages(Mapping[_Number, bytes]):
    """Content by page number, read from the archive when it is asked for."""

    def __init__(self, archive: _Archive, folder: str, numbers: np.ndarray[Any, Any]) -> None:
        self._archive = archive
        self._folder = folder
        self._numbers = numbers
        self._piece = lru_cache(maxsize=8)(self._read)

    def _read(self, number: int) -> bytes:
        try:
            return self._archive.read(f"{self._folder}/{number}")
        except OSError as error:
            raise SnapshotError(f"{self._archive.path}: {error.strerror or error}") from error
        except _DAMAGE as error:
            raise SnapshotError(f"{self._archive.path}: damaged ({_line(error)})") from error

    def __getitem__(self, number: _Number) -> bytes:
        at = int(np.searchsorted(self._numbers, number))
        if at == self._numbers.size or self._numbers[at] != number:
            what = "MPN" if self._folder == "frames" else "PPN"
            raise PageUnavailable(f"{what} {number:#x} is not in the snapshot")
        piece, row = divmod(at, _PIECE)
        return self._piece(piece)[row * PAGE_BYTES : (row + 1) * PAGE_BYTES]

    def __iter__(self) -> Iterator[_Number]:
        return iter(self._numbers.tolist())

    def __len__(self) -> int:
        return int(self._numbers.size)


def _line(error: Exception) -> str:
    """An error in one line that no terminal obeys."""
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        text = f"meta.json: {where}: {first['msg']}"
    else:
        text = str(error) or type(error).__name__
    text = text.splitlines()[0] if text else type(error).__name__
    return "".join(c if c.isprintable() else "?" for c in text)[:200]


def _ascending(name: str, numbers: np.ndarray[Any, Any]) -> None:
    if np.any(numbers[1:] <= numbers[:-1]):
        raise ValueError(f"{name} are not in order")


def _check_pmap(
    meta: _Meta,
    state: np.ndarray[Any, Any],
    frame: np.ndarray[Any, Any],
    mpns: MpnArray,
    kept: PpnArray,
) -> None:
    """Raise ValueError unless the parts agree."""
    if state.max() > max(PageState):
        raise ValueError(f"page state {state.max()}, where {int(max(PageState))} is the highest")
    _ascending("mpns", mpns)
    _ascending("kept_ppns", kept)
    resident = np.isin(state, RESIDENT)
    missing = np.flatnonzero(resident)[~np.isin(frame[resident], mpns)]
    if missing.size:
        raise ValueError(f"the frame of PPN {int(missing[0]):#x} is missing")
    private = np.sort(frame[state == PageState.PRIVATE])
    twice = private[1:][private[1:] == private[:-1]]
    if twice.size:
        raise ValueError(f"MPN {int(twice[0]):#x} belongs to two pages")
    both = np.intersect1d(private, frame[state == PageState.SHARED])
    if both.size:
        raise ValueError(f"MPN {int(both[0]):#x} is one page's own, and shared")
    if kept.size and (kept[-1] >= meta.pages or not np.isin(state[kept], KEPT).all()):
        raise ValueError("content of a page that is not compressed or swapped")
    root = meta.translation.root
    if root is not None and not np.isin(root, mpns):
        raise ValueError(f"the root table's frame {root:#x} is missing")
    if root is not None and np.isin(root, frame[resident]):
        raise ValueError(f"the root table's frame {root:#x} is a page of the guest")


def _display(meta: _DisplayMeta) -> TextMode:
    fields = meta.model_dump()
    return TextMode(base=GuestPhysicalAddress(fields.pop("base")), **fields)


def _load(path: Path) -> VmView:
    archive = _Archive(path)
    raw = archive.read("meta.json", _MOST_META_BYTES)
    meta = _Meta.model_validate_json(raw)
    if set(meta.registers) != set(REGISTERS):
        odd = sorted(set(meta.registers) ^ set(REGISTERS))[0]
        raise ValueError(f"meta.json: registers: {odd[:40]!r} is missing or unknown")
    sizes = {**_sizes(meta), "meta.json": len(raw)}
    archive.check(sizes)

    def array(name: str, kind: str) -> np.ndarray[Any, Any]:
        return np.frombuffer(archive.read(name, sizes[name]), kind)

    state, flags, frame = array("state", "u1"), array("flags", "u1"), array("frame", "<u4")
    mpns = MpnArray(array("mpns", "<u4").astype(np.int64))
    kept = PpnArray(array("kept_ppns", "<u4").astype(np.int64))
    _check_pmap(meta, state, frame, mpns, kept)
    return VmView(
        name=meta.name,
        paging=PagingMode[meta.paging],
        registers=meta.registers,
        translation=Translation(**meta.translation.model_dump()),
        state=state,
        frame=frame,
        flags=flags,
        frames=_Pages[MachinePageNumber](archive, "frames", mpns),
        kept=_Pages[PhysicalPageNumber](archive, "kept", kept),
        display=None if meta.display is None else _display(meta.display),
    )


def load_snapshot(path: str | Path) -> VmView:
    """The view that ``save_snapshot`` wrote, all of it checked but the content of pages.

    Raises SnapshotError, also later: when content is read that turns out to be damaged.
    """
    try:
        return _load(Path(path))
    except OSError as error:
        raise SnapshotError(f"{path}: {error.strerror or error}") from error
    except _DAMAGE as error:
        raise SnapshotError(f"{path}: not a memvirt snapshot ({_line(error)})") from error
