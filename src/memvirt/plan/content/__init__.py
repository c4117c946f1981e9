# SPDX-License-Identifier: Apache-2.0
"""What is in the memory of many VMs: pages by content, and what sharing them would save."""
