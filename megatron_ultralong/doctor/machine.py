"""What the system grants: shared memory, pinned memory, files, network, clock."""

import contextlib
import ctypes
import os
import resource
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from megatron_ultralong.doctor.finding import Finding
from megatron_ultralong.program import temporary
from megatron_ultralong.program.errors import InputError
from megatron_ultralong.program.open_files import ENOUGH
from megatron_ultralong.program.quantity import quantity

INFINIBAND = Path("/sys/class/infiniband")
SHARED_MEMORY = Path("/dev/shm")
LEAST_SHARED_MEMORY = 2**30
"""Bytes: NCCL and the checkpoint writers of eight ranks share theirs here."""
LEAST_TEMPORARY = 2**28
"""Bytes: compiled kernels, and what torch and matplotlib keep."""
SLOW_NAMES = 2.0
"""Seconds."""
_TIME_ERROR = 5  # adjtimex(2): the clock is not synchronised
_TIMEX_BYTES = 208  # sizeof(struct timex) on 64-bit Linux


def machine_findings(*, has_gpu: bool) -> Iterator[Finding]:
    """Limits of this process and devices of this host."""
    yield _shared_memory()
    yield _temporary_files()
    if has_gpu:
        yield _caches()
    yield _pinned_memory(has_gpu)
    yield _open_files()
    if has_gpu:
        yield from _work_queues()
    yield from _interfaces()
    yield _host_name()
    yield _name_server()
    yield _clock()


def _shared_memory() -> Finding:
    if not SHARED_MEMORY.is_dir():
        return Finding("problem", "/dev/shm", "is not there", "mount a tmpfs there")
    try:
        tempfile.TemporaryFile(dir=SHARED_MEMORY).close()
    except OSError as error:
        fix = "mount a tmpfs there, which all users may write to"
        return Finding("problem", "/dev/shm", f"cannot be written to: {error}", fix)
    usage = shutil.disk_usage(SHARED_MEMORY)
    text = f"{quantity(usage.free, 'B')} of {quantity(usage.total, 'B')} free"
    if usage.free < LEAST_SHARED_MEMORY:
        return Finding("warning", "/dev/shm", text, "docker run --ipc=host, or --shm-size=16g")
    return Finding("ok", "/dev/shm", text)


def _temporary_files() -> Finding:
    try:
        folder = temporary.check_temporary_folder()
    except InputError as error:
        return Finding("problem", "temporary files", str(error))
    free = shutil.disk_usage(folder).free
    text = f"in {folder}, {quantity(free, 'B')} free"
    if free < LEAST_TEMPORARY:
        return Finding("warning", "temporary files", text, temporary.WAY_OUT)
    return Finding("ok", "temporary files", text)


def _caches() -> Finding:
    """Where kernels that are compiled here stay; torch's own are temporary files."""
    named = os.environ.get("TRITON_CACHE_DIR")
    folder = Path(named) if named else Path(os.path.expanduser("~")) / ".triton"
    if temporary.unwritable(folder) is None:
        return Finding("ok", "kernel cache", f"in {folder}")
    text = f"{folder} cannot be written to: Triton cannot compile, and slower kernels are used"
    return Finding("warning", "kernel cache", text, "set TRITON_CACHE_DIR to another folder")


def _pinned_memory(has_gpu: bool) -> Finding:
    limit, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if limit == resource.RLIM_INFINITY:
        return Finding("ok", "pinned memory", "unlimited (ulimit -l)")
    text = f"at most {limit / 2**20:g} MiB (ulimit -l)"
    if has_gpu and _infiniband():
        fix = "docker run --ulimit memlock=-1; on a host, memlock in /etc/security/limits.conf"
        return Finding("problem", "pinned memory", f"{text}: InfiniBand registers more", fix)
    return Finding("note", "pinned memory", f"{text}: enough without InfiniBand")


def _infiniband() -> list[str]:
    """Devices of this host; the folder is there with the driver, and may be empty."""
    return sorted(entry.name for entry in INFINIBAND.iterdir()) if INFINIBAND.is_dir() else []


def _open_files() -> Finding:
    limit, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    text = f"at most {limit} (ulimit -n)"
    if limit != resource.RLIM_INFINITY and limit < ENOUGH:
        fix = f"ulimit -n {65536 if hard == resource.RLIM_INFINITY else hard}"
        if resource.RLIM_INFINITY != hard < ENOUGH:
            fix = "docker run --ulimit nofile=65536; on a host, nofile in /etc/security/limits.conf"
        return Finding("warning", "open files", text, fix)
    return Finding("ok", "open files", text)


