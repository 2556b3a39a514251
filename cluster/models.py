"""`sensorium train` and `sensorium models`: training on a running platform, and its models' lives."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TypeVar

import msgspec
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from sensorium.actors.errors import SensoriumError
from sensorium.actors.models.info import ModelInfo, check_name
from sensorium.actors.origin import this_user
from sensorium.actors.ports import Filter
from sensorium.actors.training import Trained, Training
from sensorium.cluster.commanding import selection
from sensorium.cluster.config import Config
from sensorium.cluster.databases import databases
from sensorium.cluster.errors import ClusterError
from sensorium.cluster.run_directory import read_state
from sensorium.storage.audit_chain import note
from sensorium.storage.database import close_pool, open_pool
from sensorium.storage.migrate import migrate
from sensorium.storage.models.active import PgActiveModels
from sensorium.storage.models.registry import ModelRegistry

T = TypeVar("T")


class ModelsFailed(ClusterError):
    """A model could not be trained, found, loaded or set to work; the message says why."""


def train(config: Config, training: Training, console: Console) -> ModelInfo:
    """Train on the platform that runs on the data directory, and register. Raises `ClusterError`."""
    from sensorium.actors.fleet import connect
    from sensorium.actors.models.fitting import need_scikit_learn
    from sensorium.actors.training import check, train

    with _failures():
        check(training)
        need_scikit_learn()
        registry = config.models.open()
        address = config.cluster.ray_address or read_state(config.storage.data_dir).ray_address
        logging.getLogger("ray").setLevel(logging.ERROR)  # it warns of what the platform itself set up
        with _progress(console) as bar:
            task = bar.add_task("devices", total=None)
            for step in train(connect(address), training):
                if isinstance(step, Trained):
                    return _registered(registry, step)
                bar.update(task, completed=step.devices_done, total=step.devices)
    raise ModelsFailed("the training ended without a model")


def selected(terms: Sequence[str]) -> Filter:
    """The devices that `metadata.KEY=VALUE` and `id=ID` choose. Raises `ConfigError`."""
    found = selection([*terms, "type=any"])
    return Filter(metadata=found.get("metadata", {}), device_ids=found.get("device_ids"))


def listed(config: Config) -> list[tuple[ModelInfo, bool]]:
    """All versions, and whether each is at work. Raises `ClusterError`."""
    with _failures():
        infos = config.models.open().all()
        active = {one.info.label for one in _with_active(config, PgActiveModels.infos)}
    return [(info, info.label in active) for info in infos]


def shown(config: Config, name: str, version: int | None) -> ModelInfo:
    """One version. Raises `ClusterError`."""
    with _failures():
        return config.models.open().get(name, version)


def activate(config: Config, name: str, version: int | None) -> ModelInfo:
    """Set a version to work, instead of any other of the model. Raises `ClusterError`."""
    from sensorium.actors.models import plain
    from sensorium.storage.models.artefact import load

    with _failures():
        registry = config.models.open()
        info = registry.get(name, version)
        numbers = plain.encode(load(registry.artefact(info), info.sha256))
        _with_active(config, lambda active: active.put(info, numbers), f"activate {info.label}")
        registry.mark(name, info.version)
        return info


def deactivate(config: Config, name: str) -> None:
    """Take a model from work. Raises `ClusterError`."""
    with _failures():
        if not _with_active(config, lambda active: active.remove(check_name(name)), f"deactivate {name}"):
            raise ModelsFailed(f"no version of the model {name} is at work")
        config.models.open().mark(name, None)


def delete(config: Config, name: str, version: int) -> None:
    """Forget a version that is not at work. Raises `ClusterError`."""
    with _failures():
        if f"{name}@{version}" in {one.info.label for one in _with_active(config, PgActiveModels.infos)}:
            raise ModelsFailed(f"{name}@{version} is at work: activate another version, or deactivate it")
        config.models.open().delete(name, version)


def table(items: list[tuple[ModelInfo, bool]]) -> Table:
    """The list as people read it."""
    made = Table("model", "kind", "device type", "devices", "rows", "trained (UTC)", "at work")
    for info, active in items:
        trained = f"{datetime.fromtimestamp(info.trained_ms / 1000, UTC):%Y-%m-%d %H:%M}"
        cells = (info.label, info.kind, info.device_type, f"{info.devices:,}", f"{info.rows:,}", trained)
        made.add_row(*cells, "yes" if active else "")
    return made


def told(info: ModelInfo) -> str:
    """What came of a training, in a few lines."""
    head = f"{info.label}: {len(info.metrics)} metrics of {info.devices:,} devices, {info.rows:,} rows"
    scores = [f"  {name}: {score:.3g}" for name, score in info.scores.items()]
    return "\n".join([head, *scores, *(f"  left out: {line}" for line in info.left_out)])


def _registered(registry: ModelRegistry, trained: Trained) -> ModelInfo:
    from sensorium.storage.models.artefact import dump, dump_failure, libraries

    info = msgspec.structs.replace(trained.info, libraries=libraries())
    if info.kind == "outliers":
        data = dump(trained.fitted)
    else:
        data = dump_failure(info.metrics, int(info.settings["window"]), trained.fitted)
    return registry.add(info, data)


def _with_active(config: Config, use: Callable[[PgActiveModels], Awaitable[T]], change: str = "") -> T:
    """What `use` makes of the models at work. With `change` it is noted in the audit log as that."""

    async def run(dsn: str) -> T:
        await migrate(dsn)
        pool = await open_pool(dsn, 1, "sensorium-models")
        try:
            found = await use(PgActiveModels(pool))
        finally:
            await close_pool(pool)
        if change:
            what, _, thing = change.partition(" ")
            await note(dsn, f"model.{what}", thing, this_user("cli"))
        return found

    with databases(config, fresh=False) as dsns:
        return asyncio.run(run(dsns[0]))


@contextmanager
def _failures() -> Iterator[None]:
    try:
        yield
    except (SensoriumError, ConnectionError) as error:
        raise ModelsFailed(str(error)) from error


@contextmanager
def _progress(console: Console) -> Iterator[Progress]:
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        yield bar
