"""Regions as a user writes them."""

import pytest

from hyena_blt_savanna.data.errors import DataError
from hyena_blt_savanna.data.regions import Region


def test_both_ends_count_from_one_and_names_may_hold_colons():
    assert Region.parse("chr20:1-64,444,167") == Region("chr20", 0, 64_444_167)
    assert Region.parse("HLA:A*01:7-7") == Region("HLA:A*01", 6, 7)


@pytest.mark.parametrize("text", ["chr2", "chr2:5", "chr2:0-4", "chr2:7-6", "chr2:a-b", ":1-2", "chr2:,-5"])
def test_text_that_is_no_region_is_quoted(text):
    with pytest.raises(DataError, match=f"region '{text}'.*counted from 1"):
        Region.parse(text)