def _work_queues() -> Iterator[Finding]:
    """What a habit of Megatron-LM costs here (benchmarks/attention.md)."""
    if os.environ.get("CUDA_DEVICE_MAX_CONNECTIONS") == "1":
        yield Finding(
            "note",
            "CUDA queues",
            "CUDA_DEVICE_MAX_CONNECTIONS is 1: communication waits for kernels of other streams, "
            "and the backward pass of a ring of documents takes up to 1.5 times as long",
            "unset it, unless Megatron-LM's own loop asks for it",
        )


def _interfaces() -> Iterator[Finding]:
    try:
        import psutil
    except Exception as error:  # it has a line of its own among the libraries
        yield Finding("note", "network", f"cannot be looked at ({type(error).__name__}: {error})")
        return
    addresses = psutil.net_if_addrs()
    parts = []
    for name, stats in sorted(psutil.net_if_stats().items()):
        ips = [a.address for a in addresses.get(name, ()) if a.family == socket.AF_INET]
        if stats.isup and ips:
            speed = f" {stats.speed / 1000:g} Gbit/s" if stats.speed else ""
            parts.append(f"{name} {', '.join(ips)}{speed}")
    if devices := _infiniband():
        parts.append(f"InfiniBand {', '.join(devices)}")
    if not parts:
        yield Finding("problem", "network", "no interface is up", "ip link set lo up")
    else:
        yield Finding("ok", "network", "; ".join(parts))
    for variable in ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME"):
        yield from _named_interfaces(variable, list(addresses))


def _named_interfaces(variable: str, known: list[str]) -> Iterator[Finding]:
    value = os.environ.get(variable, "")
    if not value or value.startswith("^"):  # NCCL: all but these
        return
    exact = value.startswith("=") or variable.startswith("GLOO")
    for name in value.lstrip("=").split(","):
        if name in known or (not exact and any(other.startswith(name) for other in known)):
            yield Finding("ok", variable, name)
        else:
            yield Finding(
                "problem",
                variable,
                f"names {name!r}, and the interfaces here are {', '.join(sorted(known))}",
                f"set {variable} to one of them, or unset it",
            )


def _host_name() -> Finding:
    name = socket.gethostname()
    try:
        address = socket.gethostbyname(name)
    except OSError as error:
        fix = f"add {name} to /etc/hosts, or set GLOO_SOCKET_IFNAME"
        return Finding("warning", "host name", f"{name} has no address ({error})", fix)
    if address.startswith("127."):
        text = f"{name} is {address}: ranks on other hosts cannot reach it"
        fix = "for several hosts set GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME to an interface"
        return Finding("note", "host name", text, fix)
    return Finding("ok", "host name", f"{name} is {address}")


def _name_server() -> Finding:
    """What torch's store asks when ranks meet: the name of the address of this host itself.

    It asks as for an IPv6 address, which /etc/hosts does not answer.
    """
    start = time.monotonic()
    with contextlib.suppress(OSError):  # "no such name" is an answer too
        socket.getnameinfo(("::ffff:127.0.0.1", 0, 0, 0), socket.NI_NUMERICSERV)
    seconds = time.monotonic() - start
    if seconds < SLOW_NAMES:
        return Finding("ok", "name server", f"answers, or is not there, in {seconds:.1f} s")
    text = f"no answer in {seconds:.0f} s, for which ranks wait when they meet"
    fix = "fix `nameserver` in /etc/resolv.conf, or set RES_OPTIONS='timeout:1 attempts:1'"
    return Finding("warning", "name server", text, fix)


def _clock() -> Finding:
    buffer = ctypes.create_string_buffer(_TIMEX_BYTES)  # zeros: read, change nothing
    try:
        state = ctypes.CDLL(None, use_errno=True).adjtimex(buffer)
    except (AttributeError, OSError) as error:  # not Linux
        return Finding("note", "clock", f"whether it is synchronized cannot be read ({error})")
    if state == _TIME_ERROR:
        fix = "start chrony or systemd-timesyncd on the host: logs of hosts are compared by time"
        return Finding("note", "clock", "is not synchronized", fix)
    if state < 0:
        return Finding("note", "clock", "whether it is synchronized may not be read here")
    return Finding("ok", "clock", "is synchronized")
