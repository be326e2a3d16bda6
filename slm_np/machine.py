"""What this process may use of the machine: cores, and the memory that the machine or its container has left."""

import os
import sys
from pathlib import Path


def available_cores():
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def available_bytes():
    """Memory available without swapping, in bytes, within the container's limit if there is one; None if unknown."""
    known = []
    for source in SOURCES.get(sys.platform, (_installed,)):
        try:
            known.append(source())
        except (OSError, ValueError, AttributeError, LookupError):
            pass
    return min(known, default=None)


def _linux_available():
    fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text(encoding="utf-8").splitlines())
    return int(fields["MemAvailable"].split()[0]) * 1024


def _container_available(root=Path("/sys/fs/cgroup")):
    """Memory left by a control group (version 2 or 1): limit - used + reclaimable. ValueError if it is unlimited."""
    limit, used, group = (
        ("memory.max", "memory.current", root)
        if (root / "memory.max").exists()
        else ("memory.limit_in_bytes", "memory.usage_in_bytes", root / "memory")
    )
    stat = dict(line.split() for line in (group / "memory.stat").read_text(encoding="utf-8").splitlines())
    reclaimable = int(stat.get("total_inactive_file") or stat["inactive_file"])
    return (
        int((group / limit).read_text(encoding="utf-8")) - int((group / used).read_text(encoding="utf-8")) + reclaimable
    )


def _installed():
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")  # macOS reports the installed memory only


def _windows_available():
    import ctypes

    class Status(ctypes.Structure):
        _fields_ = [("length", ctypes.c_ulong), ("load", ctypes.c_ulong)] + [
            (name, ctypes.c_ulonglong)
            for name in (
                "total",
                "available",
                "total_page",
                "available_page",
                "total_virtual",
                "available_virtual",
                "extended",
            )
        ]

    status = Status(length=ctypes.sizeof(Status))
    if not ctypes.windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status)):
        raise ctypes.WinError()
    return status.available


SOURCES = {"linux": (_linux_available, _container_available), "win32": (_windows_available,)}
