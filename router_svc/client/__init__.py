"""The typed Python client, sync and asyncio."""
