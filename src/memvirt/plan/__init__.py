# SPDX-License-Identifier: Apache-2.0
"""Capacity planning with the VMkernel's own policy, and analysis of memory dumps of many VMs."""
