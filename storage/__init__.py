"""The ports' implementations: the log in PostgreSQL, the registry, read models and the embedded server."""

from sensorium.storage.alarms import Alarms
from sensorium.storage.claim import Claim, DatabaseClaimed
from sensorium.storage.database import check_dsn, close_pool, open_pool
from sensorium.storage.dead_letters import DeadLetters, StoredDeadLetter
from sensorium.storage.embedded import EmbeddedFailed, EmbeddedPostgres
from sensorium.storage.history import Bucket, History, Point, TypeBucket
from sensorium.storage.hosts import HostRow, PgMembership
from sensorium.storage.log import PgLog
from sensorium.storage.migrate import SchemaMismatch, migrate
from sensorium.storage.pages import Page
from sensorium.storage.partitions import drop_partitions, ensure_partitions
from sensorium.storage.ports_factory import PgHostPorts, PgMembershipFactory
from sensorium.storage.registry import PgRegistry
from sensorium.storage.rules import PgRules

__all__ = [
    "Alarms",
    "Bucket",
    "Claim",
    "DatabaseClaimed",
    "DeadLetters",
    "EmbeddedFailed",
    "EmbeddedPostgres",
    "History",
    "HostRow",
    "Page",
    "PgHostPorts",
    "PgLog",
    "PgMembership",
    "PgMembershipFactory",
    "PgRegistry",
    "PgRules",
    "Point",
    "SchemaMismatch",
    "StoredDeadLetter",
    "TypeBucket",
    "check_dsn",
    "close_pool",
    "drop_partitions",
    "ensure_partitions",
    "migrate",
    "open_pool",
]
