"""Blocks every outgoing connection of a Python process, loopback aside; conftest.py puts it in front of all tests and,
through PYTHONPATH, of every process that they start."""

import errno
import ipaddress
import os
import socket

_connect = socket.socket.connect


def _is_local(address: object) -> bool:
    if not isinstance(address, tuple):
        return True  # a Unix socket's path
    host = str(address[0])
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _is_address(host: object) -> bool:
    try:
        ipaddress.ip_address(str(host))
    except ValueError:
        return False
    return True


def _refuse(self: socket.socket, address: object) -> None:
    if not _is_local(address):
        raise ConnectionRefusedError(f"tests make no connections, and something tried {address}")
    _connect(self, address)


def _refuse_with_a_number(self: socket.socket, address: object) -> int:
    """What ``connect_ex`` does: an error is a number, and no exception."""
    try:
        _refuse(self, address)
    except OSError as error:
        return error.errno or errno.ECONNREFUSED
    return 0


def _refuse_name(host: object, *rest: object, **named: object) -> list:
    if host in (None, "", "localhost", socket.gethostname()) or _is_address(host):
        return _resolve(host, *rest, **named)
    raise socket.gaierror(f"tests look up no names, and something tried {host}")


_resolve = socket.getaddrinfo
socket.socket.connect = _refuse
socket.socket.connect_ex = _refuse_with_a_number
socket.getaddrinfo = _refuse_name

if "HF_TRANSFER_UNPICKLED" in os.environ:
    from unpickling import watch

    watch(os.environ["HF_TRANSFER_UNPICKLED"])
