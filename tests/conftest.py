"""What all tests share: the heap that the imports leave is set aside."""

import gc

import pytest


def pytest_collection_finish(session: pytest.Session) -> None:
    """Take what was imported out of the collector's rounds, which would go through it again and again."""
    gc.collect()
    gc.freeze()
