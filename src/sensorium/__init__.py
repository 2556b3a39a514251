"""Sensorium: an IoT platform on the actor model. `connect` is the notebook's door."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sensorium.actors.fleet import Fleet, connect

__all__ = ["Fleet", "connect"]


def __getattr__(name: str) -> Any:
    # Ray takes a second to import; whoever only wants the pure core should not wait for it.
    if name in __all__:
        from sensorium.actors import fleet

        return getattr(fleet, name)
    raise AttributeError(f"module 'sensorium' has no attribute {name!r}")
