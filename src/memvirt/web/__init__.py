# SPDX-License-Identifier: Apache-2.0
"""The live diagram in a browser. Needs the extra ``memvirt[web]`` (Starlette, uvicorn)."""
