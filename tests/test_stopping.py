"""A request to stop waits for the end of a step, and only for that; a second one waits for nothing."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from crossover.stopping import SAME_SECONDS, Stopped, Stopping


@pytest.fixture(autouse=True)
def handlers():
    """Leave the handlers of the test process as they were."""
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
    before = [signal.getsignal(number) for number in numbers]
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


@pytest.fixture
def clock(monkeypatch):
    """A monotonic clock that is set by hand."""
    now = [100.0]
    monkeypatch.setattr("crossover.stopping.time.monotonic", lambda: now[0])
    return now


def send(name):
    os.kill(os.getpid(), getattr(signal, name))


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR1"])
def test_a_request_is_read_between_steps(name):
    stop, steps = Stopping(), []
    with pytest.raises(Stopped, match=f"{name}.*step 3"), stop.listening(), stop.deferred():
        for step in range(1, 9):
            if step == 3:
                send(name)
            steps.append(step)
            if stop.requested():
                raise Stopped(f"{stop.requested()} at step {step}")
    assert steps == [1, 2, 3] and stop.requested() == name


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR1"])
def test_where_there_is_nothing_to_save_it_ends_at_once(name):
    stop = Stopping()
    with pytest.raises(KeyboardInterrupt) as raised, stop.listening():
        with stop.deferred():
            pass
        send(name)
        raise AssertionError("it went on")
    assert not isinstance(raised.value, Stopped)


def test_a_request_that_the_loop_has_not_read_is_not_forgotten():
    stop = Stopping()
    with pytest.raises(Stopped, match="the final scores are not"), stop.listening():
        with stop.deferred():
            send("SIGTERM")
        raise AssertionError("it went on")


def test_one_request_may_be_delivered_twice_within_an_instant(clock):
    stop = Stopping()
    with pytest.raises(Stopped), stop.listening(), stop.deferred():
        send("SIGTERM")
        clock[0] += SAME_SECONDS / 2
        send("SIGTERM")
        send("SIGINT")
    assert stop.requested() == "SIGTERM"


def test_a_second_request_ends_at_once_and_a_third_needs_no_python(clock):
    stop = Stopping()
    with pytest.raises(KeyboardInterrupt) as raised, stop.listening(), stop.deferred():
        send("SIGINT")
        clock[0] += 2 * SAME_SECONDS
        try:
            send("SIGTERM")
        finally:
            assert all(
                signal.getsignal(number) is signal.SIG_DFL for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
            )
    assert not isinstance(raised.value, Stopped)


def test_what_ignores_an_interrupt_goes_on_ignoring_it():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    stop = Stopping()
    with stop.listening(), stop.deferred():
        send("SIGINT")
    assert stop.requested() is None and signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_handlers_come_back_unless_the_process_was_asked_to_end():
    before = signal.getsignal(signal.SIGTERM)
    with Stopping().listening():
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before
    stop = Stopping()
    with pytest.raises(KeyboardInterrupt), stop.listening():
        send("SIGTERM")
    # A scheduler that insists must not turn a clean end into a traceback.
    send("SIGTERM")


def test_another_thread_hears_nothing_and_changes_nothing():
    before, seen = signal.getsignal(signal.SIGTERM), []

    def work() -> None:
        with Stopping().listening():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]
