"""`sensorium status`: what a running platform says of itself, for a person or a program."""

import time
from collections import Counter
from pathlib import Path
from typing import Any, Final

import msgspec
from prometheus_client.parser import text_string_to_metric_families
from rich import box
from rich.table import Table

from sensorium.actors.rules import Severity
from sensorium.cluster.api_client import PlatformApi
from sensorium.cluster.live import ALARMS_ASKED, Counters, alarm, counters, figures
from sensorium.cluster.run_directory import RunState, read_state
from sensorium.storage.disk import DiskSpace

TABLES_SHOWN: Final = 4
_RAYS_OWN: Final = frozenset({"CPU", "memory", "object_store_memory"})


class Node(msgspec.Struct, frozen=True):
    """A machine of the cluster; see `serve.pages.NodeItem`."""

    node_id: str
    address: str
    alive: bool
    resources: dict[str, float]
    hosts: list[str]
    draining: bool = False


class Host(msgspec.Struct, frozen=True):
    """A process that hosts devices; see `serve.pages.HostItem`."""

    name: str
    state: str
    node_id: str
    pid: int
    incarnation: int
    shards: int
    devices_active: int
    activations: int
    lease_age_s: float
    timers_lag_s: float
    commit_lag_s: float
    device: str | None = None


class IsolatedDevice(msgspec.Struct, frozen=True):
    """See `serve.pages.IsolatedDevice`."""

    device_id: str
    process: str
    state: str


class HostList(msgspec.Struct, frozen=True):
    """See `serve.pages.HostList`."""

    items: list[Host] = []
    wanted: int = 0
    balanced: bool = False
    isolated: list[IsolatedDevice] = []
    max_isolated: int = 0


class Status(msgspec.Struct, frozen=True):
    """A platform's status. Counts are since each host's start.

    `projection_lag` counts the log entries that each projection has yet to take; `latency_p50_s` and
    `latency_p99_s` are None while nothing was committed. `ready` and `checks` are those of `/readyz`.
    """

    phase: str
    pid: int
    version: str
    uptime_s: float
    http_url: str
    mqtt_url: str
    database: str
    ray_address: str = ""
    ready: bool = False
    checks: dict[str, str] = {}
    hosts: int = 0
    devices_active: int = 0
    readings_committed: int = 0
    readings_duplicate: int = 0
    dead_letters: int = 0
    latency_p50_s: float | None = None
    latency_p99_s: float | None = None
    alarms: dict[str, int] = {}
    alarms_capped: bool = False
    projection_lag: dict[str, int] = {}
    storage_bytes: dict[str, int] = {}
    """By table with its indexes and partitions, over all databases."""
    storage_class_bytes: dict[str, int] = {}
    """By retention class, over all tables that are kept by class."""
    disk_free_bytes: int | None = None
    """Of the disk that the embedded database is on."""
    disk_bytes: int | None = None
    nodes: list[Node] = []
    hosting: HostList = HostList()


async def status(data_dir: Path) -> Status:
    """The status of the platform that runs on the directory.

    Raises:
        NotRunning: none does.
        PlatformUnreachable: it is up but its API does not answer.
    """
    state = read_state(data_dir)
    if state.phase != "ready":
        return of_state(state)
    async with PlatformApi(state.http_url) as api:
        readiness = await api.readiness()
        page = await api.metrics()
        # The alarms come from the database: without it, the rest is still worth telling.
        alarms = await api.active_alarms(ALARMS_ASKED) if readiness["ready"] else []
        nodes = msgspec.convert(await api.nodes(), list[Node])
        hosting = msgspec.convert(await api.hosts(), HostList)
    return msgspec.structs.replace(of_pages(state, readiness, page, alarms), nodes=nodes, hosting=hosting)


def of_state(state: RunState) -> Status:
    """The status of a platform that does not serve yet, or no longer."""
    return Status(
        phase=state.phase,
        pid=state.pid,
        version=state.version,
        uptime_s=round(max(0.0, time.time() - state.started_ms / 1000), 1) if state.started_ms else 0.0,
        http_url=state.http_url,
        mqtt_url=state.mqtt_url,
        database=state.database,
        ray_address=state.ray_address,
    )


def of_pages(state: RunState, readiness: dict[str, Any], page: str, alarms: list[dict[str, Any]]) -> Status:
    """The status that these answers of the API come to."""
    since_start = figures(Counters(0.0), counters(page, 1.0), [alarm(item) for item in alarms])
    lag: Counter[str] = Counter()
    stored: Counter[str] = Counter()
    by_class: Counter[str] = Counter()
    disk: dict[str, int] = {}
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            if sample.name == "sensorium_projection_lag":
                lag[sample.labels["name"]] += int(sample.value)
            elif sample.name == "sensorium_storage_bytes":
                stored[sample.labels["table"]] += int(sample.value)
            elif sample.name in ("sensorium_disk_free_bytes", "sensorium_disk_bytes"):
                disk[sample.name] = int(sample.value)
            elif sample.name == "sensorium_storage_class_bytes" and sample.labels["retention_class"]:
                by_class[sample.labels["retention_class"]] += int(sample.value)
    return msgspec.structs.replace(
        of_state(state),
        ready=bool(readiness["ready"]),
        checks={str(name): str(found) for name, found in (readiness.get("checks") or {}).items()},
        hosts=since_start.hosts,
        devices_active=since_start.devices_active,
        readings_committed=since_start.committed,
        readings_duplicate=since_start.duplicates,
        dead_letters=since_start.dead_letters,
        latency_p50_s=since_start.p50_s,
        latency_p99_s=since_start.p99_s,
        alarms=dict(since_start.alarms_by_severity),
        alarms_capped=len(alarms) >= ALARMS_ASKED,
        projection_lag=dict(lag),
        storage_bytes=dict(stored.most_common()),
        storage_class_bytes={number: by_class[number] for number in sorted(by_class, key=int)},
        disk_free_bytes=disk.get("sensorium_disk_free_bytes"),
        disk_bytes=disk.get("sensorium_disk_bytes"),
    )


