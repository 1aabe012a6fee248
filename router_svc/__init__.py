"""From a request to the experts and back.

Lives here: model families, the engine of an attention rank, text in and out, the gRPC and HTTP front doors,
the typed client, and the small model that ships.
May import: `experts` and outside libraries. Never `cluster`.
"""
