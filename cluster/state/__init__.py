"""Books of a cell: who is there, what state it is in, what happened. Pure records: no torch, no Ray, no clock."""
