"""The short form of fuzz_harness.py: the same inputs each time, a test for each kind of them."""

import pytest
from fuzz_harness import HYPOTHESIS, KINDS, World, try_input
from hypothesis import given, settings

# The slower kinds take up to a second for an input.
INPUTS = {"runs": 6, "categories": 8, "settings": 25, "options": 30}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("fuzz"))


@pytest.mark.parametrize("kind", KINDS)
def test_each_input_is_right_or_refused_in_one_line(world, kind):
    @settings(max_examples=INPUTS.get(kind, 12), derandomize=True, **HYPOTHESIS)
    @given(KINDS[kind].inputs)
    def try_each(given):
        try_input(world, kind, given)

    try_each()
