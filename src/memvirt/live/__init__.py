# SPDX-License-Identifier: Apache-2.0
"""The virtual machines that QEMU runs on this host, unmodified: found, watched, managed, paged."""
