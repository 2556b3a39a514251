"""The counters in Prometheus' text format. Not a registry: it renders what the processes report."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from sensorium.actors.figures import LATENCY_BOUNDS_S

CONTENT_TYPE: Final = CONTENT_TYPE_LATEST

# Labelled by host: a host that is replaced begins at zero, which a sum over hosts would hide from rate().
_HOST_COUNTERS: Final = {
    "readings_committed": ("sensorium_readings_committed", "Readings committed."),
    "readings_duplicate": ("sensorium_readings_duplicate", "Readings recognised as committed before."),
    "activations": ("sensorium_activations", "Devices loaded into memory."),
    "passivations": ("sensorium_passivations", "Devices dropped from memory."),
    "commits": ("sensorium_commits", "Transactions."),
    "commit_failures": ("sensorium_commit_failures", "Transactions that failed; their messages came again."),
    "passivations_saved": ("sensorium_passivations_saved", "Devices saved before they were dropped."),
    "room_waits": ("sensorium_room_waits", "Turns that waited until devices were dropped."),
    "snapshots": ("sensorium_snapshots", "Device states saved."),
}
_HOST_GAUGES: Final = {
    "devices_active": ("sensorium_devices_active", "Devices in memory."),
    "active_bytes": ("sensorium_active_bytes", "Memory that the devices in it take, as estimated."),
    "devices_unsaved": ("sensorium_devices_unsaved", "Devices that changed since their snapshot."),
    "shards_owned": ("sensorium_shards_owned", "Shards owned."),
}
_HOST_LABELLED: Final = {
    "dead_letters": ("sensorium_dead_letters", "Messages that could not be used.", "reason"),
    "alarms_raised": ("sensorium_alarms", "Alarms raised.", "severity"),
    "evictions": ("sensorium_evictions", "Devices dropped from memory, by why.", "reason"),
}


def render(statistics: Mapping[str, Any]) -> bytes:
    """The page for what `Coordinator.statistics` returns."""
    registry = CollectorRegistry()
    registry.register(_Page(statistics))
    return generate_latest(registry)


class _Page(Collector):
    def __init__(self, statistics: Mapping[str, Any]) -> None:
        self._statistics = statistics

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterator[Metric]:
        hosts: Sequence[Mapping[str, Any]] = self._statistics.get("hosts", ())
        yield from _of_hosts(hosts)
        yield from _of_storage(hosts, self._statistics.get("services", ()))
        yield _histogram(
            "sensorium_ingest_to_commit_seconds",
            "From a reading's receipt to its commit.",
            "ingest_to_commit",
            hosts,
        )
        yield _histogram("sensorium_commit_seconds", "How long a transaction takes.", "commit", hosts)
        yield from _of_services(self._statistics.get("services", ()))
        up = GaugeMetricFamily("sensorium_up", "Whether a process answers.", labels=["process"])
        for part in (*hosts, *self._statistics.get("services", ())):
            up.add_metric([str(part.get("name", ""))], 1)
        for name in self._statistics.get("down", ()):
            up.add_metric([name], 0)
        yield up
        replaced = CounterMetricFamily(
            "sensorium_replacements", "Processes started anew after they failed.", labels=["process"]
        )
        for name, count in self._statistics.get("replaced", {}).items():
            replaced.add_metric([name], count)
        yield replaced
        isolated = GaugeMetricFamily(
            "sensorium_isolated_devices",
            "Devices that have, or are to have, a process of their own.",
            labels=["state"],
        )
        for state, count in Counter(one["state"] for one in self._statistics.get("isolated", ())).items():
            isolated.add_metric([state], count)
        yield isolated


def _of_hosts(hosts: Sequence[Mapping[str, Any]]) -> Iterator[Metric]:
    for key, (name, words) in _HOST_COUNTERS.items():
        counter = CounterMetricFamily(name, words, labels=["host"])
        for host in hosts:
            counter.add_metric([host["name"]], host.get(key, 0))
        yield counter
    for key, (name, words) in _HOST_GAUGES.items():
        gauge = GaugeMetricFamily(name, words, labels=["host"])
        for host in hosts:
            gauge.add_metric([host["name"]], host.get(key, 0))
        yield gauge
    for key, (name, words, label) in _HOST_LABELLED.items():
        labelled = CounterMetricFamily(name, words, labels=[label, "host"])
        for host in hosts:
            for value, count in host.get(key, {}).items():
                labelled.add_metric([value, host["name"]], count)
        yield labelled


def _of_storage(
    hosts: Sequence[Mapping[str, Any]], services: Sequence[Mapping[str, Any]]
) -> Iterator[Metric]:
    lag = GaugeMetricFamily(
        "sensorium_projection_lag", "Log entries that a projection has yet to take.", labels=["name", "host"]
    )
    for host in hosts:
        for projection, behind in host.get("projection_lag", {}).items():
            lag.add_metric([projection, host["name"]], behind)
    for service in services:
        if "projection" in service:
            lag.add_metric([service["projection"], str(service.get("name", ""))], service["lag_entries"])
    yield lag
    seconds = GaugeMetricFamily(
        "sensorium_projection_lag_seconds", "Age of the oldest entry that is not projected.", labels=["name"]
    )
    stored = GaugeMetricFamily(
        "sensorium_storage_bytes", "Bytes of a table and its indexes.", labels=["table"]
    )
    by_class = GaugeMetricFamily(
        "sensorium_storage_class_bytes",
        "Bytes of a retention class in a table that is kept by class.",
        labels=["table", "retention_class"],
    )
    free = GaugeMetricFamily("sensorium_disk_free_bytes", "Room on the disk of the embedded database.")
    disk_bytes = GaugeMetricFamily("sensorium_disk_bytes", "The disk of the embedded database.")
    # A log that is spread over several databases has a projection of the name, and a table, in each.
    ages: dict[str, float] = {}
    sizes: Counter[str] = Counter()
    classes: Counter[tuple[str, str]] = Counter()
    for service in services:
        if "projection" in service:
            ages[service["projection"]] = max(ages.get(service["projection"], 0.0), service["lag_s"])
        sizes.update(service.get("storage_bytes", {}))
        if (disk := service.get("disk")) is not None:
            free.add_metric([], disk["free_bytes"])
            disk_bytes.add_metric([], disk["total_bytes"])
        for table, of_table in service.get("storage_class_bytes", {}).items():
            classes.update({(table, number): size for number, size in of_table.items()})
    for projection, age_s in ages.items():
        seconds.add_metric([projection], age_s)
    for table, size_bytes in sizes.items():
        stored.add_metric([table], size_bytes)
    yield seconds
    for labels, size_bytes in classes.items():
        by_class.add_metric(labels, size_bytes)
    yield stored
    yield by_class
    yield free
    yield disk_bytes


def _histogram(name: str, words: str, key: str, hosts: Sequence[Mapping[str, Any]]) -> Metric:
    family = HistogramMetricFamily(name, words, labels=["host"])
    for host in hosts:
        observed = host.get(key)
        if observed is None:
            continue
        below = 0
        buckets: list[tuple[str, float]] = []
        for bound, count in zip((*map(repr, LATENCY_BOUNDS_S), "+Inf"), observed["counts"], strict=True):
            below += count
            buckets.append((bound, below))
        family.add_metric([host["name"]], buckets, observed["sum_s"])
    return family


def _of_services(services: Sequence[Mapping[str, Any]]) -> Iterator[Metric]:
    """Ingestors: each number they count, by its name."""
    names = ("received", "acked", "redelivered", "pauses")
    for key in names:
        counter = CounterMetricFamily(f"sensorium_ingest_{key}", f"Messages {key}.", labels=["process"])
        for service in services:
            if key in service:
                counter.add_metric([str(service.get("name", ""))], service[key])
        yield counter
    for key in ("pending", "connected"):
        gauge = GaugeMetricFamily(
            f"sensorium_ingest_{key}", f"Whether or how many {key}.", labels=["process"]
        )
        for service in services:
            if key in service:
                gauge.add_metric([str(service.get("name", ""))], float(service[key]))
        yield gauge
