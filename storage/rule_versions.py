"""Every version of the rules that has ever been, of rules that are deleted too. Versions do not change."""

from collections.abc import Iterable
from typing import Final, NamedTuple

import asyncpg
import msgspec

from sensorium.actors.rules import RuleSpec
from sensorium.storage.database import Connection, Pool, acquired

CACHED: Final = 10_000
"""Versions that a reader keeps; beyond it, it begins anew."""

_COLUMNS: Final = "rule_id, version, spec, changed_at, changed_by"


class RuleVersion(NamedTuple):
    """What a rule said from `changed_ms` on, and who said so ("" when nobody told)."""

    rule_id: str
    version: int
    spec: RuleSpec
    changed_ms: int
    changed_by: str


class RuleVersions:
    """Over a pool, which stays the caller's. Raises `LogUnavailable` while the database is away."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def get(self, rule_id: str, version: int) -> RuleVersion | None:
        """One version."""
        if "\0" in rule_id:
            return None
        async with acquired(self._pool) as connection:
            row = await connection.fetchrow(
                f"SELECT {_COLUMNS} FROM rule_versions WHERE rule_id = $1 AND version = $2", rule_id, version
            )
        return None if row is None else _version(row)

    async def list(self, rule_id: str, limit: int = 100) -> list[RuleVersion]:
        """The versions of a rule, newest first."""
        if "\0" in rule_id:
            return []
        async with acquired(self._pool) as connection:
            rows = await connection.fetch(
                f"SELECT {_COLUMNS} FROM rule_versions WHERE rule_id = $1 ORDER BY version DESC LIMIT $2",
                rule_id,
                limit,
            )
        return [_version(row) for row in rows]


class CachedVersions:
    """What rules said, by id and version, read where it is not known yet."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, int], RuleSpec] = {}

    async def find(
        self, connection: Connection, wanted: Iterable[tuple[str, int]]
    ) -> dict[tuple[str, int], RuleSpec]:
        """Those of `wanted` that there are."""
        wanted = set(wanted)
        missing = sorted(wanted - self._known.keys())
        if missing:
            rows = await connection.fetch(
                "SELECT rule_id, version, spec FROM rule_versions"
                " WHERE (rule_id, version) IN (SELECT * FROM unnest($1::text[], $2::int[]))",
                [rule_id for rule_id, _ in missing],
                [version for _, version in missing],
            )
            if len(self._known) + len(rows) > CACHED:
                self._known.clear()
            found = {(row["rule_id"], row["version"]): msgspec.convert(row["spec"], RuleSpec) for row in rows}
            self._known.update(found)
            return {key: self._known[key] for key in wanted if key in self._known}
        return {key: self._known[key] for key in wanted}


def _version(row: asyncpg.Record) -> RuleVersion:
    rule_id, version, spec, changed_ms, changed_by = row
    return RuleVersion(rule_id, version, msgspec.convert(spec, RuleSpec), changed_ms, changed_by)
