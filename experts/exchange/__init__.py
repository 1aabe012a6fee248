"""How token batches travel between ranks: one interface (base), its wire forms, one transport a file."""
