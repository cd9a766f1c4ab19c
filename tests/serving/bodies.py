"""Requests that anybody could send."""

from __future__ import annotations

from hypothesis import strategies as st

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=12,
)
KEYS = st.sampled_from(["inputs", "instances", "dataframe_split", "dataframe_records", "params"])
BODIES = st.dictionaries(KEYS, VALUES, max_size=2)
