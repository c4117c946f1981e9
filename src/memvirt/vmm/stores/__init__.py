# SPDX-License-Identifier: Apache-2.0
"""Where the content of pages without a frame is kept. Mechanisms; which goes first is policy."""
