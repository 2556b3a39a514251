"""The ports' implementations: the log in PostgreSQL, the registry, read models and the embedded server."""
