"""The statements by which `log` reads. Those by which it writes are in `_write`."""

from functools import lru_cache
from typing import Final

from sensorium.storage._read import ALARM_COLUMNS, DEVICE_COLUMNS
from sensorium.storage._readings_sql import WHENEVER, Committed, holds, readings

HEAD_SLACK_S: Final = 600
"""How much older than the moment of `save` the heads given to it may be, commits in flight included."""
TAIL_SLACK_MS: Final = 3_600_000
"""The same for snapshots. Generous: it prunes whole days only."""

LET_IN: Final = "SELECT EXISTS (SELECT FROM hosts WHERE incarnation = $1)"

SAVED: Final = """
SELECT CASE WHEN count(*) = cardinality($1::smallint[]) THEN min(saved_at) END
FROM shards WHERE shard = ANY($1::smallint[])
"""
"""Since when the log has to be looked at for the shards' heads; null: all of it."""


@lru_cache(maxsize=16)
def heads(committed: Committed) -> str:
    """Give the shards $1 a row with their head each. What is behind saved ones was `committed` then."""
    return f"""
    WITH known AS (SELECT shard, head, saved_at FROM shards WHERE shard = ANY($1::smallint[])),
         since AS (SELECT CASE WHEN count(*) = cardinality($1::smallint[]) THEN min(saved_at)
                               ELSE '-infinity' END - interval '{HEAD_SLACK_S} s' AS floor FROM known),
         newer AS (SELECT shard, max(log_offset) AS head FROM (
                       SELECT shard, log_offset FROM readings r
                           WHERE {committed.rows} AND committed_at >= (SELECT floor FROM since)
                               AND shard = ANY($1::smallint[])
                       UNION ALL
                       SELECT shard, last_offset FROM reading_chunks c
                           WHERE {committed.chunks} AND shard = ANY($1::smallint[])
                               AND committed_at >= (SELECT floor FROM since) - interval '1 day'
                       UNION ALL
                       SELECT shard, log_offset FROM events r
                           WHERE {committed.rows} AND committed_at >= (SELECT floor FROM since)
                               AND shard = ANY($1::smallint[])
                   ) rows GROUP BY shard)
    INSERT INTO shards (shard, head, saved_at)
    SELECT asked.shard, greatest(known.head, newer.head, 0), now()
        FROM unnest($1::smallint[]) AS asked (shard)
        LEFT JOIN known USING (shard) LEFT JOIN newer USING (shard) ORDER BY asked.shard
    ON CONFLICT (shard) DO UPDATE SET head = greatest(shards.head, excluded.head),
        saved_at = greatest(shards.saved_at, excluded.saved_at)
    RETURNING shard, head
    """


DEVICES: Final = f"SELECT {DEVICE_COLUMNS} FROM devices WHERE device_id = ANY($1::text[])"
SNAPSHOTS: Final = (
    "SELECT device, shard, log_offset, replay_from, state, saved_at FROM snapshots"
    " WHERE device = ANY($1::bigint[])"
)
ACTIVE_ALARMS: Final = (
    f"SELECT {ALARM_COLUMNS} FROM alarms WHERE device = ANY($1::bigint[]) AND state = 'ACTIVE'"
    " ORDER BY start_at, alarm_id"
)

COMPACTED_DEVICES: Final = """
SELECT device, first_day - date '1970-01-01', last_day - date '1970-01-01' FROM compacted_devices
WHERE device = ANY($1::bigint[])
"""

TIMERS_OF: Final = "SELECT device, name, due_at, since_at FROM timers WHERE device = ANY($1::bigint[])"

COMMANDS_REMEMBERED: Final = 32
"""Ended commands that an activated device recognises (`actors.commands.REMEMBERED`)."""

COMMANDS_OF: Final = f"""
SELECT asked.device, c.body FROM unnest($1::bigint[]) AS asked (device), LATERAL (
    (SELECT number, body FROM commands WHERE device = asked.device AND open)
    UNION ALL
    (SELECT number, body FROM commands WHERE device = asked.device AND NOT open
     ORDER BY number DESC LIMIT {COMMANDS_REMEMBERED})
) c ORDER BY c.number
"""

PRESENCE_OF: Final = "SELECT device, online, since_at FROM presences WHERE device = ANY($1::bigint[])"

TWINS_OF: Final = "SELECT device, body FROM twins WHERE device = ANY($1::bigint[])"

TIMERS_DUE: Final = """
SELECT shard, device_id, name, due_at, since_at FROM timers
WHERE due_at < $2 AND shard = ANY($1::smallint[]) ORDER BY due_at, device_id, name LIMIT $3
"""


@lru_cache(maxsize=16)
def tails(committed: Committed = WHENEVER) -> str:
    """What is behind the snapshots of the devices $1, and was committed then; without one that is everything.

    What is in another shard than the snapshot, the device left behind in it: the snapshot has all of that.
    """
    tail = readings(
        "r.log_offset, r.time, r.key, r.flags, r.metric_set, r.numbers, r.texts",
        """r.device = asked.device AND r.time >= asked.replay_from AND r.log_offset > asked.log_offset
        AND (asked.shard IS NULL OR r.shard = asked.shard)""",
        f"r.committed_at >= asked.floor AND {committed.rows}",
        f"""c.last_time >= asked.replay_from AND c.last_offset > asked.log_offset
        AND c.committed_at >= asked.floor - interval '1 day' AND {committed.chunks}""",
    )
    return f"""
        SELECT asked.device, r.log_offset, r.time, r.key, r.flags, r.metric_set, r.numbers, r.texts
        FROM (SELECT wanted.device, s.shard, coalesce(s.replay_from, '-infinity') AS replay_from,
                     coalesce(s.log_offset, 0) AS log_offset,
                     coalesce(s.saved_at - interval '{TAIL_SLACK_MS} ms', '-infinity') AS floor
                  FROM unnest($1::bigint[]) AS wanted (device) LEFT JOIN snapshots s USING (device)) AS asked,
        LATERAL ({tail}) AS r
        ORDER BY asked.device, r.log_offset
    """


@lru_cache(maxsize=16)
def seen(committed: Committed) -> str:
    """Which of the readings $1 device, $2 time, $3 key are stored; `committed` holds for all of them."""
    return f"""
        SELECT asked.device, asked.time, asked.key
        FROM unnest($1::bigint[], $2::timestamptz[], $3::bigint[]) AS asked (device, time, key)
        WHERE {holds("asked.device", "asked.time", "asked.key", committed)}
    """


# A message without a time of its own was stored with that of its receipt, just before its commit: a day that
# is compacted has none of these.
SEEN_WITHOUT_TIME: Final = """
SELECT DISTINCT asked.device, r.key
FROM (SELECT device, array_agg(key) AS keys FROM unnest($1::bigint[], $2::bigint[]) AS a (device, key)
          GROUP BY device) AS asked,
LATERAL (SELECT key FROM readings
             WHERE device = asked.device AND time >= now() - interval '2 hours' AND key = ANY(asked.keys)
                 AND committed_at >= now() - interval '1 hour') AS r
"""
