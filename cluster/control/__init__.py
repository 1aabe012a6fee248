"""A running cell: its ranks, epochs, placement and balancer, and the supervisor that holds it. Over Ray only by ports."""
