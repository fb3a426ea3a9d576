"""Locks between processes."""

import pytest

from mesa_lib import store


def test_a_lock_is_acquired_once_and_released(empty_store):
    with store.lock("x") as first, store.lock("x", wait=False) as second:
        assert first and not second
    with store.lock("x", wait=False) as third:
        assert third


def test_locks_of_other_names_are_free(empty_store):
    with store.lock("x"), store.lock("y", wait=False) as other:
        assert other
    assert {file.name for file in (empty_store / ".locks").iterdir()} <= {"x", "y"}


def test_a_store_that_cannot_be_written_is_reported_in_one_line(empty_store):
    empty_store.write_text("a file where the folder should be")
    with pytest.raises(OSError, match="cannot write x to .*nothing was started.*MESA_RUNS") as error, store.lock("x"):
        pass
    assert len(str(error.value).splitlines()) == 1 and str(empty_store) not in str(error.value)
