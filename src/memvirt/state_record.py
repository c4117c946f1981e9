# SPDX-License-Identifier: Apache-2.0
"""State records: what compiled kernels share with each other and with Python.

The whole state of a device, of the walkers, of a VMM or of an engine is one NumPy structured
record, described by a class with annotations: the class is what the type checker sees,
``record_dtype`` turns it into the dtype, and no instance of the class ever exists. Every field is
an ``int64``, whatever its width in hardware, and every function masks what it stores: signed
64-bit arithmetic is the one integer kind that behaves alike in Numba, in NumPy and in plain Python
(``uint64`` mixed with a signed constant does not). Fields named ``*_at`` hold host addresses of
arrays that the record's owner keeps alive. Copying the record is a snapshot.
"""

from typing import Any, get_args, get_type_hints

import numpy as np


class Record:
    """Base of the classes that describe a record.

    A field annotated ``int``, or with an address type, is an int64 register;
    ``Annotated[Sequence[...], element, length]`` is an array of ``element`` (a NumPy scalar type
    or a ``Record`` class); a ``Record`` class is a nested record.
    """


def record_dtype(description: type[Record]) -> Any:
    """The NumPy dtype of a record class.

    Its scalars are ``np.record``: fields are attributes in plain Python exactly as in Numba, so a
    field named like one of ``np.record``'s own attributes is refused.
    """
    fields: list[Any] = []
    for name, hint in get_type_hints(description, include_extras=True).items():
        if hasattr(np.record, name):
            raise ValueError(f"field {name!r} is hidden by an attribute of np.record: rename it")
        if getattr(hint, "__supertype__", hint) is int:
            fields.append((name, np.int64))
        elif isinstance(hint, type) and issubclass(hint, Record):
            fields.append((name, record_dtype(hint)))
        else:
            _, element, length = get_args(hint)
            is_record = isinstance(element, type) and issubclass(element, Record)
            fields.append((name, record_dtype(element) if is_record else element, (length,)))
    return np.dtype((np.record, np.dtype(fields)))


def new_record(dtype: Any) -> Any:
    """A zeroed array of shape (1,); its element 0 is the record the compiled functions take."""
    return np.zeros(1, dtype)


def record_word(record: Any, *path: str) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """The int64 field at ``path`` of what ``new_record`` made, as an array of shape (1,).

    For Python that reads a field often: an attribute of the record itself takes 2 microseconds.
    """
    for name in path:
        record = record[name]
    assert record.dtype == np.int64
    return record
