"""Floor 1: what the processes of a launch know of each other: who failed and why, who is gone.

A process that waits in a collective for one that will not come waits half an hour and then says neither who nor why;
where a machine was cut off, nothing ever arrives that it could notice. So each process holds one more connection, to
the first of them, on which nothing is sent while all goes well. It closes with a process that dies, keep-alive probes
of the kernel find a machine that cannot be reached, and whoever fails says why before it goes. A process at long work
of its own (saving the model, say) is not taken for dead, however busy: its kernel answers for it.
"""

from __future__ import annotations

import atexit
import hmac
import json
import os
import secrets
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from hf_transfer.errors import EndedElsewhere, InputError, Preempted, RunError, printable

QUIET_SECONDS, PROBE_SECONDS, PROBES = 10, 5, 4
"""A machine that answers none of so many probes, after so long a silence, is out of reach: 30 seconds in all."""
SECONDS_TO_LEAVE = 10
"""How long the main thread may take to notice by itself before its process is ended. What waits in a collective that
no connection broke off cannot be woken, nor asked."""
SECONDS_TO_CONNECT = 5
"""To the first process, which listens already; all others wait for the answer."""
SECONDS_FOR_NEWS = 5
"""Where a collective broke off, the reason is on its way: it was sent before the process at fault ended."""
SECONDS_FOR_THE_OTHERS = 30
"""In which a failure that only ends one of several runs must be met by all processes, or else it ends everything."""
MOST_CHARACTERS = 4_000
"""Of what a process says of its failure to the others."""

Facts = Mapping[str, Any]


