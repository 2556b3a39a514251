"""A Mosquitto that does not limit the benchmark by its configuration."""

from pathlib import Path


def write_conf(path: Path, port: int) -> Path:
    """Write a configuration for loopback: no bounds on queues and windows, nothing on disk."""
    path.write_text(
        f"listener {port} 127.0.0.1\n"
        "allow_anonymous true\n"
        "max_inflight_messages 0\n"
        "max_queued_messages 0\n"
        "persistence false\n"
        "set_tcp_nodelay true\n"
        "log_type error\n"
    )
    return path
