"""Ways out to people: the HTTP API on Ray Serve."""