class Watch:
    """One process's connection to the others: the first has one to each of them, the others one to the first."""

    def __init__(
        self, rank: int, processes: int, local_rank: int, end_process: Callable[[], None] | None = None
    ) -> None:
        """``local_rank``: among the processes of this machine. ``end_process`` ends this one at once."""
        self.rank = rank
        self.processes = processes
        self.local_rank = local_rank
        self.place = "starting"
        """What this process is at; part of what it says when another one ends it."""
        self.remedy = ""
        """What to do after the end, in a sentence."""
        self.own_failure: BaseException | None = None
        """Known to have begun here, whatever its type."""
        self._me = {"rank": rank, "host": socket.gethostname(), "pid": os.getpid()}
        self._end_process = end_process or (lambda: os._exit(self._exit_code()))
        self._changed = threading.Condition()
        self._sending = threading.Lock()
        self._links: dict[int, socket.socket] = {}
        self._known: dict[int, Facts] = {}
        self._finished: set[int] = set()  # said that they leave, or why
        self._gone: set[int] = set()  # nothing more can be heard of them
        self._said: dict[int, str] = {}  # failures by process
        self._met: dict[str, set[int]] = {}  # failures of a part of the work, and who met them
        self._met_by_all: set[str] = set()
        self._ended: Facts | None = None  # what ended another process, and with it this one
        self._spoken = False
        self._left = False  # the main thread is on its way out
        self._closed = False

    # ---- connections

    def listen(self, host: str) -> dict[str, Any]:
        """Let the others join, all of them at ``host`` or, where that is "", any; returns what they need to know."""
        dual = not host and socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if dual else socket.AF_INET
        try:
            listener = socket.create_server((host, 0), family=family, dualstack_ipv6=dual)
        except OSError:  # version 6 is there and turned off
            listener = socket.create_server((host, 0))
        token = secrets.token_hex(16)
        threading.Thread(target=self._accept, args=(listener, token), daemon=True).start()
        return self._me | {"port": listener.getsockname()[1], "token": token}

    def connect(self, address: str, first: Facts) -> None:
        """Join the first process at ``address``; ``first`` is what its ``listen`` returned.

        Raises:
            OSError: it cannot be reached there.
        """
        link = socket.create_connection((address, first["port"]), timeout=SECONDS_TO_CONNECT)
        link.settimeout(None)
        self._links[0], self._known[0] = _probed(link), first
        self._send(0, self._me | {"kind": "here", "token": first["token"]})
        threading.Thread(target=self._read, args=(0, link.makefile("r", encoding="utf-8")), daemon=True).start()

    def meet(self, others: int) -> None:
        """Wait for so many others to be taken in, who have come already: one that fails before it has met them could
        not tell them why."""
        with self._changed:
            self._changed.wait_for(lambda: len(self._links) == others, SECONDS_FOR_NEWS)

    def close(self) -> None:
        """Leave the others without harm."""
        with self._changed:
            self._closed = self._left = True
            self._changed.notify_all()
        for rank, link in list(self._links.items()):
            self._send(rank, {"kind": "bye", "rank": self.rank})
            with suppress(OSError):  # the other side has closed it
                link.shutdown(socket.SHUT_RDWR)
            link.close()

    def _accept(self, listener: socket.socket, token: str) -> None:
        """Take in all others, each of which has the token."""
        with listener:
            while len(self._known) < self.processes - 1:
                link, _ = listener.accept()
                self._take_in(_probed(link), token)

    def _take_in(self, link: socket.socket, token: str) -> None:
        link.settimeout(SECONDS_FOR_NEWS)
        lines = link.makefile("r", encoding="utf-8")
        try:
            facts = _read_line(lines.readline(MOST_CHARACTERS))
        except (OSError, ValueError):
            facts = {}
        rank = facts.get("rank")
        guess = str(facts.get("token")).encode(errors="replace")
        if not hmac.compare_digest(guess, token.encode()) or not isinstance(rank, int):
            link.close()  # somebody else
            return
        link.settimeout(None)
        with self._changed:
            self._links[rank], self._known[rank] = link, facts
            self._changed.notify_all()
            ended = self._ended
        if ended is not None:
            self._send(rank, ended)
        threading.Thread(target=self._read, args=(rank, lines), daemon=True).start()

    def _read(self, rank: int, lines: Any) -> None:
        """What the process at the other end says, until it is gone."""
        why = "is gone without a word: it crashed or was killed, perhaps for want of memory"
        try:
            while line := lines.readline():
                self._hear(_read_line(line))
        except ConnectionResetError:
            pass  # it is gone, like at the end of its words
        except (OSError, ValueError) as error:
            if self._closed:
                return
            why = f"cannot be reached any more ({error}): its machine is off, or the network between is"
        with self._changed:
            self._gone.add(rank)
            self._changed.notify_all()
            quiet = self._closed or rank in self._finished
            facts = self._known[rank]
        if not quiet:
            self._end({"kind": "ended", "rank": rank, "host": facts.get("host"), "pid": facts.get("pid"), "why": why})

    def _send(self, rank: int, facts: Facts) -> None:
        with self._sending, suppress(OSError):  # who is gone is noticed by reading
            self._links[rank].sendall((json.dumps(dict(facts)) + "\n").encode())

    def _tell(self, facts: Facts, but: int = -1) -> None:
        for rank in list(self._links):
            if rank not in (but, self.rank):
                self._send(rank, facts)

    # ---- what is heard

    def _hear(self, facts: Facts) -> None:
        kind, rank = facts.get("kind"), int(facts.get("rank", -1))
        with self._changed:
            if kind in ("bye", "ended"):
                self._finished.add(rank)
            if kind == "ended" and "text" in facts:
                self._said[rank] = facts["text"]
            if kind == "met":
                self._count(facts["key"], rank)
            if kind == "met by all":
                self._met_by_all.add(facts["key"])
            self._changed.notify_all()
        if kind == "ended":
            self._end(facts)

    def _count(self, key: str, rank: int) -> None:
        met = self._met.setdefault(key, set())
        met.add(rank)
        if len(met) == self.processes:
            self._met_by_all.add(key)
            self._tell({"kind": "met by all", "key": key})
            self._changed.notify_all()

    def _end(self, facts: Facts) -> None:
        """Another process has ended: the rest are told by the first one, and this one leaves, by itself or not."""
        with self._changed:
            if self._ended is not None or self._closed:
                return
            self._ended = facts
            if "why" in facts and self.speaks:
                self._speak()  # at once: a launcher that misses a process soon ends the others
            self._changed.notify_all()
        if self.rank == 0:
            self._tell(facts, but=int(facts["rank"]))
        threading.Thread(target=self._see_out, daemon=True).start()

    def _see_out(self) -> None:
        with self._changed:
            if self._changed.wait_for(lambda: self._left, SECONDS_TO_LEAVE):
                return
        if self.speaks and not self._spoken:
            self._speak()
        self._end_process()

    def _speak(self) -> None:
        self._spoken = True
        print(printable(f"hf-transfer: the run failed: {self.sentence()}"), file=sys.stderr, flush=True)

    def _exit_code(self) -> int:
        """Of a process that goes with another one: its own, where that was told to leave."""
        assert self._ended is not None, "nothing has ended yet"
        return Preempted.exit_code if self._ended.get("preempted") else RunError.exit_code

    @property
    def is_over(self) -> bool:
        """Whether a process has failed or left, so that nothing can be done together any more."""
        return self._left or self._closed or self._ended is not None or bool(self._finished)

    @property
    def speaks(self) -> bool:
        """Whether it is on this process to say what ended another: the first of each machine, or else the second."""
        facts = self._ended or {}
        first_is_gone = "why" in facts and facts["rank"] == self.rank - self.local_rank
        return self.local_rank == (1 if first_is_gone else 0)

    def sentence(self) -> str:
        """What ended another process, for people."""
        assert self._ended is not None, "nothing has ended yet"
        facts = self._ended
        about = [f"on {facts['host']}"] if facts.get("host") else []
        about += [f"pid {facts['pid']}"] if facts.get("pid") else []
        name = f"process {facts['rank']} of {self.processes} ({', '.join(about)})"
        why = facts.get("why") or f"failed: {facts.get('text')}"
        here = f"Process {self.rank} was at: {self.place}."
        return " ".join(filter(None, [f"{name} {why}{'' if why.endswith('.') else '.'}", here, self.remedy]))

    # ---- what the main thread asks

    def ended_elsewhere(self) -> EndedElsewhere | None:
        """What ended another process, where this one is still at work."""
        with self._changed:
            if self._ended is None or self._left:
                return None
            return EndedElsewhere(self.sentence(), self.speaks and not self._spoken, self._exit_code())

    def leave(self, error: BaseException) -> EndedElsewhere | None:
        """The main thread leaves because of ``error``: the others are told; or the reason, where it lies elsewhere."""
        self._wait_for_news(error)
        with self._changed:
            self._left = True
            self._changed.notify_all()
        if isinstance(error, EndedElsewhere):
            self._let_the_other_speak()
            return None
        if isinstance(error, Preempted) and error.together:  # all of them leave
            self._tell({"kind": "bye", "rank": self.rank})
            return None
        if self._ended is not None and not isinstance(error, InputError | RunError | KeyboardInterrupt | Preempted):
            return EndedElsewhere(self.sentence(), self.speaks and not self._spoken, self._exit_code())
        self._tell(self._me | {"kind": "ended", "text": in_short(error), "preempted": isinstance(error, Preempted)})
        return None

    def follows(self, error: BaseException) -> bool:
        """Whether ``error`` only follows from the end of another process: a collective that it broke off."""
        self._wait_for_news(error)
        with self._changed:
            return self._ended is not None and not isinstance(error, InputError | RunError)

    def _wait_for_news(self, error: BaseException) -> None:
        """A collective that another process broke off is a RuntimeError, whatever the backend."""
        if isinstance(error, RuntimeError) and error is not self.own_failure:
            with self._changed:
                self._changed.wait_for(lambda: self._ended is not None, SECONDS_FOR_NEWS)

    def _let_the_other_speak(self) -> None:
        """Wait, at most ``SECONDS_FOR_NEWS``, until the process that failed has said why and is gone: a launcher that
        misses another one before would end it in the middle. The launcher's signal only says that it is."""
        with suppress(Preempted), self._changed:
            self._changed.wait_for(
                lambda: self._ended is not None and (self._ended["rank"] if self.rank == 0 else 0) in self._gone,
                SECONDS_FOR_NEWS,
            )

    def first_says(self, error: BaseException) -> bool:
        """Whether the first process, within ``SECONDS_FOR_NEWS``, fails in the same way, and so has spoken for all."""
        with self._changed:
            self._changed.wait_for(lambda: 0 in self._said, SECONDS_FOR_NEWS)
            return self._said.get(0) == in_short(error)

    def met_by_all(self, key: str) -> bool:
        """Whether all processes say, within ``SECONDS_FOR_THE_OTHERS``, that they have met the failure ``key``."""
        if self.rank != 0:
            self._send(0, {"kind": "met", "key": key, "rank": self.rank})
        with self._changed:
            if self.rank == 0:
                self._count(key, 0)
            self._changed.wait_for(lambda: key in self._met_by_all or self._ended is not None, SECONDS_FOR_THE_OTHERS)
            return key in self._met_by_all


