"""Simulation: made and recorded traffic through the cluster's own planner, split and cost model.

May import experts, router_svc's model table and cluster.balance.
"""
