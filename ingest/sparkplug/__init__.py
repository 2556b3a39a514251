"""Sparkplug B: its payloads, its topics, the sessions of its edge nodes, and the adapter over MQTT."""
