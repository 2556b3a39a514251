"""Ways in: protocol adapters, codecs and the broker."""
