"""Refuses connections, messages and name lookups of a Python process that lead out of the machine, and writes each down
in the file that ``HF_TRANSFER_ATTEMPTS`` names: who swallows the error is seen there. conftest.py puts it in front of
all tests and, through PYTHONPATH, of every process that they start."""

import errno
import ipaddress
import os
import socket
import sys

ATTEMPTS = os.environ.get("HF_TRANSFER_ATTEMPTS")
SENDING = ("socket.connect", "socket.sendto", "socket.sendmsg")
LOOKUPS = ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr")


def _refuse(event: str, arguments: tuple) -> None:
    """An audit hook, which no import order and no other way to the same function gets around."""
    if event in SENDING:
        link, address = arguments
        if link.family in (socket.AF_INET, socket.AF_INET6) and not _is_local(address):
            _write_down(f"{event} {address}")
            raise ConnectionRefusedError(f"tests make no connections, and something tried {address}")
    elif event in LOOKUPS:
        host = arguments[0]
        if not _is_known(host, or_an_address=event != "socket.gethostbyaddr"):
            _write_down(f"{event} {arguments[:2]}")
            raise socket.gaierror(f"tests look up no names, and something tried {host}")


def _is_local(address: object) -> bool:
    if not isinstance(address, tuple):
        return True  # of a socket that was connected before, so that there is none
    host = str(address[0])
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _is_known(host: object, or_an_address: bool) -> bool:
    """Whether no server of names is asked; for the name that belongs to an address one is."""
    if host in (None, "", "localhost", socket.gethostname()):
        return True
    try:
        address = ipaddress.ip_address(str(host))
    except ValueError:
        return False
    return or_an_address or address.is_loopback or address.is_unspecified


def _write_down(what: str) -> None:
    """One line, at once, whatever other processes write."""
    if not ATTEMPTS:
        return
    descriptor = os.open(ATTEMPTS, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(descriptor, f"{what} by {callers()}\n".encode())
    finally:
        os.close(descriptor)


def _connect_ex(self: socket.socket, address: object) -> int:
    """An error is a number, and no exception."""
    try:
        return _connect_without_exception(self, address)
    except ConnectionRefusedError:
        return errno.ECONNREFUSED


_connect_without_exception = socket.socket.connect_ex
socket.socket.connect_ex = _connect_ex
sys.addaudithook(_refuse)

if ATTEMPTS:
    from unpickling import callers

if "HF_TRANSFER_UNPICKLED" in os.environ:
    from unpickling import watch

    watch(os.environ["HF_TRANSFER_UNPICKLED"])
