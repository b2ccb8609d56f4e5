"""Signals are noted while held; a second one ends the program."""

import os
import signal
import threading

import pytest

from orca_jax.training import interruption


@pytest.mark.parametrize("number", interruption.SIGNALS, ids=lambda number: number.name)
def test_a_signal_is_noted_and_the_handler_comes_back(number):
    before = signal.getsignal(number)
    with interruption.deferred() as interrupted:
        assert interrupted.signal is None
        signal.raise_signal(number)
        assert interrupted.signal is number
    assert signal.getsignal(number) == before


def test_a_second_signal_ends_the_program():
    with interruption.deferred():
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)


def test_handlers_come_back_after_an_error():
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(RuntimeError, match="inside"), interruption.deferred():
        raise RuntimeError("inside")
    assert signal.getsignal(signal.SIGINT) == before


def test_outside_the_main_thread_nothing_is_held():
    found = []

    def work():
        with interruption.deferred() as interrupted:
            found.append(interrupted.signal)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [None]


def test_preempted_programs_ask_to_be_started_again():
    with pytest.raises(SystemExit) as left:
        interruption.exit_for(signal.SIGTERM)
    assert left.value.code == os.EX_TEMPFAIL == 75
    with pytest.raises(KeyboardInterrupt):
        interruption.exit_for(signal.SIGINT)
