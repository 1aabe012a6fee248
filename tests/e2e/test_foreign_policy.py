"""A policy of the user's own behind `serve`: found in the user's folder, and what it does is shown while serving goes on."""

import json
from pathlib import Path

import pytest

from tests.patience import wait_until
from tests.serving import end, run, serving

MINE = """
import sys
from cluster.balance.policies.base import Policy
class Exits(Policy):
    name = "exits"
    def plan(self, situation):
        sys.exit(7)
"""


@pytest.mark.slow
def test_a_policy_that_exits_is_shown_and_serving_goes_on(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(MINE)
    options = ["--eplb-policy", "mine:Exits", "--eplb-interval", "1"]
    with serving(*options, cwd=tmp_path) as (process, target, _):

        def refused() -> bool:
            assert run("generate", "12+30=", "--target", target, "--max-tokens", "100").returncode == 0
            balancer = json.loads(run("status", "--json", "--target", target).stdout)["balancer"]
            return "policy 'exits' raised SystemExit: 7" in balancer["reason"]

        wait_until(refused, "the policy's failure in the status", 180)
        told = run("status", "--events", "--target", target).stdout
        assert told.count("SystemExit: 7") == 1, "one event, not one a plan"
        end(process)
