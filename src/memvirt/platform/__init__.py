# SPDX-License-Identifier: Apache-2.0
"""The virtual PC: devices as compiled functions over records, and the boot protocols."""
