# SPDX-License-Identifier: Apache-2.0
"""The least that ``memvirt run`` can run: one guest that ends at once."""

SMALL_SCENARIO = """[machine]
memory = "32M"
[[vm]]
name = "a"
memory = "8M"
append = "workload=selfmod"
"""
