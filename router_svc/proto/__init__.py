"""Generated from tokenyard.proto; regenerate with `make proto`."""
