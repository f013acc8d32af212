"""A small run that is killed, or whose disk is full, at every single thing it does to its folder; then it is resumed.

    python benchmarks/faults.py              each operation once killed and once full, and 20 kills at random moments
    python benchmarks/faults.py --every 10   every tenth operation only

What is resumed has to end with the adapter, the metrics and the analysis of the experts of a run that nothing stopped,
bit by bit, and with nothing beside them; a full disk has to end the command with one line and exit code 2. Operations
are those of the system on the run folder (open to write, write, rename, mkdir, unlink, rmdir, fsync, truncate), counted
by a library of a few lines that is loaded before libc: `cc` is needed. Figures are kept in ``benchmarks/results/``.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import importlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

COUNTER = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>
static char folder[4096];
static long count, at;
static int fills;               /* 0: the process is killed at the operation; 1: the disk is full from there on */
static unsigned char ours[65536];
void faults_arm(const char *path, long operation, int full) {
    strncpy(folder, path, sizeof folder - 1); at = operation; fills = full; count = 0;
}
long faults_count(void) { return count; }
static int hit(int grows) {
    count++;
    if (at && !fills && count == at) kill(getpid(), SIGKILL);
    if (at && fills && grows && count >= at) { errno = ENOSPC; return 1; }
    return 0;
}
static int below(int dir, const char *path) {
    if (!*folder || !path) return 0;
    if (*path == '/') return !strncmp(path, folder, strlen(folder));
    return dir >= 0 && dir < 65536 && ours[dir];
}
static int opened(int fd, int is_ours) { if (fd >= 0 && fd < 65536) ours[fd] = is_ours; return fd; }
static int mine(int fd) { return fd >= 0 && fd < 65536 && ours[fd]; }
#define REAL(name) ((__typeof__(&name)) dlsym(RTLD_NEXT, #name))
#define OPEN(name, DIR, params, args) int name params { \
    mode_t mode = 0; va_list more; va_start(more, flags); mode = va_arg(more, mode_t); va_end(more); \
    int is = below(DIR, path), writes = flags & (O_WRONLY | O_RDWR | O_CREAT | O_TRUNC); \
    if (is && writes && hit(flags & (O_CREAT | O_TMPFILE))) return -1; \
    return opened(REAL(name) args, is); }
OPEN(open, -1, (const char *path, int flags, ...), (path, flags, mode))
OPEN(open64, -1, (const char *path, int flags, ...), (path, flags, mode))
OPEN(openat, dir, (int dir, const char *path, int flags, ...), (dir, path, flags, mode))
OPEN(openat64, dir, (int dir, const char *path, int flags, ...), (dir, path, flags, mode))
#define ON_FILE(type, name, grows, params, args) type name params { \
    if (mine(fd) && hit(grows)) return -1; return REAL(name) args; }
ON_FILE(ssize_t, write, 1, (int fd, const void *data, size_t size), (fd, data, size))
ON_FILE(ssize_t, pwrite64, 1, (int fd, const void *data, size_t size, off64_t where), (fd, data, size, where))
ON_FILE(int, ftruncate64, 1, (int fd, off64_t size), (fd, size))
ON_FILE(int, fsync, 0, (int fd), (fd))
int close(int fd) { opened(fd, 0); return REAL(close)(fd); }
#define ON_PATH(name, DIR, grows, params, args) int name params { \
    if (below(DIR, path) && hit(grows)) return -1; return REAL(name) args; }
int rename(const char *, const char *); int mkdir(const char *, mode_t);
ON_PATH(rename, -1, 0, (const char *path, const char *to), (path, to))
ON_PATH(mkdir, -1, 1, (const char *path, mode_t mode), (path, mode))
ON_PATH(unlink, -1, 0, (const char *path), (path))
ON_PATH(rmdir, -1, 0, (const char *path), (path))
ON_PATH(unlinkat, dir, 0, (int dir, const char *path, int flags), (dir, path, flags))
"""


def with_counter() -> ctypes.CDLL:
    """The counter, which is only in effect in a process that is started with it: this one is, if need be again."""
    library = os.environ.get("LD_PRELOAD", "")
    if not library.endswith("counter.so"):
        folder = Path(tempfile.mkdtemp(prefix="faults-"))
        (folder / "counter.c").write_text(COUNTER)
        built = [
            "cc",
            "-shared",
            "-fPIC",
            "-w",
            "-O1",
            "-o",
            str(folder / "counter.so"),
            str(folder / "counter.c"),
            "-ldl",
        ]
        subprocess.run(built, check=True)
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, "LD_PRELOAD": str(folder / "counter.so")})
    counter = ctypes.CDLL(library)
    counter.faults_arm.argtypes = [ctypes.c_char_p, ctypes.c_long, ctypes.c_int]
    counter.faults_count.restype = ctypes.c_long
    return counter


