"""What `LogEntry` is made from, in SQL: of a reading `r`, and of an event `r`."""

from typing import Final

READING_ENTRY: Final = (
    "r.shard, r.log_offset, r.device, r.time, r.key, r.flags, r.metric_set, r.numbers, r.texts,"
    " NULL::text AS kind, NULL::jsonb AS body, r.committed_at"
)
EVENT_ENTRY: Final = (
    "r.shard, r.log_offset, r.device, r.time, NULL::bigint, NULL::smallint, NULL::bigint, NULL::float8[],"
    " NULL::text[], r.kind, r.body, r.committed_at"
)
