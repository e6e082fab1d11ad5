"""The suite every destination must pass, and one module per destination that runs it."""

import pytest

pytest.register_assert_rewrite("tests.destinations.suite")
