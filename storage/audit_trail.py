"""Entries of the audit log as they are written, with the change that they tell of. See `audit_chain`."""

import time
from collections.abc import Iterable
from functools import lru_cache
from hashlib import sha256
from typing import Any, Final
from uuid import uuid4

import msgspec

from sensorium.actors.origin import ASKED_BY, Origin
from sensorium.actors.records import AuditRow
from sensorium.storage._joined import Change, apply
from sensorium.storage.database import Connection

MAX_BYTES: Final = 65_536
"""Of each of `before` and `after` as JSON; a longer one is kept as its size and hash."""
REDACTED: Final = "[redacted]"
_SECRET: Final = (
    "secret",
    "password",
    "passwd",
    "token",
    "apikey",
    "authorization",
    "credential",
    "privatekey",
)

_APPEND: Final = "INSERT INTO audit_outbox (entry_id, body) SELECT * FROM unnest($1::text[], $2::text[])"


def entries(rows: Iterable[AuditRow]) -> Change:
    """Append entries. It belongs into the transaction that makes the changes that they tell of."""
    made = [_entry(row) for row in rows]
    return Change(_APPEND, [[e["entry_id"] for e in made], [canonical(e).decode() for e in made]])


async def record(
    connection: Connection,
    what: str,
    thing: str,
    before: Any = None,
    after: Any = None,
    origin: Origin | None = None,
    **note: Any,
) -> None:
    """Write an entry inside the caller's transaction, if `origin` or `ASKED_BY` says who asked.

    `before` and `after` are anything that becomes JSON, None where there is nothing.
    """
    origin = origin or ASKED_BY.get()
    if origin is not None:
        now_ms = time.time_ns() // 1_000_000
        row = AuditRow("", now_ms, origin, what, thing, _plain(before), _plain(after), note)
        await apply(connection, entries([row]))


def canonical(value: Any) -> bytes:
    """The JSON that hashes are over: keys sorted, no spaces."""
    return msgspec.json.encode(value, order="sorted")


def redacted(value: Any) -> Any:
    """The value with a mark for whatever its key calls a secret, and without passwords in URLs."""
    if isinstance(value, dict):
        return {
            key: REDACTED
            if part is not None and not isinstance(part, bool) and _is_secret(key)
            else redacted(part)
            for key, part in value.items()
        }
    if isinstance(value, list | tuple):
        return [redacted(part) for part in value]
    if isinstance(value, str) and "://" in value:
        scheme, _, rest = value.partition("://")
        place = rest.split("/", 1)[0]
        if "@" in place:
            return f"{scheme}://{REDACTED}@{rest.split('@', 1)[1]}"
    return value


# The names of metrics, parameters and settings come again and again.
@lru_cache(maxsize=4096)
def _is_secret(key: str) -> bool:
    plain = key.lower().replace("_", "").replace("-", "")
    return any(word in plain for word in _SECRET)


def _entry(row: AuditRow) -> dict[str, Any]:
    who = row.origin
    return {
        "entry_id": uuid4().hex,
        "at_ms": row.at_ms,
        "by": _storable(who.by or str(row.note.get("by", ""))),
        "client": who.client,
        "way": who.way,
        "request_id": who.request_id,
        "what": row.what,
        "thing": _storable(row.thing),
        "device_id": row.device_id or None,
        "before": bounded(redacted(_storable(row.before))),
        "after": bounded(redacted(_storable(row.after))),
        "note": bounded(redacted(_storable(dict(row.note)))) or None,
    }


def _plain(value: Any) -> Any:
    return msgspec.to_builtins(value, str_keys=True)


def bounded(value: Any) -> Any:
    """The value, or its size and hash when its JSON is longer than `MAX_BYTES`."""
    data = canonical(value)
    if len(data) <= MAX_BYTES:
        return value
    return {"left_out": {"size_bytes": len(data), "sha256": sha256(data).hexdigest()}}


def _storable(value: Any) -> Any:
    """Without what a text of PostgreSQL cannot hold."""
    if isinstance(value, str):
        return value.replace("\0", "\ufffd").encode("utf-8", "replace").decode()
    if isinstance(value, dict):
        return {_storable(key): _storable(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_storable(part) for part in value]
    return value
