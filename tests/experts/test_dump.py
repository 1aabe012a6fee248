"""Dumps: stacks and task names of this process, and a page that says whom a rank waits for, or why it says nothing."""

import asyncio
import threading

from experts.background import only_log, watch_task, watch_thread
from experts.dump import ProcessDump, StepMoment, dump_here, page, summary


async def test_threads_and_tasks_of_this_process_are_there_by_name() -> None:
    done, asleep = threading.Event(), asyncio.Event()

    def waits_for_the_test() -> None:
        secret = "a prompt that nobody may see"
        assert secret
        done.wait(60)

    watch_thread("a loop", waits_for_the_test, only_log, returns=True)
    watch_task("leases", asleep.wait(), only_log, returns=True)  # type: ignore[arg-type]
    await asyncio.sleep(0)
    found = dump_here("rank 0 (expert)")
    text = page([found])
    asleep.set()
    done.set()
    (stack,) = [thread.frames for thread in found.threads if thread.name == "a loop"]
    assert any("tests/experts/test_dump.py" in line and "waits_for_the_test" in line for line in stack)
    assert "wait" in stack[0], "the innermost call comes first"
    assert any(task.startswith("leases: ") for task in found.tasks)
    assert "thread a loop" in text
    assert "nobody may see" not in text, "no values"


def test_a_moment_is_a_line() -> None:
    waits = StepMoment(2, 7, 3, "combine", 4.25, ("rank 1 (expert)", "rank 2 (expert)"))
    line = summary(ProcessDump("rank 0", 1, moment=waits))
    assert line == "epoch 2, step 7, layer 3, combine: has waited 4.2 s for rank 1 (expert) and rank 2 (expert)"
    assert summary(ProcessDump("rank 0", 1, moment=StepMoment(2, 7))) == "epoch 2, step 7, waits for no rank"
    silent = ProcessDump("rank 3 (expert)", 99, "does not answer within 2 s; its process: stopped")
    assert "rank 3 (expert), pid 99: does not answer within 2 s; its process: stopped" in page([silent], "here")
