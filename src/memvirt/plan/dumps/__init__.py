# SPDX-License-Identifier: Apache-2.0
"""Memory dumps of guests, one module for each format."""
