# SPDX-License-Identifier: Apache-2.0
"""An engine that has not enough address space would end the process: it is refused before."""

from __future__ import annotations

import resource

import pytest

from memvirt.cpu.processor import ProcessorError
from memvirt.cpu.unicorn.address_space import check_address_space


def test_a_limit_is_an_error_with_its_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    limit = 1 << 62
    monkeypatch.setattr(resource, "getrlimit", lambda which: (limit, limit))
    check_address_space()
    limit = 1 << 30
    with pytest.raises(ProcessorError, match=r"1280 MiB of address space; .* is 1024 MiB and \d+"):
        check_address_space()
    limit = resource.RLIM_INFINITY
    check_address_space()
