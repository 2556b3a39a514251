"""Trained models as they are kept: artefacts, registries of their versions, and those that are at work."""
