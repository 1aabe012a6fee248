"""Background work: every unexpected end is dealt with once, a wanted one never."""

import asyncio
import gc
import threading
from collections.abc import Callable

import pytest

from experts.background import WorkEnded, join_task, only_log, watch_task, watch_thread

BAD = (ValueError("no good"), SystemExit(3), KeyboardInterrupt(), asyncio.CancelledError())


@pytest.mark.parametrize("error", BAD, ids=lambda e: type(e).__name__)
async def test_a_task_that_raises_is_told_once_and_the_loop_goes_on(error: BaseException) -> None:
    told: list[str] = []

    async def work() -> None:
        await asyncio.sleep(0)
        raise error

    await watch_task("leases", work(), told.append)
    assert len(told) == 1
    assert told[0].startswith(f"task leases ended with {type(error).__name__}")


async def test_a_return_counts_unless_it_is_allowed_and_a_cancellation_is_wanted() -> None:
    told: list[str] = []

    async def work() -> None:
        await asyncio.sleep(0)

    async def tell(what: str) -> None:
        await asyncio.sleep(0)
        told.append(what)

    await watch_task("short", work(), tell, returns=True)
    endless = watch_task("endless", asyncio.sleep(60), tell)
    await asyncio.sleep(0)
    endless.cancel()
    with pytest.raises(asyncio.CancelledError):
        await endless
    assert not told
    await watch_task("long", work(), tell)
    assert told == ["task long ended though it never should"]


async def test_a_task_that_nobody_holds_goes_on() -> None:
    begun, done = asyncio.Event(), asyncio.Event()

    async def work() -> None:
        waits = asyncio.get_running_loop().create_future()
        begun.callback = lambda: waits.set_result(None)  # type: ignore[attr-defined]
        begun.set()
        await waits
        done.set()

    watch_task("alone", work(), only_log, returns=True)
    await begun.wait()
    gc.collect()
    begun.callback()  # type: ignore[attr-defined]
    await asyncio.wait_for(done.wait(), 30)


@pytest.mark.parametrize("error", BAD[1:3], ids=lambda e: type(e).__name__)
async def test_a_joined_task_hands_its_end_to_who_awaits_it(error: BaseException) -> None:
    async def work() -> int:
        raise error

    async def right() -> int:
        return 3

    assert await join_task("right", right()) == 3
    with pytest.raises(WorkEnded, match="start ended with"):
        await join_task("start", work())


@pytest.mark.parametrize("error", [*BAD[:3], None], ids=lambda e: type(e).__name__)
def test_a_thread_that_ends_is_told_once(error: BaseException | None) -> None:
    told: list[str] = []

    def work() -> None:
        if error is not None:
            raise error

    watch_thread("step-loop", work, told.append).join(30)
    how = f"with {type(error).__name__}" if error else "though it never should"
    assert len(told) == 1
    assert told[0].startswith(f"thread step-loop ended {how}")
    told.clear()
    watch_thread("short", lambda: None, told.append, returns=True).join(30)
    assert not told


def test_what_deals_with_an_end_may_fail_itself() -> None:
    def bad(what: str) -> None:
        raise SystemExit

    before: Callable[..., object] = threading.excepthook
    watch_thread("a", lambda: None, bad).join(30)
    assert threading.excepthook is before

    async def main() -> None:
        await watch_task("b", asyncio.sleep(0), bad)

    asyncio.run(main())
