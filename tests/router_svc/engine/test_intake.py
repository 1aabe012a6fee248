"""The intake of an engine: what is dropped leaves the queue at once, so that the same call may come again."""

from dataclasses import replace

from router_svc.engine.intake import Intake
from router_svc.request import Cancel, Code, EngineRequest
from router_svc.sampling import Sampling


def test_a_dropped_request_gives_its_place_free_before_the_next_step() -> None:
    intake = Intake(2)
    first, second = (EngineRequest(name, (1,), Sampling(max_tokens=2, seed=0), attempt=1) for name in "ab")
    assert intake.put(first) is None
    assert intake.put(second) is None
    refused = intake.put(replace(first, request_id="c"))
    assert refused is not None
    assert refused.code == Code.RESOURCE_EXHAUSTED
    assert intake.put(Cancel("b")) is None
    again = replace(second, attempt=2)
    assert intake.put(again) is None, "the same call takes its older self's place"
    intake.started(second)  # the step thread comes to the one that was dropped
    assert intake.put(replace(first, request_id="c")) is not None, "and the queue is as full as before"
    intake.started(again)
    assert intake.put(replace(first, request_id="c")) is None
