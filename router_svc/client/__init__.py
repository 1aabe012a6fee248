"""The typed Python client, sync and asyncio: `from router_svc.client import Client, AsyncClient`."""

from router_svc.client.aio import AsyncClient
from router_svc.client.results import CallError, ChatDelta, ChatResult, Delta, Result
from router_svc.client.sync import Client

__all__ = ["AsyncClient", "CallError", "ChatDelta", "ChatResult", "Client", "Delta", "Result"]