class Workplace:
    """Commands in processes of their own, forked from one in which everything is imported.

    Args:
        folder: Where everything lies.
        counter: Counts operations, and fails them.
    """

    def __init__(self, folder: Path, counter: ctypes.CDLL) -> None:
        from conftest import write_model
        from malora_cli.train import run  # noqa: F401 (imported once, for all)
        from train_runs import workplace

        self.folder, self.counter = folder, counter
        recipe = workplace(folder, write_model(folder / "model"))
        sizes = ["train.steps=4", "train.checkpoint_every=2", "train.eval_every=2", "train.eval_rows=1"]
        self.train = ["train", str(recipe), *sizes, "train.keep_checkpoints=1"]
        self.errors = folder / "errors"

    def start(self, *arguments: str, watched: Path | None = None, at: int = 0, full: bool = False) -> int:
        """Start a command; gives back the number of its process."""
        child = os.fork()
        if child:
            return child
        code = 1
        try:
            for stream, path in ((1, self.folder / "output"), (2, self.errors)):
                os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
            from malora_cli.cli import main

            if watched is not None:
                self.counter.faults_arm(str(watched).encode(), at, full)
            try:
                main(arguments)
            except SystemExit as end:
                code = int(end.code or 0)
            (self.folder / "count").write_text(str(self.counter.faults_count()))
            (self.folder / "modules").write_text("\n".join(sorted(sys.modules)))
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def run(self, *arguments: str, watched: Path | None = None, at: int = 0, full: bool = False) -> int:
        """Run a command to its end; gives back its exit code, negative where it was killed."""
        _, status = os.waitpid(self.start(*arguments, watched=watched, at=at, full=full), 0)
        return os.waitstatus_to_exitcode(status)

    def import_all(self) -> None:
        """Import here what the last command has, so that the next ones need not."""
        for name in (self.folder / "modules").read_text().splitlines():
            with contextlib.suppress(Exception):
                importlib.import_module(name)

    def said(self) -> list[str]:
        """What the last command said on its error stream."""
        return self.errors.read_text().splitlines()


def state(folder: Path) -> dict[str, object]:
    """Everything that a run ends with and that does not hang on the clock."""
    from malora_cli.results import RunRecord
    from train_runs import measured

    record = RunRecord(folder)
    lock = {record.lock_path, record.writer_path}  # which may stay where the writer is killed over their removal
    names = sorted(str(path.relative_to(folder)) for path in {*folder.rglob("*")} - lock if path.is_file())
    kept = {n: (folder / n).read_bytes() for n in names if n.startswith(("adapter/", "experts"))}
    return {"files": names, "kept": kept, "metrics": measured(record), "finished": record.finished}


def go_on(place: Workplace, name: str, *, resume: bool) -> None:
    """Bring a run that was stopped to its end, as its user would."""
    from malora_cli.results import RunRecord

    record = RunRecord(place.folder / "runs" / name)
    if record.finished:  # only its page may not be there
        code = place.run("report", str(record.path))
    else:
        again = ["--resume"] if record.exists or (resume and record.path.exists()) else []
        code = place.run(*place.train, f"output.name={name}", *again)
    assert code == 0, (name, code, place.said())


def at_every_operation(place: Workplace, whole: dict[str, object], operations: range, *, full: bool) -> Counter[str]:
    """Stop a run at each operation, bring it to its end and compare."""
    found: Counter[str] = Counter()
    for number in operations:
        name = f"{'full' if full else 'killed'}-{number}"
        folder = place.folder / "runs" / name
        code, said = place.run(*place.train, f"output.name={name}", watched=folder, at=number, full=full), place.said()
        line = said[-1] if said else ""
        if full and code and not (code == 2 and line.startswith("error: ") and len(said) == 1):
            found["not one line"] += 1
            print(name, code, *said, sep="\n  ")
        found[f"ended with {code}"] += 1
        compare(place, name, whole, found, resume=bool(number % 2))
    return found


def compare(place: Workplace, name: str, whole: dict[str, object], found: Counter[str], *, resume: bool) -> None:
    """Bring a run to its end, and count whether it is the one that nothing stopped."""
    folder = place.folder / "runs" / name
    try:
        go_on(place, name, resume=resume)
        now = state(folder)
        differs = [part for part in whole if now[part] != whole[part]]
        assert not differs, (name, differs, now["files"])
        found["same"] += 1
        subprocess.run(["rm", "-r", str(folder)], check=True)
    except AssertionError as error:
        found["different"] += 1
        print(name, error)


def at_random_moments(place: Workplace, whole: dict[str, object], kills: int, seconds: float) -> Counter[str]:
    """Kill a run after a random time, bring it to its end and compare."""
    found: Counter[str] = Counter()
    chance = random.Random(0)
    for number in range(kills):
        child = place.start(*place.train, f"output.name=random-{number}")
        time.sleep(chance.uniform(0, seconds))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        compare(place, f"random-{number}", whole, found, resume=bool(number % 2))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--every", type=int, default=1, help="stop at every N-th operation only")
    parser.add_argument("--kills", type=int, default=20, help="kills at random moments")
    options = parser.parse_args()
    counter = with_counter()
    with tempfile.TemporaryDirectory() as name:
        os.environ["XDG_CACHE_HOME"] = f"{name}/cache"
        place = Workplace(Path(name), counter)
        assert place.run(*place.train, "output.name=first") == 0, place.said()  # fills the cache
        place.import_all()
        started, watched = time.perf_counter(), place.folder / "runs" / "whole"
        assert place.run(*place.train, "output.name=whole", watched=watched) == 0, place.said()
        seconds, count = time.perf_counter() - started, int((place.folder / "count").read_text())
        whole, operations = state(watched), range(1, count + 1, options.every)
        figures: dict[str, object] = {"operations": count, "stopped at": len(operations)}
        for what, full in (("killed at an operation", False), ("full from an operation on", True)):
            figures[what] = at_every_operation(place, whole, operations, full=full)
            print(what, figures[what], flush=True)
        figures["killed at a random moment"] = at_random_moments(place, whole, options.kills, seconds)
        print(figures)
        from malora_cli.results import write_json

        write_json(Path(__file__).parent / "results" / "faults.json", figures)


if __name__ == "__main__":
    main()
