"""A rank's process: the worker, the verbs by which others call it, and how long they may take."""
