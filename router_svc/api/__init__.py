"""The front door: one service behind two faces, gRPC and HTTP (OpenAI)."""
