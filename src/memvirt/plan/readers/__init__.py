# SPDX-License-Identifier: Apache-2.0
"""Readers of inventories and measurements, one module for each format."""
