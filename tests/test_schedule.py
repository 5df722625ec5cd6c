"""The steps between looks at the weights, against looks that are listed one by one."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("torch")  # an extra: wfcast itself does without

from wfcast.torch._schedule import Looks, Schedule


@st.composite
def some_looks(draw):
    period = draw(st.integers(1, 12))
    offsets = draw(st.sets(st.integers(1, period)))
    return Looks("some", period, tuple(sorted(offsets)), draw(st.integers(0, 30)))


def listed(looks, end):
    """All looks up to a step, as the definition has them."""
    offsets = looks.offsets or (looks.period,)
    return {
        step
        for step in (k * looks.period + o for k in range(end) for o in offsets)
        if looks.first <= step <= end
    }


@given(some_looks(), st.integers(0, 60))
def test_the_next_look(looks, step):
    assert looks.after(step) == min(s for s in listed(looks, 100) if s > step)


@given(some_looks())
def test_how_far_looks_are_apart(looks):
    steps = sorted(listed(looks, 100))
    assert looks.apart == max(b - a for a, b in itertools.pairwise(steps))


@given(st.lists(some_looks(), max_size=3), st.integers(1, 80), st.integers(0, 60))
def test_room_of_a_run_of_known_length(looks, last, begin):
    schedule = Schedule(tuple(looks), last)
    seen = {last}.union(*(listed(s, last) for s in looks))
    rooms = {step: min(s for s in seen if s >= step) - step for step in range(1, last + 1)}
    assert {step: schedule.room(step) for step in rooms} == rooms
    assert schedule.room(last + 1) == 0
    assert schedule.longest(begin) == max((r for s, r in rooms.items() if s > begin), default=0)


@given(st.lists(some_looks(), min_size=1, max_size=2), st.integers(0, 60))
def test_room_of_a_run_without_an_end(looks, begin):
    schedule = Schedule(tuple(looks), None)
    rooms = [schedule.room(step) for step in range(begin + 1, begin + 300)]
    assert schedule.longest(begin) == max(rooms)


def test_no_look_at_all():
    assert Schedule((), None).room(7) is None
    assert Schedule((), None).longest(0) is None
    assert Schedule((), None).complaint(100, 0) is None


def test_a_delay_leaves_room_at_the_beginning():
    schedule = Schedule((Looks("eval_steps=5", 5, first=101),), 500)
    assert schedule.longest(0) == 104
    assert schedule.longest(100) == 4


def test_the_window_fits_between_two_saves():
    saves = Looks("save_steps=11", 11)
    assert Schedule((saves,), 100).complaint(10, 0) is None
    complaint = Schedule((saves,), 100).complaint(11, 0)
    assert "with save_steps=11 there are 10" in complaint
    assert "every 12 steps or less" in complaint


def test_the_complaint_names_what_is_at_fault():
    saves, evaluations = Looks("save_steps=100", 100), Looks("eval_steps=10", 10)
    complaint = Schedule((saves, evaluations), 1000).complaint(50, 0)
    assert "with eval_steps=10 there are 9 at most" in complaint
    assert "save_steps" not in complaint
    both = Schedule((Looks("save_steps=60", 60), Looks("eval_steps=90", 90)), 1000)
    assert both.complaint(59, 0) is None
    shifted = Schedule((Looks("a", 60, (30,)), Looks("b", 60)), 1000)
    assert "a and b there are 29" in shifted.complaint(59, 0)
    assert "20 are left of the run" in Schedule((), 30).complaint(25, 9)
