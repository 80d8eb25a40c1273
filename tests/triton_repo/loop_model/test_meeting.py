"""Pictures that wait for one another: together when all have come, alone at once, and never for ever."""

from __future__ import annotations

import threading
import time

import pytest

from parure.modes import PRESETS
from parure_triton.loop_model import meeting as module
from parure_triton.loop_model.meeting import Meeting, Meetings


def test_a_picture_alone_does_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LEAST_WAIT", 60)
    meeting = Meeting()
    since = time.monotonic()
    for _ in range(3):
        with meeting.call("unet", "one"):
            pass
    assert time.monotonic() - since < 30


def test_those_who_are_expected_begin_together(monkeypatch: pytest.MonkeyPatch) -> None:
    meeting, order = Meeting(), []
    for picture in ("one", "two"):
        with meeting.call("unet", picture):
            pass
        if picture == "one":
            monkeypatch.setattr(module, "LEAST_WAIT", 0.0)
    monkeypatch.setattr(module, "LEAST_WAIT", 60)

    def early() -> None:
        with meeting.call("unet", "one"):
            order.append("one")

    thread = threading.Thread(target=early)
    thread.start()
    time.sleep(0.1)
    assert not order
    with meeting.call("unet", "two"):
        thread.join(60)
        assert order == ["one"]


@pytest.mark.parametrize("how", ["time", "leaving"])
def test_who_does_not_come_is_not_waited_for_for_ever(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    meeting = Meeting()
    monkeypatch.setattr(module, "LEAST_WAIT", 0.01)
    with meeting.call("unet", "gone"):
        pass
    if how == "leaving":
        monkeypatch.setattr(module, "LEAST_WAIT", 60)
        timer = threading.Timer(0.1, meeting.leave, ["gone"])
        timer.start()
    since = time.monotonic()
    with meeting.call("unet", "one"):
        pass
    assert time.monotonic() - since < 30


def test_small_components_are_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LEAST_WAIT", 60)
    meeting = Meeting()
    with meeting.call("unet", "other"):
        pass
    with meeting.call("mask_head", "one"):
        pass


def test_pictures_of_one_mode_meet_and_those_of_others_do_not() -> None:
    meetings = Meetings()
    assert meetings.of("fast") is meetings.of("fast") is not meetings.of("exact")
    own = meetings.of("deep=7")
    assert meetings.of("deep=7") is own
    del own
    assert set(meetings._meetings) == set(PRESETS)  # a caller's own settings leave nothing behind
