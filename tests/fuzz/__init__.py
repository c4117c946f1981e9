# SPDX-License-Identifier: Apache-2.0
"""A fuzzer: inputs and guests that nobody would write, made from a seed, in a process of their own.

``make fuzz SECONDS=60`` or ``python -m tests.fuzz --help``. What may come of an input is a refusal
in one line or an end that the guest has brought on itself. Anything else is a failure: the input is
kept in a folder, with the command that runs it again.

``kinds.py`` lists the kinds of input, each with who makes it and who runs it; ``worker.py`` is the
process that runs them; ``campaign.py`` starts it, waits for it and counts.
"""
