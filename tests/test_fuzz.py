"""The short form of fuzz_harness.py: the same inputs each time, one test for each kind."""

import pytest
from fuzz_harness import HYPOTHESIS, KINDS, World, try_input
from hypothesis import given, settings

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("fuzz"))


@pytest.mark.parametrize("kind", KINDS)
def test_input_is_handled_or_refused_in_one_line(world, kind):
    @settings(max_examples=12 if kind == "lists" else 6, derandomize=True, **HYPOTHESIS)
    @given(KINDS[kind].inputs)
    def try_each(drawn):
        try_input(world, kind, drawn)

    try_each()
