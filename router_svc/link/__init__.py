"""Frames between an ingress and an attention rank: msgpack over one TCP connection, never pickles."""
