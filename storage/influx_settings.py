"""Where InfluxDB is and what of it is ours, as values: whoever configures it needs no client."""

from pathlib import Path
from typing import Final

import msgspec

NAME: Final = "influxdb"
"""Of the projection."""
MEASUREMENT: Final = "sensor_data"


class InfluxSettings(msgspec.Struct, frozen=True, kw_only=True):
    """An InfluxDB v2, or what takes its line protocol.

    Attributes:
        token, token_file: what we may do there; the file is read at each connection, so that it can be
            replaced. Neither is ever shown.
        retention_days: of a bucket that we create; None: for ever.
        create_bucket: whether to create it where it is missing.
        timeout_s: of one request.
    """

    url: str
    org: str = "sensorium"
    bucket: str = "sensorium"
    token: str | None = None
    token_file: str | None = None
    retention_days: int | None = None
    create_bucket: bool = True
    gzip: bool = True
    timeout_s: float = 10.0

    def __repr__(self) -> str:
        return f"InfluxSettings({self.url!r}, org={self.org!r}, bucket={self.bucket!r})"

    def secret(self) -> str:
        """The token; empty when there is none.

        Raises:
            OSError: the file cannot be read.
        """
        if self.token is not None:
            return self.token
        return "" if self.token_file is None else Path(self.token_file).read_text().strip()
