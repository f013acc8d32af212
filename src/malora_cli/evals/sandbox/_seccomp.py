"""Calls of the system that no program needs to compute an answer, and that reach beyond a folder and a process.

Landlock rules what files can be opened, no more: modes and times of files, other processes, sockets and new processes
are shut off here. Written with seccompy, since the interpreter has no way to filter calls of its own.
"""

from __future__ import annotations

import errno
import functools
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from seccompy import Filter

_NETWORK = "socket io_uring_setup"
_PROCESSES = (
    "fork vfork kill tkill tgkill rt_sigqueueinfo rt_tgsigqueueinfo pidfd_open pidfd_send_signal pidfd_getfd ptrace "
    "process_vm_readv process_vm_writev setpriority ioprio_set sched_setaffinity sched_setscheduler sched_setparam "
    "sched_setattr unshare setns"
)
_FILES = (
    "chmod fchmod fchmodat fchmodat2 chown lchown fchown fchownat setxattr lsetxattr fsetxattr setxattrat removexattr "
    "lremovexattr fremovexattr removexattrat utime utimes futimesat utimensat mount umount2 chroot pivot_root "
    "open_by_handle_at file_setattr truncate"
)
_MACHINE = (
    "shmget semget msgget mq_open keyctl add_key request_key bpf perf_event_open userfaultfd settimeofday "
    "clock_settime adjtimex clock_adjtime sethostname setdomainname reboot syslog acct quotactl swapon swapoff "
    "init_module finit_module delete_module kexec_load kexec_file_load ioperm iopl personality"
)
_CLONE_THREAD = 0x10000


def metadata_calls() -> list[str]:
    """Calls that change what is known of files, such as their modes, and not what is in them."""
    return _FILES.split()


@functools.cache
def denied() -> Filter:
    """A filter under which there is no network, no new process, and no hold on another one."""
    from seccompy import Action, ArgCmp, CmpOp, Filter, UnsupportedError

    calls = Filter(default=Action.ALLOW)
    for name in " ".join((_NETWORK, _PROCESSES, _FILES, _MACHINE)).split():
        try:
            calls.errno(name, errno.EPERM)
        except (KeyError, ValueError, UnsupportedError):
            continue  # this architecture has no such call
    # Threads are let through. The flags of clone3 lie in memory, so libraries are told to use clone instead.
    calls.errno("clone", errno.EPERM, args=[ArgCmp(0, CmpOp.MASKED_EQ, 0, mask=_CLONE_THREAD)])
    calls.errno("clone3", errno.ENOSYS)
    calls.errno("prlimit64", errno.EPERM, args=[ArgCmp(0, CmpOp.NE, 0)])  # of others
    assert calls.program  # made once, not by each child
    return calls
