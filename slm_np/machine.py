"""What this process may use of the machine: cores, and the memory that the machine or its container has left."""

import functools
import os
import sys
from pathlib import Path

GROUP_FILE, GROUP_ROOT = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


def available_cores(group_file=GROUP_FILE, group_root=GROUP_ROOT):
    """Cores that this process may use: those of its affinity, within the CPU quota of its container if there is one.

    A quota of 1.5 cores counts as two, since one thread could not use it up.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for folder in control_groups("cpu", group_file, group_root):
        try:
            quota, period = _cpu_quota(folder)
            cores = min(cores, max(1, -(-quota // period)))
        except (OSError, ValueError, ZeroDivisionError):
            pass  # this group has no quota
    return cores


def control_groups(controller, group_file=GROUP_FILE, group_root=GROUP_ROOT):
    """The folders of this process's control groups (version 2 and 1) for "cpu" or "memory", each before its parent.

    A limit of a group holds for the groups within it. In a container that sees the host's name of its group, but only
    its own part of the tree, the folder of that name is missing and the root describes the container.
    """
    try:
        lines = group_file.read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        return
    for line in lines:
        _, controllers, path = (line.split(":", 2) + ["", ""])[:3]  # such as "4:cpu,cpuacct:/docker/3f2a", "0::/a/b"
        if controllers and controller not in controllers.split(","):
            continue
        mounts = ("", "unified") if not controllers else {controllers, controller}
        for mount in map(group_root.joinpath, mounts):
            names = [name for name in path.split("/") if name not in ("", ".", "..")]
            for depth in range(len(names), -1, -1):
                folder = mount.joinpath(*names[:depth])
                if folder.is_dir():
                    yield folder


def _cpu_quota(group):
    """(Microseconds of CPU time per period, microseconds of a period). ValueError if it is unlimited."""
    if (group / "cpu.max").exists():
        quota, period = map(int, (group / "cpu.max").read_text(encoding="utf-8").split())
    else:
        quota, period = (
            int((group / f"cpu.cfs_{name}_us").read_text(encoding="utf-8")) for name in ("quota", "period")
        )
    if quota <= 0:
        raise ValueError("unlimited")
    return quota, period


def one_blas_thread():
    """A context in which NumPy's BLAS computes on the calling thread.

    Otherwise its threads spin for milliseconds after each product and take the cores from the kernels' threads, and its
    sums depend on their number.
    """
    return _blas().limit(limits=1)


@functools.cache
def _blas():
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController().select(user_api="blas")


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


def _container_available(group_file=GROUP_FILE, group_root=GROUP_ROOT):
    """Memory left by the control groups of this process. ValueError if all are unlimited."""
    left = []
    for folder in control_groups("memory", group_file, group_root):
        try:
            left.append(_group_available(folder))
        except (OSError, ValueError, LookupError):
            pass  # this group has no limit
    return min(left)


def _group_available(group):
    """Memory left by a control group (version 2 or 1): limit - used + reclaimable. ValueError if it is unlimited."""
    limit, used = (
        ("memory.max", "memory.current")
        if (group / "memory.max").exists()
        else ("memory.limit_in_bytes", "memory.usage_in_bytes")
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
