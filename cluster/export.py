"""`sensorium export`: readings of a running platform into a file, over its HTTP API."""

import re
from collections.abc import Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

import httpx
from rich.console import Console
from rich.progress import DownloadColumn, Progress, SpinnerColumn, TimeElapsedColumn, TransferSpeedColumn

from sensorium.cluster.api_client import PlatformApi
from sensorium.cluster.errors import ClusterError, ConfigError

FORMATS: Final = {".ndjson": "ndjson", ".jsonl": "ndjson", ".csv": "csv", ".parquet": "parquet"}
_AGO: Final = re.compile(r"(\d{1,6})([smhdw])")
_UNITS: Final = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


class ExportFailed(ClusterError):
    """The file could not be written whole; the message says why. Nothing of it stays."""


def format_of(file: Path, named: str | None) -> str:
    """The format that was named, or the one that the file's name ends with.

    Raises:
        ConfigError: neither says one.
    """
    found = named or FORMATS.get(file.suffix.lower())
    if found is None or found not in FORMATS.values():
        known = ", ".join(dict.fromkeys(FORMATS.values()))
        raise ConfigError(f"{named or file.name} says no format that is known: name one (--format {known})")
    return found


def moment(option: str, text: str | None, now: datetime) -> str | None:
    """A time for the API: ISO 8601 as it is, `7d` as so long ago.

    Raises:
        ConfigError: it is neither.
    """
    if text is None:
        return None
    if ago := _AGO.fullmatch(text):
        try:
            return (now - timedelta(**{_UNITS[ago[2]]: int(ago[1])})).isoformat()
        except OverflowError:
            raise ConfigError(f"{option}: {text} is before the year 1") from None
    try:
        datetime.fromisoformat(text)
    except ValueError:
        raise ConfigError(
            f"{option}: {text!r} is neither a time such as 2026-01-31T12:00 nor an age such as 7d"
        ) from None
    return text


async def export(
    url: str,
    file: Path,
    parameters: Mapping[str, str | None],
    console: Console,
    transport: httpx.AsyncBaseTransport | None = None,
) -> int:
    """Write what the API exports into the file, which is there only once it is whole; its size in bytes.

    Raises:
        PlatformUnreachable: the platform does not answer, or refuses.
        ExportFailed: the answer broke off, or the file cannot be written.
    """
    fresh = file.with_name(f"{file.name}.part")
    columns = (SpinnerColumn(), DownloadColumn(), TransferSpeedColumn(), TimeElapsedColumn())
    given = {name: value for name, value in parameters.items() if value is not None}
    size = 0
    try:
        async with PlatformApi(url, transport) as api:
            with (
                fresh.open("wb") as out,
                Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar,
            ):
                task = bar.add_task("", total=None)
                async for piece in api.stream("/api/export/readings", given):
                    out.write(piece)
                    size += len(piece)
                    bar.update(task, completed=size)
        fresh.replace(file)
    except httpx.TransportError as error:
        raise ExportFailed(f"the export broke off after {size:,} bytes: {error}; run it again") from error
    except OSError as error:
        raise ExportFailed(f"{file}: {error.strerror}") from error
    finally:
        fresh.unlink(missing_ok=True)
    return size