# ---- the watch of this process --------------------------------------------------------------------------------------

_watch: Watch | None = None


def current() -> Watch | None:
    """The watch of this process; None where it is the only one, or has not joined the others."""
    return _watch


def start(rank: int, processes: int, share: Callable[[Any], Any], count: Callable[[bool], int]) -> None:
    """Join the other processes.

    Args:
        share: gives every process what the first one calls it with.
        count: waits for all processes and says how many of them called it with True.

    Raises:
        OSError: the first process cannot be reached; this one goes on unwatched.
    """
    global _watch
    watch = Watch(rank, processes, int(os.environ.get("LOCAL_RANK", "0")))
    here_alone = os.environ.get("LOCAL_WORLD_SIZE") == str(processes)  # no other machine takes part
    address = "127.0.0.1" if here_alone else ""
    try:
        first = None
        try:
            first = watch.listen(address) if rank == 0 else None
        finally:
            first = share(first)
        if first is None:
            raise ConnectionError("it could not listen")
        if rank != 0:
            watch.connect(address or os.environ["MASTER_ADDR"], first)
    except OSError:
        count(False)
        raise
    _watch = watch
    here("meeting the others")
    come = count(True)
    if rank == 0:
        watch.meet(come - 1)


def stop() -> None:
    """All processes are done."""
    global _watch
    if _watch is not None:
        _watch.close()
        _watch = None


