"""A member that was at the store and dies before it connects holds the others for seconds, not for a step's limit."""

import pytest

from experts.errors import RankLost
from experts.exchange.group import build_group, connect_store, open_store
from tests.patience import PATIENCE
from tests.ports import free_port


def test_who_never_connects_is_not_waited_for_as_long_as_an_operation() -> None:
    server = open_store("127.0.0.1")
    try:
        connect_store("127.0.0.1", server.port, PATIENCE).set("epoch7/port1", str(free_port()).encode())
        store = connect_store("127.0.0.1", server.port, PATIENCE)
        with pytest.raises(RankLost, match="did not come together"):
            build_group(store, 7, 0, 2, "cpu", "127.0.0.1", timeout=1e6, deadline=PATIENCE, connect=0.5)
    finally:
        server.close()
