"""A database for one test after another: what a test leaves is taken out, which is quicker than a copy."""

from typing import Any, Final

import asyncpg

from sensorium.storage.embedded import EmbeddedPostgres

_STRUCTURE: Final = """
SELECT md5(string_agg(concat_ws(' ', oid, relname, relnatts, relchecks, relhastriggers), ',' ORDER BY oid))
    || (SELECT count(*) FROM pg_db_role_setting) || ' ' || (SELECT count(*) FROM pg_trigger)
    || ' ' || (SELECT count(*) FROM pg_proc) || ' ' || (SELECT count(*) FROM pg_constraint)
FROM pg_class WHERE oid >= 16384 AND relnamespace <> 'pg_toast'::regnamespace
"""
_OTHERS_GO: Final = """
SELECT count(pg_terminate_backend(pid, 5000)) FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'
"""
_OURS: Final = """
SELECT oid, relname FROM pg_class WHERE relkind::text = $1 AND relnamespace = 'public'::regnamespace
"""
_FILLED: Final = "SELECT relname FROM pg_class WHERE oid = ANY($1::oid[]) AND pg_relation_size(oid) > 0"


class KeptDatabase:
    """A copy of a template, made anew only after a test that changed what tables there are.

    Call `clean` after each test, and `close` last.
    """

    def __init__(self, server: EmbeddedPostgres, template: str, name: str) -> None:
        self.dsn = of_database(server.dsn, name)
        self._server = server
        self._template = template
        self._name = name
        self._own: Any = None
        self._structure = ""
        self._empty: list[int] = []
        self._seeded: list[str] = []
        self._differ = ""
        self._sequences = ""
        """Sets them all back."""

    async def ready(self) -> None:
        """Make it unless it is there."""
        if self._own is None:
            await self._of_server(
                f"CREATE DATABASE {self._name} TEMPLATE {self._template} STRATEGY FILE_COPY"
            )
            self._own = await asyncpg.connect(self.dsn)
            await self._learn()

    async def clean(self) -> None:
        """Leave it as the template is, without anybody's connections."""
        try:
            await self._own.execute(_OTHERS_GO)
            same = await self._own.fetchval(_STRUCTURE) == self._structure
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError):
            same = False  # the test has stopped the server, or the like
        if not same:
            await self.close()
            return
        changed = [row[0] for row in await self._own.fetch(_FILLED, self._empty)]
        changed += [row[0] for row in await self._own.fetch(self._differ)]
        again = (f"INSERT INTO {t} TABLE pristine.{t}" for t in changed if t in self._seeded)
        truncate = [f"TRUNCATE {', '.join(changed)}"] if changed else []
        await self._own.execute("; ".join([*truncate, *again, self._sequences]))
        self._differ = await self._asked()

    async def close(self) -> None:
        """Drop it."""
        own, self._own = self._own, None
        if own is not None:
            own.terminate()
            await self._of_server(f"DROP DATABASE {self._name} WITH (FORCE)")

    async def _learn(self) -> None:
        own = self._own
        self._empty, self._seeded = [], []
        # Tables that are only appended to say so by a trigger.
        await own.execute("SET session_replication_role = replica; CREATE SCHEMA pristine")
        for oid, table in await own.fetch(_OURS, "r"):
            if not await own.fetchval(f"SELECT EXISTS (TABLE {table})"):
                self._empty.append(oid)
                continue
            self._seeded.append(table)
            await own.execute(f"CREATE TABLE pristine.{table} AS TABLE {table}")
        set_back = []
        for _, name in await own.fetch(_OURS, "S"):
            value, called = await own.fetchrow(f"SELECT last_value, is_called FROM {name}")
            set_back.append(f"setval('{name}', {value}, {str(called).lower()})")
        self._sequences = f"SELECT {', '.join(set_back)}"
        self._structure = await own.fetchval(_STRUCTURE)
        self._differ = await self._asked()

    async def _asked(self) -> str:
        """Asks which of the tables that the template has rows in were changed since now."""
        now = await self._own.fetchval("SELECT pg_current_xact_id()::xid")
        return " UNION ALL ".join(
            f"SELECT '{t}' WHERE (SELECT count(*) FROM {t}) <> (SELECT count(*) FROM pristine.{t})"
            f" OR EXISTS (SELECT FROM {t} WHERE age(xmin) < age('{now}'::xid))"
            for t in self._seeded
        )

    async def _of_server(self, statement: str) -> None:
        admin = await asyncpg.connect(self._server.dsn)
        try:
            await admin.execute(statement)
        finally:
            await admin.close()


def of_database(dsn: str, name: str) -> str:
    return dsn.replace("/postgres?", f"/{name}?")
