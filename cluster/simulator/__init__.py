"""A simulated fleet: seeded models of devices, their faults, and what publishes them over MQTT."""
