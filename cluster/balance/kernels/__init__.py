"""The planner's inner loops in C: layout, repair and search of one layer. Built with the system's compiler at first use."""
