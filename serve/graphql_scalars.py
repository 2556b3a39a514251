"""The scalars of the GraphQL schema."""

from typing import Final, NewType

import strawberry
from strawberry.types.scalar import ScalarDefinition

EpochMs = NewType("EpochMs", int)

SCALARS: Final[dict[object, ScalarDefinition]] = {
    EpochMs: strawberry.scalar(
        name="EpochMs", description="Milliseconds since 1970 UTC.", serialize=int, parse_value=int
    )
}
