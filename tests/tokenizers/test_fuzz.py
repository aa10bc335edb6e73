"""Compare tokenizers in Python, in a graph and in the original libraries on random strings."""

import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "tools"))
try:
    import fuzz_tokenizers
finally:
    sys.path.pop(0)


@pytest.mark.parametrize("kind", [*fuzz_tokenizers.PLAIN, *fuzz_tokenizers.SPECIAL])
def test_random_strings(kind):
    in_graph = not kind.endswith("_alone")  # the same graph as with tokenizer.model
    assert fuzz_tokenizers.differences(kind, 300, graph=in_graph) == []
