"""The watch: every process learns who failed and why, who is gone, and is ended if it cannot leave by itself."""

from __future__ import annotations

import json
import queue
import socket
import subprocess
import sys
import threading
import time

import pytest

from hf_transfer import watch
from hf_transfer.errors import EndedElsewhere, InputError, Preempted, RunError
from hf_transfer.launch import join_processes
from hf_transfer.watch import Watch

BROKEN_OFF = RuntimeError("[gloo/transport/tcp/pair.cc] Connection closed by peer")
ON = rf"\(on {socket.gethostname()}, pid \d+\)"


@pytest.fixture
def join():
    """Makes watches that have met, as of processes on this machine, and closes them."""
    made = []

    def meet(processes: int) -> list[Watch]:
        watches = [Watch(rank, processes, rank, lambda: None) for rank in range(processes)]
        first = watches[0].listen("127.0.0.1")
        for other in watches[1:]:
            other.connect("127.0.0.1", first)
        made.extend(watches)
        wait_until(watches[0], lambda: len(watches[0]._links) == processes - 1)
        return watches

    yield meet
    for one in made:
        one.close()


def wait_until(one: Watch, what) -> None:
    with one._changed:
        assert one._changed.wait_for(what, 20)


def test_a_failure_reaches_all_others_in_its_own_words(join):
    first, second, third = join(3)
    second.place = third.place = "step 3"
    third.remedy = "Start again."
    assert second.leave(ValueError("boom")) is None
    with pytest.raises(
        EndedElsewhere, match=rf"^process 1 of 3 {ON} failed: ValueError: boom\. Process 0 was at: start"
    ):
        raise first.leave(BROKEN_OFF)
    found = third.leave(BROKEN_OFF)
    assert str(found).endswith("failed: ValueError: boom. Process 2 was at: step 3. Start again.")
    assert found.speak is False and first.leave(BROKEN_OFF).speak is True


def test_a_process_that_was_killed_is_named_by_the_first_to_all(capfd):
    first = Watch(0, 3, 0, lambda: None)
    where = first.listen("127.0.0.1")
    second = Watch(1, 3, 1, lambda: None)
    second.connect("127.0.0.1", where)
    child = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import json, sys\n"
            "from hf_transfer.watch import Watch\n"
            "Watch(2, 3, 2).connect('127.0.0.1', json.loads(sys.argv[1]))\n"
            "sys.stdin.read()",
            json.dumps(where),
        ],
        stdin=subprocess.PIPE,
    )
    wait_until(first, lambda: len(first._links) == 2)
    child.kill()
    child.wait()
    for one in (first, second):
        wait_until(one, lambda one=one: one._ended is not None)
        assert f"process 2 of 3 (on {socket.gethostname()}, pid {child.pid}) is gone without a word" in one.sentence()
    assert first.leave(BROKEN_OFF).speak is False, "it has spoken, before a launcher could end it"
    first.close()
    second.close()
    assert capfd.readouterr().err.count("hf-transfer: the run failed: process 2 of 3 (") == 1


@pytest.mark.parametrize(("gone", "speaker"), [(0, (1, 1)), (1, (0, 0)), (2, (3, 1))])
def test_the_first_process_of_each_machine_speaks_or_the_second_where_the_first_is_gone(gone, speaker):
    """Two machines of two processes each; pairs are rank and rank on the machine."""
    rank, local_rank = speaker
    for ended, speaks in (({"rank": gone, "why": "is gone"}, True), ({"rank": gone, "text": "no"}, local_rank == 0)):
        watching = Watch(rank, 4, local_rank)
        watching._ended = ended
        assert watching.speaks is speaks


def test_who_cannot_leave_is_ended_and_who_leaves_is_not(join, monkeypatch):
    monkeypatch.setattr(watch, "SECONDS_TO_LEAVE", 0.2)
    first, second, third = join(3)
    left, stuck = queue.Queue(), queue.Queue()
    first._end_process, third._end_process = lambda: left.put("ended"), lambda: stuck.put(third.sentence())
    with third._changed:  # before anything ends, so that the wait of a moment is no race
        first._left = True
    second.leave(RunError("no more"))
    assert stuck.get(timeout=20).startswith("process 1 of 3 (")
    assert left.empty()


def test_an_error_of_ones_own_is_kept_whatever_ended_the_others(join):
    first, second = join(2)
    second.leave(RunError("no more"))
    wait_until(first, lambda: first._ended is not None)
    for error in (InputError("a"), RunError("b"), KeyboardInterrupt()):
        assert first.leave(error) is None


def test_a_failure_that_began_here_waits_for_no_word_of_another(join, monkeypatch):
    monkeypatch.setattr(watch, "SECONDS_FOR_NEWS", 60)
    first, _ = join(2)
    first.own_failure = RuntimeError("can't allocate memory")
    started = time.monotonic()
    assert not first.follows(first.own_failure)
    assert first.leave(first.own_failure) is None
    assert time.monotonic() - started < 30


