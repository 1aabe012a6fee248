"""An ingress follows the cluster's state: one bad answer does not blind it, and a supervisor that is gone is the end."""

import asyncio
from typing import Any, cast

from experts.worker.remote import Gone
from router_svc.ingress.ingress import Ingress, IngressOrder, SupervisorVerbs
from router_svc.link.client import LinkEngines


class Supervisor:
    """Stands where the supervisor's port is: each look gives or raises the next of `answers`."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)

    async def watch(self, known: int) -> Any:
        answer = self.answers.pop(0)
        if isinstance(answer, BaseException):
            raise answer
        return answer


async def test_one_bad_answer_does_not_blind_an_ingress() -> None:
    supervisor = Supervisor(ValueError("odd"), (3, "degraded", "rank 1 died"), Gone())
    engines, seen = LinkEngines("secret"), []

    async def also(state: str) -> None:
        seen.append((state, engines.state()[1]))

    ingress = Ingress(cast(IngressOrder, None), cast(SupervisorVerbs, supervisor))
    await asyncio.wait_for(ingress._follow(2, engines, also), 30)
    gone = "the supervisor is gone; start the server again"
    assert seen == [("degraded", "rank 1 died"), ("degraded", gone)]
