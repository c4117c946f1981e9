# SPDX-License-Identifier: Apache-2.0
"""ESXi's policy on the live VMs of this host's QEMU: the VMkernel decides, this acts."""
