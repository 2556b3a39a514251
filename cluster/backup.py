"""`sensorium backup` and `sensorium restore`: where the databases are, and what is shown meanwhile."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from sensorium.actors.errors import SensoriumError
from sensorium.actors.origin import this_user
from sensorium.cluster.config import Config
from sensorium.cluster.databases import databases
from sensorium.cluster.errors import ClusterError
from sensorium.storage.audit_chain import note
from sensorium.storage.backup import Told, back_up
from sensorium.storage.backup_files import Manifest, read_manifest
from sensorium.storage.embedded import EmbeddedFailed
from sensorium.storage.restore import restore, verify


class BackupFailed(ClusterError):
    """A backup could not be made, read or restored; the message says why and what to do."""


def make(config: Config, folder: Path, console: Console) -> Manifest:
    """A backup of the platform's databases, which may be running. Raises `ClusterError`."""
    with _failures(folder), databases(config, fresh=False) as dsns, _progress(console) as told:
        return asyncio.run(back_up(dsns, folder, version("sensorium"), told))


def check(folder: Path, console: Console) -> Manifest:
    """The backup, once all its checksums are right. Raises `ClusterError`."""
    with _failures(folder), _progress(console) as told:
        return asyncio.run(verify(folder, told))


def put_back(config: Config, folder: Path, console: Console) -> Manifest:
    """Fills the platform's databases, which are empty. Raises `ClusterError`."""
    with _failures(folder):
        read_manifest(folder)
    with _failures(folder), databases(config, fresh=True) as dsns, _progress(console) as told:
        done = asyncio.run(restore(folder, dsns, told))
        asyncio.run(note(dsns[0], "platform.restore", str(folder.resolve()), this_user("cli")))
        return done


def told(manifest: Manifest) -> str:
    """What a backup holds, in a line."""
    devices, readings = (sum(d.rows(table) for d in manifest.databases) for table in ("devices", "readings"))
    size_mb = sum(database.size_bytes for database in manifest.databases) / 1e6
    return f"{devices:,} devices, {readings:,} readings, {size_mb:,.1f} MB before compression"


@contextmanager
def _failures(folder: Path) -> Iterator[None]:
    try:
        yield
    except (SensoriumError, EmbeddedFailed) as error:
        raise BackupFailed(str(error)) from error
    except OSError as error:
        raise BackupFailed(f"{error.filename or folder}: {error.strerror or error}") from error


@contextmanager
def _progress(console: Console) -> Iterator[Told]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=None)

        def update(table: str, done: int, of_all: int) -> None:
            bar.update(task, description=table, completed=done, total=of_all)

        yield update
