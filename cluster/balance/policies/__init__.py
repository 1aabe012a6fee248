"""Balancing policies side by side: one a file, one line each in registry.py."""
