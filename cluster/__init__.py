"""The whole: brings the ranks up, watches them, measures them, and holds the command line.

May import: `experts`, `router_svc` and outside libraries. Nothing imports `cluster`.
"""
