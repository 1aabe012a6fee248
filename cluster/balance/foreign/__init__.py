"""Policies from outside, each in a process of its own: what they do there ends, hangs or writes over nothing of ours."""
