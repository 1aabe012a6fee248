"""Balancing: loads, forecast, planner, cost and policies. numpy and C only: no torch, no Ray, no clock but for time budgets.

May import experts.placement, experts.exchange.split and experts.errors; the live cluster and the simulator both call it.
"""
