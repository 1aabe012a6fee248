"""Clients of the extra `conformance`, which only `make test-slow` installs."""

from importlib.util import find_spec

import pytest


def needs(package: str) -> pytest.MarkDecorator:
    """Skip where the package is not installed; it is imported by the tests themselves, as that takes seconds."""
    return pytest.mark.skipif(
        find_spec(package) is None, reason=f"{package} is not installed; `make test-slow` brings it (extra conformance)"
    )
