"""Mechanisms that families share: attention over pages, rope, norms, gates, dense MLP."""
