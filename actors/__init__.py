"""The device and the runtime that hosts it. The pure core is importable without Ray."""
