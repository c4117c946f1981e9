# SPDX-License-Identifier: Apache-2.0
"""A VM debugged by gdb: the remote serial protocol (GDB manual, appendix "Remote Protocol")."""
