"""What all tests share: the heap that imports leave is set aside, and how many examples properties get."""

import gc

import pytest
from hypothesis import settings

# A property's own `settings` say only what is peculiar to it; how long to look is asked of the run.
settings.register_profile("fast", max_examples=25, deadline=None)
settings.register_profile("thorough", max_examples=200, deadline=None)
settings.load_profile("fast")


def pytest_collection_finish(session: pytest.Session) -> None:
    """Take what was imported out of the collector's rounds, which would go through it again and again."""
    gc.collect()
    gc.freeze()