@pytest.mark.parametrize("signal", [False, True])
def test_who_goes_with_another_lets_it_speak_and_go_first(join, monkeypatch, signal):
    monkeypatch.setattr(watch, "SECONDS_FOR_NEWS", 60)
    first, second = join(2)
    left = threading.Event()

    def leave():
        assert second.leave(EndedElsewhere("process 0 of 2 failed", False)) is None
        left.set()

    if signal:  # of the launcher, which has missed the first one

        def told(*_):
            raise Preempted("SIGTERM", together=False)

        monkeypatch.setattr(second._changed, "wait_for", told)
    threading.Thread(target=leave, daemon=True).start()
    if not signal:
        first.leave(RunError("no more"))
        wait_until(second, lambda: second._ended is not None)
        assert not left.wait(0.3), "the first has told the others, and not yet its user"
        first.close()
    assert left.wait(30)


def test_who_is_still_at_work_is_told_what_ended_another_and_not_of_an_earlier_run(join, monkeypatch):
    first, second = join(2)
    assert second.ended_elsewhere() is None
    first.leave(InputError("no such package"))
    wait_until(second, lambda: second._ended is not None)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(watch, "_watch", second)
    with pytest.raises(EndedElsewhere, match=r"process 0 of 2 .* failed: no such package\. Process 1 was at: starting"):
        join_processes()
    second.leave(ValueError())
    with pytest.raises(RunError, match="an earlier run of this script has failed"):
        join_processes()


def test_processes_that_say_goodbye_end_nobody(join):
    first, second, third = join(3)
    second.close()
    third.leave(Preempted("SIGTERM"))
    wait_until(first, lambda: first._finished == {1, 2})
    third.close()
    assert first._ended is None and first.leave(ValueError()) is None


def test_a_stranger_is_sent_away_and_the_others_still_come_in(join):
    first = Watch(0, 2, 0)
    where = first.listen("127.0.0.1")
    guesses = (b'{"rank": 1, "token": "guess"}\n', '{"rank": 1, "token": "ä"}\n'.encode(), b'{"token": "\\ud800"}\n')
    for words in (b"GET / HTTP/1.1\r\n", *guesses, b"[1]\n"):
        with socket.create_connection(("127.0.0.1", where["port"]), timeout=20) as stranger:
            stranger.sendall(words)
            assert stranger.recv(10) == b""
    second = Watch(1, 2, 1)
    second.connect("127.0.0.1", where)
    wait_until(first, lambda: set(first._links) == {1})
    first.close()
    second.close()


def test_the_kernel_is_asked_to_find_a_machine_that_is_out_of_reach(join):
    if not hasattr(socket, "TCP_USER_TIMEOUT"):
        pytest.skip("only Linux has these options")
    for link in (*(one := join(2))[0]._links.values(), *one[1]._links.values()):
        seconds = [
            link.getsockopt(socket.IPPROTO_TCP, getattr(socket, name))
            for name in ("TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT")
        ]
        assert link.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert seconds[0] + seconds[1] * seconds[2] + watch.SECONDS_TO_LEAVE <= 60
        assert link.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 1000 * (
            seconds[0] + seconds[1] * seconds[2]
        )


def test_the_first_process_speaks_for_those_that_fail_alike(join, monkeypatch):
    monkeypatch.setattr(watch, "SECONDS_FOR_NEWS", 0.5)
    first, second = join(2)
    second.leave(InputError("no such file"))
    assert not second.first_says(InputError("no such file"))
    first.leave(InputError("no such file"))
    wait_until(second, lambda: 0 in second._said)
    assert second.first_says(InputError("no such file"))
    assert not second.first_says(InputError("another"))


def test_a_failure_that_all_have_met_is_told_from_one_that_one_has(join, monkeypatch):
    monkeypatch.setattr(watch, "SECONDS_FOR_THE_OTHERS", 0.5)
    first, second, third = join(3)
    assert not first.met_by_all("run a") and not second.met_by_all("run a")
    assert third.met_by_all("run a")
    wait_until(first, lambda: "run a" in first._met_by_all)
    assert first.met_by_all("run a") and second.met_by_all("run a")
    assert not second.met_by_all("run b")


def test_the_first_process_has_met_all_others_when_it_goes_on(monkeypatch):
    """One that fails at once would else leave before it can tell them why."""
    second, take_in = Watch(1, 2, 1, lambda: None), Watch._take_in

    def slowly(self, *args):
        time.sleep(0.3)
        take_in(self, *args)

    monkeypatch.setattr(Watch, "_take_in", slowly)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")

    def share(first):
        second.connect("127.0.0.1", first)
        return first

    watch.start(0, 2, share, lambda joined: 1 + joined)
    try:
        with pytest.raises(InputError, match="no such file"), watch.one_for_all():
            raise InputError("no such file")
    finally:
        watch.stop()
    assert second.first_says(InputError("no such file"))
    second.close()


def test_a_process_by_itself_has_no_watch():
    assert watch.current() is None
    with pytest.raises(ValueError, match="mine"), watch.one_for_all():
        raise ValueError("mine")
    watch.met_by_all("run a", ValueError())
    watch.here("anywhere")
