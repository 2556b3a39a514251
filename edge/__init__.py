"""The gateway that runs near the devices. Empty so far."""
