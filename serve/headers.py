"""Headers by which callers of the API say who they are. Imports nothing: clients read it as well."""

from typing import Final

BY_HEADER: Final = "X-Sensorium-By"
WAY_HEADER: Final = "X-Sensorium-Way"
