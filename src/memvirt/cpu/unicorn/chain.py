# SPDX-License-Identifier: Apache-2.0
"""What led to a triple fault, in words: the first event of the chain, and what stopped it."""

from __future__ import annotations

from memvirt.cpu.exceptions import describe_exception

from .engine_state import EngineState


def chain_of(state: EngineState) -> str:
    """One line, from the state that the run loop left."""
    first = describe_exception(
        int(state.chain_vector), int(state.chain_error), int(state.chain_gva)
    )
    second = describe_exception(int(state.chain_second), int(state.chain_second_error))
    rip = int(state.chain_rip) & (1 << 64) - 1
    return f"{first}, RIP {rip:#x}; its delivery raised {second}, and #DF could not be delivered"
