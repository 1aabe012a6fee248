"""What is seen of a running cell: reports, metrics, dumps, recordings. Changes nothing."""
