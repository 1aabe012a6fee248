"""What the ranks of an epoch agree on: who is in it, and what each step is. Pure: no torch, no Ray, no clock."""
