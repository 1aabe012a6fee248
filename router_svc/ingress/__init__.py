"""What an ingress process runs: the gRPC door and the Serve replica, over one ingress."""
