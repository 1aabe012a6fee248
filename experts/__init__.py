"""What an expert is, where it lives and how tokens reach it.

Lives here: the specification of a model's experts, placements of experts into slots, reading checkpoints,
the exchange that moves tokens between ranks, the worker of a rank, and typed calls to workers in other processes.
May import: the standard library, numpy, torch, safetensors, ray (remote.py only). Never `router_svc` or `cluster`.
"""