atexit.register(stop)  # a script of one's own need not end all processes at once


def here(place: str) -> None:
    """What this process is at from here on, to be named if the run ends."""
    if _watch is not None:
        _watch.place = place


@contextmanager
def one_for_all(remedy: str = "") -> Iterator[None]:
    """Around what processes do together: one that fails ends all, and all say what ended it, not what followed.

    Raises:
        EndedElsewhere: another process failed or is gone.
    """
    if _watch is not None:
        _watch.remedy = remedy
    try:
        yield
    except BaseException as error:
        reason = _watch.leave(error) if _watch is not None else None
        if reason is not None:
            raise reason from error
        raise


def keep_as_own(error: BaseException) -> None:
    """Remember that ``error`` began on this process, so that it waits for no word of another one's end."""
    if _watch is not None:
        _watch.own_failure = error


def met_by_all(key: str, error: Exception) -> None:
    """See that all processes have met ``error``, so that they go on alike; ``key`` names the part that it ended.

    Raises:
        RunError: this process alone has met it. The others may wait in the midst of that part, so nothing can go on.
        EndedElsewhere: it followed from another process's end.
    """
    if _watch is None or (not _watch.follows(error) and _watch.met_by_all(key)):
        return
    if isinstance(error, EndedElsewhere) and _watch.is_over:
        raise error
    if not isinstance(error, InputError | RunError):
        reason = _watch.leave(error)
        if reason is not None:
            raise reason from error
    raise RunError(f"{key}: not all processes have met this, so that they cannot go on together: {error}") from error


def in_short(error: BaseException) -> str:
    """``error`` as one of the other processes is told of it."""
    name = "" if isinstance(error, InputError | RunError) else type(error).__name__
    return ": ".join(filter(None, [name, str(error)]))[:MOST_CHARACTERS]


def _read_line(line: str) -> Facts:
    """What a line says; {} where that is nothing of ours."""
    try:
        facts = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return facts if isinstance(facts, dict) else {}


def _probed(link: socket.socket) -> socket.socket:
    """``link``, at whose other end the kernel looks now and then; where it cannot be told how often, as often as it
    does."""
    link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    wanted = {
        "TCP_KEEPIDLE": QUIET_SECONDS,
        "TCP_KEEPALIVE": QUIET_SECONDS,  # as macOS calls it
        "TCP_KEEPINTVL": PROBE_SECONDS,
        "TCP_KEEPCNT": PROBES,
        # for what was sent and never arrived, of which the probes know nothing
        "TCP_USER_TIMEOUT": 1000 * (QUIET_SECONDS + PROBES * PROBE_SECONDS),
    }
    for name, value in wanted.items():
        if hasattr(socket, name):
            link.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return link
