"""The databases of a platform that may be running or not, for commands that work on them directly."""

from collections.abc import Iterator
from contextlib import contextmanager

from sensorium.cluster.config import Config
from sensorium.cluster.errors import ConfigError
from sensorium.cluster.run_directory import RunDirectory
from sensorium.storage.embedded import EmbeddedPostgres


@contextmanager
def databases(config: Config, *, fresh: bool) -> Iterator[tuple[str, ...]]:
    """The URLs of the databases. The embedded one is started unless a platform runs on it.

    With `fresh` it may be a new one. Raises `ConfigError`, `AlreadyRunning`, `EmbeddedFailed`.
    """
    storage = config.storage
    if storage.main_url is not None:
        yield (storage.main_url, *storage.further_urls)
        return
    data_dir = storage.data_dir
    if not fresh and not (data_dir / "postgres" / "PG_VERSION").exists():
        raise ConfigError(f"no platform has kept anything in {data_dir}: name its --data-dir")
    server = EmbeddedPostgres(data_dir / "postgres")
    if not fresh and (dsn := server.serving()) is not None:
        yield (dsn,)
        return
    # Nobody may start a platform on it meanwhile.
    with RunDirectory(data_dir), server:
        yield (server.dsn,)
