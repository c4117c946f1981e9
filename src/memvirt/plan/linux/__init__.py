# SPDX-License-Identifier: Apache-2.0
"""What a Linux guest uses its pages for, read from the kernel's own memory map in a dump."""
