"""What every way in, and every way out to devices, is to whoever runs it."""

from typing import Any, Protocol


class Adapter(Protocol):
    """One protocol, over a router that it is given. Started and stopped once.

    It takes from its transport what the router can hold, decodes it with `Pipeline` and acknowledges when
    that calls back, which is after the commit. `tests/unit/ingest/test_adapter_contract.py` says what all of
    them promise.
    """

    async def start(self) -> None:
        """Listen, or begin to connect and keep trying. Raises what no trying again would mend."""
        ...

    def check(self) -> None:
        """Raise what ended it, if something but `stop` did."""
        ...

    def statistics(self) -> dict[str, Any]:
        """Counts since the start, and how it stands: values that JSON can say."""
        ...

    async def stop(self) -> None:
        """Take nothing more, finish and acknowledge what was taken, close."""
        ...
