"""The whole server in one process, its event loop in a thread: real engine, small model, real ports."""

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from cluster.config import ServeConfig
from cluster.plan import make_plan
from cluster.serve.inprocess import LocalServer
from experts.address import joined
from router_svc.demo_model.path import checkpoint_path
from router_svc.engine.step_loop import Engine, EngineStats
from tests.patience import PATIENCE, wait_until


class RunningServer:
    """A started LocalServer and where it listens."""

    def __init__(self, server: LocalServer, loop: asyncio.AbstractEventLoop) -> None:
        self.server = server
        self.loop = loop
        assert server.grpc is not None
        host = server.plan.config.host
        self.target = joined(host, server.grpc.port)
        self.url = f"http://{joined(host, server.http_port)}"

    def call(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Run a coroutine in the server's loop."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(PATIENCE)

    def stats(self) -> EngineStats:
        """The engine's."""
        return self.engine.stats()

    @property
    def engine(self) -> Engine:
        """The one rank's."""
        joined = self.server.worker.joined
        assert joined is not None
        assert isinstance(joined.body, Engine)
        return joined.body

    def quiet(self) -> None:
        """Wait until nothing runs and no block is held; fails otherwise."""
        self.until(lambda stats: not (stats.running or stats.waiting or stats.kv_blocks_held))

    def until(self, seen: Callable[[EngineStats], bool]) -> None:
        """Wait until the engine's stats are as wished; fails otherwise."""
        wait_until(lambda: seen(self.stats()), "the engine's stats as wished")


async def cancel_tasks() -> None:
    """End what runs in this event loop: a task that never ends would keep its server, with weights and KV cache."""
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


@contextmanager
def one_process(folder: Path | None = None, **options: Any) -> Iterator[RunningServer]:
    """The small model unless something else is asked for, in float32; options: ServeConfig's fields."""
    fixed = {"expert_workers": 0, "dtype": "float32", "grpc_port": 0, "http_port": 0, "served_model_name": "demo"}
    # What would be taken by itself is four times as much, and grpc keeps a server's parts for as long as the process.
    config = replace(ServeConfig(), **{**fixed, "kv_cache_memory_bytes": 64 << 20, **options})  # type: ignore[arg-type]
    plan = make_plan(folder or checkpoint_path(), config, check_ports=False)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    server = LocalServer(plan)
    try:
        asyncio.run_coroutine_threadsafe(server.start(), loop).result(PATIENCE)
        yield RunningServer(server, loop)
    finally:
        asyncio.run_coroutine_threadsafe(server.stop(0.2), loop).result(PATIENCE)
        asyncio.run_coroutine_threadsafe(cancel_tasks(), loop).result(PATIENCE)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(PATIENCE)
        loop.close()
