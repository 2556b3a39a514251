"""The Skoltech Anomaly Benchmark: its recordings and how its board judges. Not the models that are judged."""
