"""The tokenyard command: one file a verb."""