def table(shown: Status) -> Table:
    """The status as a person reads it."""
    rows = Table.grid(padding=(0, 3))
    condition = shown.phase if shown.phase != "ready" or shown.ready else "up, but not ready"
    rows.add_row("platform", f"{condition} (pid {shown.pid}, version {shown.version})")
    rows.add_row("up for", f"{shown.uptime_s:,.0f} s")
    addresses = {
        "API": shown.http_url,
        "MQTT": shown.mqtt_url,
        "database": shown.database,
        "Ray": shown.ray_address,
    }
    for name, address in addresses.items():
        rows.add_row(name, address)
    for name, found in shown.checks.items():
        rows.add_row(f"check {name}", found)
    if shown.phase != "ready":
        return rows
    for node in shown.nodes:
        rows.add_row(f"node {node.address}", _told(node))
    rows.add_row("hosts", _hosting(shown))
    if shown.hosting.isolated:
        rows.add_row("isolated devices", _isolated(shown.hosting))
    rows.add_row("devices active", f"{shown.devices_active:,}")
    rows.add_row(
        "readings", f"{shown.readings_committed:,} committed, {shown.readings_duplicate:,} duplicates refused"
    )
    rows.add_row("dead letters", f"{shown.dead_letters:,}")
    if shown.latency_p50_s is not None and shown.latency_p99_s is not None:
        rows.add_row(
            "commit latency",
            f"p50 {shown.latency_p50_s * 1000:.1f} ms, p99 {shown.latency_p99_s * 1000:.1f} ms",
        )
    counts = [f"{n} {s}" for s in Severity if (n := shown.alarms.get(s))]
    rows.add_row("active alarms", (", ".join(counts) or "none") + (" or more" if shown.alarms_capped else ""))
    for name, behind in shown.projection_lag.items():
        rows.add_row(f"lag of {name}", f"{behind:,}")
    if shown.storage_bytes:
        rows.add_row("storage", _stored(shown.storage_bytes))
    if shown.disk_free_bytes is not None and shown.disk_bytes is not None:
        space = DiskSpace(shown.disk_free_bytes, shown.disk_bytes)
        warning = ": little, and commits stop when there is none" if space.low else ""
        told_of = f"{space.free_bytes / 1e9:,.1f} of {space.total_bytes / 1e9:,.1f} GB"
        rows.add_row("free on disk", told_of + warning)
    if shown.storage_class_bytes:
        told = (f"{number}: {size / 1e6:,.1f} MB" for number, size in shown.storage_class_bytes.items())
        rows.add_row("retention classes", ", ".join(told))
    return rows


def hosts_table(shown: Status) -> Table:
    """The hosts as a person reads them."""
    addresses = {node.node_id: node.address for node in shown.nodes}
    rows = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in ("host", "node", "state"):
        rows.add_column(column, no_wrap=True)
    # Narrow enough for 80 columns.
    for column in (
        "pid",
        "incar-\nnation",
        "shards",
        "active",
        "activ-\nations",
        "commit\nlag",
        "timer\nlag",
    ):
        rows.add_column(column, justify="right", no_wrap=True)
    for host in shown.hosting.items:
        counts = (host.incarnation, host.shards, host.devices_active, host.activations)
        lags = (host.commit_lag_s, host.timers_lag_s)
        rows.add_row(
            *(host.name, addresses.get(host.node_id, "?"), host.state, str(host.pid)),
            *(f"{count:,}" for count in counts),
            *(f"{lag_s:.1f} s" for lag_s in lags),
        )
    return rows


def _hosting(shown: Status) -> str:
    hosting = shown.hosting
    hosts = shown.hosts - sum(host.device is not None for host in hosting.items)
    missing = f" of {hosting.wanted}" if hosting.wanted != hosts else ""
    return f"{hosts}{missing}" + ("" if hosting.balanced else ", shards are moving")


def _isolated(hosting: HostList) -> str:
    waiting = [f"{one.device_id} is {one.state}" for one in hosting.isolated if one.state != "own"]
    own = len(hosting.isolated) - len(waiting)
    return "; ".join([f"{own} of at most {hosting.max_isolated} in a process of their own", *waiting])


def _stored(size_bytes: dict[str, int]) -> str:
    """All together, and the largest tables."""
    most = sorted(size_bytes.items(), key=lambda item: -item[1])[:TABLES_SHOWN]
    parts = ", ".join(f"{table} {size / 1e6:,.1f}" for table, size in most)
    return f"{sum(size_bytes.values()) / 1e6:,.1f} MB ({parts})"


def _told(node: Node) -> str:
    if not node.alive:
        return "gone"
    cpus, memory_bytes = node.resources.get("CPU", 0.0), node.resources.get("memory", 0.0)
    own = [f"{amount:g} {name}" for name, amount in node.resources.items() if name not in _RAYS_OWN]
    parts = [f"{cpus:g} CPU", f"{memory_bytes / 2**30:.1f} GiB", *own, ", ".join(node.hosts) or "no hosts"]
    return "; ".join([*parts, "draining"] if node.draining else parts)
