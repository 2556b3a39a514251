"""The names that others may import from the room; a change of them is a decision."""

import pickle

import sensorium.storage
from sensorium.storage import PgHostPorts, PgMembershipFactory


def test_public_names() -> None:
    assert sorted(sensorium.storage.__all__) == [
        *(
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
        ),
        *("PgHostPorts", "PgLog", "PgMembership", "PgMembershipFactory", "PgRegistry", "PgRules", "Point"),
        *("SchemaMismatch", "StoredDeadLetter", "TypeBucket", "check_dsn", "close_pool", "drop_partitions"),
        *("ensure_partitions", "migrate", "open_pool"),
    ]


def test_factories_travel() -> None:
    for factory in (PgHostPorts("postgresql://h/d"), PgMembershipFactory("postgresql://h/d")):
        assert pickle.loads(pickle.dumps(factory)) == factory
