# SPDX-License-Identifier: Apache-2.0
"""Policies by name: a table that others can add to. See ``policies`` for the tables there are."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import core_schema

from memvirt.errors import MemvirtError

__all__ = ["Registry", "UnknownPolicy"]

Policy = TypeVar("Policy")
_NAME = re.compile(r"[a-z][a-z0-9-]*")


class UnknownPolicy(MemvirtError, ValueError):
    """A name that is not registered; the message has those that are."""


class Registry(Generic[Policy]):
    """Factories of policies of one ``kind`` by name. A factory gets the host's MemoryOptions."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._factories: dict[str, Callable[[Any], Policy]] = {}

    def register(self, name: str, factory: Callable[[Any], Policy]) -> None:
        """Add a policy under ``name``: lower-case letters, digits and hyphens.

        Register before a scenario that names it is read. Raises ValueError for a name that cannot
        be one, or is taken.
        """
        if not _NAME.fullmatch(name):
            raise ValueError(
                f'{self.kind}: "{name}" cannot be a name: write lower-case letters, digits and "-"'
            )
        if name in self._factories:
            raise ValueError(f'{self.kind}: "{name}" is registered already')
        self._factories[name] = factory

    def unregister(self, name: str) -> None:
        """Take a policy out again. Raises UnknownPolicy."""
        self.check(name)
        del self._factories[name]

    def names(self) -> list[str]:
        """All names, in the order they were registered."""
        return list(self._factories)

    def check(self, name: str) -> str:
        """``name``, if it is registered. Raises UnknownPolicy."""
        if name not in self._factories:
            *others, last = [f"'{known}'" for known in self._factories]
            known = f"{', '.join(others)} or {last}" if others else last
            raise UnknownPolicy(f"should be {known}")
        return name

    def make(self, name: str, options: object) -> Policy:
        """The policy ``name``, made for a host with ``options``. Raises UnknownPolicy."""
        return self._factories[self.check(name)](options)


@dataclass(frozen=True)
class RegisteredName:
    """Annotation of a model's field: text that is a name in ``registry``, in its schema too."""

    registry: Registry[Any]

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> core_schema.CoreSchema:
        return core_schema.no_info_after_validator_function(self.registry.check, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return {**handler(schema), "enum": self.registry.names()}
