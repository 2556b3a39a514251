"""Where ports meet implementations: configuration, start-up, CLI, simulator."""
