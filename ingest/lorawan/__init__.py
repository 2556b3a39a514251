"""LoRaWAN: what network servers say of devices, and payload codecs. The ways in are MQTT and HTTP."""
