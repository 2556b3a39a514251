"""Webhooks by name: where they are and how they are asked. Their secrets come out for who sends, only."""

from typing import Annotated, Any, Final
from urllib.parse import urlsplit

import asyncpg
import msgspec
from msgspec import Meta

from sensorium.storage.audit_trail import record
from sensorium.storage.database import Pool, acquired
from sensorium.storage.sealing import PREFIX, SealBroken, Sealer

MAX_WEBHOOKS: Final = 1_000


class WebhookSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a webhook is asked.

    Attributes:
        timeout_s: of one attempt.
        max_attempts: after the last one the delivery is dead.
        max_body_bytes: a longer message is not sent there.
        enabled: while it is not, what is for it waits.
    """

    timeout_s: Annotated[float, Meta(ge=0.1, le=60)] = 10.0
    max_attempts: Annotated[int, Meta(ge=1, le=50)] = 12
    max_body_bytes: Annotated[int, Meta(ge=256, le=1 << 20)] = 65_536
    enabled: bool = True


class Webhook(msgspec.Struct, frozen=True):
    """A webhook with its secret. Never shown, nor logged, as a whole."""

    name: str
    url: str
    secret: str | None
    spec: WebhookSpec
    updated_ms: int

    def __repr__(self) -> str:
        return f"Webhook({self.name!r})"


class PgWebhooks:
    """Over a pool, which stays the caller's. Raises `LogUnavailable` while the database is away.

    Addresses and secrets are stored sealed where there is a key; what does not open raises `SealBroken`.
    """

    def __init__(self, pool: Pool, sealer: Sealer | None = None) -> None:
        self._pool = pool
        self._sealer = sealer or Sealer()

    async def list(self) -> list[Webhook]:
        """All of them, by name."""
        async with acquired(self._pool) as connection:
            rows = await connection.fetch(f"SELECT {_COLUMNS} FROM webhooks ORDER BY name")
        return [self._webhook(row) for row in rows]

    async def get(self, name: str) -> Webhook | None:
        """One of them."""
        async with acquired(self._pool) as connection:
            row = await connection.fetchrow(f"SELECT {_COLUMNS} FROM webhooks WHERE name = $1", name)
        return None if row is None else self._webhook(row)

    async def put(self, name: str, url: str, secret: str | None, spec: WebhookSpec) -> Webhook | None:
        """Create or replace it; without a secret the one that it has stays. None: there are too many."""
        async with acquired(self._pool) as connection, connection.transaction():
            old = await connection.fetchrow(
                f"SELECT {_COLUMNS} FROM webhooks WHERE name = $1 FOR UPDATE", name
            )
            sealed = None if secret is None else self._sealer.seal(secret, _place(name, "secret"))
            row = await connection.fetchrow(
                _PUT, name, self._sealer.seal(url, _place(name, "url")), sealed, spec, MAX_WEBHOOKS
            )
            if row is None:
                return None
            if secret is None and row["secret"] is not None:
                self._opened(name, "secret", row["secret"])  # what stays must be of use
            await record(
                *(connection, "webhook.put", name, self._audited(old), self._audited(row)),
                new_secret=secret is not None,
                new_address=old is None or self._opened_or_empty(old) != url,
            )
        return self._webhook(row)

    async def delete(self, name: str) -> bool:
        """False when there was none."""
        async with acquired(self._pool) as connection, connection.transaction():
            old = await connection.fetchrow(
                f"DELETE FROM webhooks WHERE name = $1 RETURNING {_COLUMNS}", name
            )
            if old is None:
                return False
            await record(connection, "webhook.delete", name, self._audited(old))
        return True

    async def reseal(self) -> int:
        """Seal with the present key what is stored plainly or under an old one; returns how many webhooks.

        Raises `SealBroken` for the first that does not open.
        """
        changed = 0
        async with acquired(self._pool) as connection, connection.transaction():
            rows = await connection.fetch("SELECT name, url, secret FROM webhooks ORDER BY name FOR UPDATE")
            for name, url, secret in rows:
                stored = {"url": url} if secret is None else {"url": url, "secret": secret}
                if all(map(self._sealer.is_current, stored.values())):
                    continue
                again = {
                    column: self._sealer.seal(self._opened(name, column, text), _place(name, column))
                    for column, text in stored.items()
                }
                await connection.execute(
                    "UPDATE webhooks SET url = $2, secret = $3 WHERE name = $1",
                    name,
                    again["url"],
                    again.get("secret"),
                )
                changed += 1
        return changed

    async def plain(self) -> int:
        """How many webhooks have a secret that is stored as it is."""
        async with acquired(self._pool) as connection:
            count = await connection.fetchval(
                "SELECT count(*) FROM webhooks WHERE NOT starts_with(secret, $1)", PREFIX
            )
        return int(count)

    def _opened(self, name: str, column: str, stored: str) -> str:
        return self._sealer.open(stored, _place(name, column))

    def _opened_or_empty(self, row: asyncpg.Record) -> str:
        """The address; "" where its key is lost, so that it can be replaced or deleted all the same."""
        try:
            return self._opened(row["name"], "url", row["url"])
        except SealBroken:
            return ""

    def _webhook(self, row: asyncpg.Record) -> Webhook:
        name, url, secret, spec, updated_ms = row
        return Webhook(
            name,
            self._opened(name, "url", url),
            None if secret is None else self._opened(name, "secret", secret),
            msgspec.convert(spec, WebhookSpec),
            updated_ms,
        )

    def _audited(self, row: asyncpg.Record | None) -> dict[str, Any] | None:
        """A webhook without what is secret about it: its address may be, but for the host."""
        if row is None:
            return None
        address = urlsplit(self._opened_or_empty(row))
        host = address.netloc.rpartition("@")[2]
        return {"url": f"{address.scheme}://{host}", "has_secret": row["secret"] is not None, **row["spec"]}


def _place(name: str, column: str) -> str:
    return f"webhooks/{name}/{column}"


_COLUMNS: Final = "name, url, secret, spec, updated_at"
_PUT: Final = f"""
INSERT INTO webhooks (name, url, secret, spec)
SELECT $1, $2, $3, $4 WHERE (SELECT count(*) FROM webhooks WHERE name <> $1) < $5
ON CONFLICT (name) DO UPDATE SET url = excluded.url, secret = coalesce(excluded.secret, webhooks.secret),
    spec = excluded.spec, updated_at = now()
RETURNING {_COLUMNS}
"""
