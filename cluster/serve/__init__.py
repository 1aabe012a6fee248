"""From a checked plan to a server that listens, in one process or on Ray, and back to nothing."""
