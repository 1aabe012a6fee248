"""What measures: throughput, and the front door's cost."""
