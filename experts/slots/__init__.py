"""Slots of a rank: loaded, computed in, counted, moved and served to peers."""
