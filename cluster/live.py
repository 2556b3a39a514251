"""The live table of `make demo`: what a platform does right now, from its metrics page and its alarms."""

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from sensorium.actors.rules import Severity
from sensorium.cluster.api_client import PlatformApi
from sensorium.cluster.errors import PlatformUnreachable

EVERY_S = 1.0
PLAIN_EVERY_S = 5.0
"""Between two lines when the output is no terminal."""
LATEST_ALARMS = 5
ALARMS_ASKED = 200

_COLOURS: Mapping[str, str] = {
    Severity.CRITICAL: "bold red",
    Severity.MAJOR: "red",
    Severity.MINOR: "yellow",
    Severity.WARNING: "yellow",
    Severity.INFO: "cyan",
}


@dataclass(frozen=True, slots=True)
class Counters:
    """What the metrics page says at one time. `latency` holds cumulative counts by upper bound in seconds."""

    time_s: float
    committed: int = 0
    duplicates: int = 0
    dead_letters: int = 0
    devices_active: int = 0
    hosts: int = 0
    latency: Mapping[float, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ActiveAlarm:
    """An alarm as the table shows it."""

    severity: str
    device_id: str
    rule_name: str
    detail: str
    start_ms: int


@dataclass(frozen=True, slots=True)
class LiveFigures:
    """What the table shows. Rates and latencies are of the time since the figures before.

    `p50_s` and `p99_s` are None when nothing was committed in that time.
    """

    messages_per_s: float
    committed: int
    duplicates: int
    dead_letters: int
    devices_active: int
    hosts: int
    p50_s: float | None
    p99_s: float | None
    alarms_by_severity: Mapping[str, int]
    alarms_capped: bool
    """There are more active alarms than were counted."""
    latest_alarms: tuple[ActiveAlarm, ...]


def counters(page: str, time_s: float) -> Counters:
    """The figures of a Prometheus page. A family that is not there counts as 0."""
    sums: Counter[str] = Counter()
    hosts: set[str] = set()
    latency: dict[float, float] = {}
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            sums[sample.name] += sample.value  # type: ignore[assignment]  # floats, most of them whole
            if sample.name == "sensorium_ingest_to_commit_seconds_bucket":
                bound = float(sample.labels["le"])
                latency[bound] = latency.get(bound, 0.0) + sample.value
            elif sample.name == "sensorium_shards_owned":
                hosts.add(str(sorted(sample.labels.items())))
    return Counters(
        time_s,
        committed=int(sums["sensorium_readings_committed_total"]),
        duplicates=int(sums["sensorium_readings_duplicate_total"]),
        dead_letters=int(sums["sensorium_dead_letters_total"]),
        devices_active=int(sums["sensorium_devices_active"]),
        hosts=len(hosts),
        latency=latency,
    )


def alarm(item: Mapping[str, Any]) -> ActiveAlarm:
    """An alarm of the API's list."""
    return ActiveAlarm(
        item["severity"], item["device_id"], item["rule_name"], item["detail"], item["start_ms"]
    )


def figures(
    before: Counters, now: Counters, alarms: Sequence[ActiveAlarm], capped: bool = False
) -> LiveFigures:
    """What happened between the two, and what stands now.

    A process that restarted counts from 0 again: rates never go below 0.
    """
    elapsed_s = max(now.time_s - before.time_s, 1e-3)
    fresh = {bound: count - before.latency.get(bound, 0.0) for bound, count in now.latency.items()}
    return LiveFigures(
        messages_per_s=max(0, now.committed - before.committed) / elapsed_s,
        committed=now.committed,
        duplicates=now.duplicates,
        dead_letters=now.dead_letters,
        devices_active=now.devices_active,
        hosts=now.hosts,
        p50_s=quantile_s(fresh, 0.5),
        p99_s=quantile_s(fresh, 0.99),
        alarms_by_severity=Counter(a.severity for a in alarms),
        alarms_capped=capped,
        latest_alarms=tuple(sorted(alarms, key=lambda a: -a.start_ms)[:LATEST_ALARMS]),
    )


def quantile_s(cumulative: Mapping[float, float], q: float) -> float | None:
    """The q-quantile of a histogram given as Prometheus gives it, interpolated within its bucket.

    What lies beyond the last finite bound is taken as that bound. None without observations.
    """
    bounds = sorted(cumulative)
    total = cumulative[bounds[-1]] if bounds else 0.0
    if total <= 0:
        return None
    low, below = 0.0, 0.0
    for bound in bounds:
        count = cumulative[bound]
        if count >= q * total and count > below:
            return (
                low if bound == float("inf") else low + (bound - low) * (q * total - below) / (count - below)
            )
        low, below = (low if bound == float("inf") else bound), count
    return low


class LiveSource:
    """Asks the platform for figures, again and again."""

    def __init__(self, api: PlatformApi, clock: Callable[[], float] = time.monotonic) -> None:
        self._api = api
        self._clock = clock
        self._before: Counters | None = None

    async def __call__(self) -> LiveFigures:
        """The figures since the call before.

        Raises:
            PlatformUnreachable: the platform does not answer.
        """
        page, items = await asyncio.gather(self._api.metrics(), self._api.active_alarms(ALARMS_ASKED))
        now = counters(page, self._clock())
        before, self._before = self._before or now, now
        return figures(before, now, [alarm(item) for item in items], len(items) >= ALARMS_ASKED)


async def show(
    source: Callable[[], Awaitable[LiveFigures]], console: Console, addresses: Mapping[str, str]
) -> None:
    """Show the figures until cancelled: a table on a terminal, a line now and then elsewhere."""
    if not console.is_terminal:
        for name, address in addresses.items():
            console.print(f"{name:<9} {address}", soft_wrap=True, markup=False, highlight=False)
        while True:
            shown = await _ask(source)
            text = shown if isinstance(shown, str) else plain(shown)
            console.print(text, soft_wrap=True, markup=False, highlight=False)
            await asyncio.sleep(PLAIN_EVERY_S)
    with Live(console=console, auto_refresh=False) as live:
        while True:
            shown = await _ask(source)
            live.update(Text(shown) if isinstance(shown, str) else table(shown, addresses), refresh=True)
            await asyncio.sleep(EVERY_S)


async def _ask(source: Callable[[], Awaitable[LiveFigures]]) -> LiveFigures | str:
    try:
        return await source()
    except PlatformUnreachable as error:
        # A platform that recovers is worth watching; say what is wrong meanwhile.
        return str(error)


def plain(shown: LiveFigures) -> str:
    """The figures in one line."""
    return " · ".join(
        (
            f"{shown.messages_per_s:,.0f} msg/s",
            f"{shown.committed:,} committed",
            f"{shown.devices_active:,} devices",
            _alarm_counts(shown),
            f"commit {_latency(shown)}",
            f"{shown.dead_letters:,} dead letters",
            f"{shown.hosts} hosts",
        )
    )


def table(shown: LiveFigures, addresses: Mapping[str, str]) -> Group:
    """The figures as a person watches them."""
    head = Table.grid(padding=(0, 3))
    rate = Text(f"{shown.messages_per_s:,.0f}", "bold green")
    head.add_row("messages/s", rate, "devices active", f"{shown.devices_active:,}")
    head.add_row("committed", f"{shown.committed:,}", "hosts", str(shown.hosts))
    head.add_row("commit latency", _latency(shown), "dead letters", f"{shown.dead_letters:,}")
    head.add_row("duplicates", f"{shown.duplicates:,}", "alarms", _alarm_counts(shown))
    alarms = Table(title="Latest alarms", title_justify="left", expand=False, box=None, header_style="dim")
    for name in ("since (UTC)", "severity", "device", "rule"):
        alarms.add_column(name)
    for a in shown.latest_alarms:
        since = datetime.fromtimestamp(a.start_ms / 1000, UTC).strftime("%H:%M:%S")
        alarms.add_row(since, Text(a.severity, _COLOURS.get(a.severity, "")), a.device_id, Text(a.rule_name))
    where = Table.grid(padding=(0, 2))
    for name, address in addresses.items():
        where.add_row(Text(name, "dim"), address)
    return Group(where, Text(), head, Text(), alarms)


def _alarm_counts(shown: LiveFigures) -> str:
    counts = [f"{n} {s}" for s in Severity if (n := shown.alarms_by_severity.get(s))]
    total = f"{sum(shown.alarms_by_severity.values())}{'+' if shown.alarms_capped else ''} active"
    return f"{total} ({', '.join(counts)})" if counts else "no alarm"


def _latency(shown: LiveFigures) -> str:
    return f"p50 {_ms(shown.p50_s)}, p99 {_ms(shown.p99_s)}"


def _ms(seconds: float | None) -> str:
    return "–" if seconds is None else f"{seconds * 1000:.1f} ms"
