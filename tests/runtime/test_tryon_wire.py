"""Errors in a stream: text that carries its status code."""

from __future__ import annotations

import pytest

from parure.tryon_wire import code_of, coded


@pytest.mark.parametrize("before", ["", "[request id: 7] "])
def test_an_error_in_a_stream_keeps_its_status_code(before: str) -> None:
    assert code_of(before + coded("UNAVAILABLE", "8 are at work: wait\nor go")) == (
        "UNAVAILABLE",
        "8 are at work: wait\nor go",
    )


@pytest.mark.parametrize("text", ["", "expected 3 inputs but got 2 inputs", "Stub process 'tryon_0_0' is not healthy."])
def test_what_triton_says_itself_has_no_status_code(text: str) -> None:
    assert code_of(text) is None
