"""The gRPC face over the service."""
