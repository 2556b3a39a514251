"""The C modules of the hot path; everything else about the build stands in pyproject.toml.

Each is optional: where it cannot be compiled, its twin in Python (the same name with `_py`) is used.
"""

from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension(
            f"sensorium.{room}.{name}",
            [f"{room}/{name}.c"],
            include_dirs=["actors"],
            depends=["actors/native.h", "actors/panes.h"],
            # Python rounds a product before it adds; C may not contract the two into one rounding.
            extra_compile_args=["-std=c11", "-O2", "-ffp-contract=off"],
            optional=True,
        )
        for room, name in (
            ("actors", "_judge"),
            ("actors", "_panes"),
            ("actors", "_seen"),
            ("ingest", "_flat"),
            ("ingest", "_publish"),
            ("storage", "_fold"),
            ("storage", "_rows"),
        )
    ]
)
