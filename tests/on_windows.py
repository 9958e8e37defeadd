"""Run a program as if the package were on Windows: `python tests/on_windows.py FILE [ARGUMENTS]`.

Only the package's own imports are changed; what it imports keeps the real system. Modules that
Windows lacks are not found, names that `os` and `signal` lack there are not there, nothing lies
in /proc, and text files without a named encoding are opened as ASCII, which the locale is set to.
"""
import builtins
import importlib
import os
import pathlib
import runpy
import sys
import types

MODULES = {'fcntl', 'grp', 'posix', 'pty', 'pwd', 'readline', 'resource', 'syslog', 'termios',
           'tty', 'crypt', 'spwd', 'nis'}
NAMES = {
    'os': set("""chown chroot confstr ctermid fchdir fchmod fchown fdatasync fork forkpty
        fpathconf geteuid getgid getegid getgrouplist getgroups getloadavg getpgid getpgrp
        getpriority
        getresgid getresuid getsid getuid initgroups killpg lchown lockf major makedev
        minor mkfifo mknod nice openpty pathconf pipe2 posix_fadvise posix_fallocate
        posix_spawn posix_spawnp pread preadv pwrite pwritev readv register_at_fork
        sched_getaffinity sched_setaffinity sched_yield sendfile setegid seteuid setgid
        setgroups setpgid setpriority setregid setresgid setresuid setreuid setsid setuid
        statvfs fstatvfs sync sysconf tcgetpgrp tcsetpgrp ttyname uname wait wait3 wait4
        waitid writev O_NOFOLLOW O_DIRECTORY O_CLOEXEC O_SYNC WNOHANG""".split()),
    'signal': set("""SIGALRM SIGBUS SIGCHLD SIGCONT SIGHUP SIGKILL SIGPIPE SIGPROF SIGQUIT SIGSTOP
        SIGTSTP SIGTTIN SIGTTOU SIGUSR1 SIGUSR2 alarm getitimer pause pthread_kill
        pthread_sigmask setitimer siginterrupt sigpending sigwait""".split()),
    'time': {'clock_settime', 'pthread_getcpuclockid', 'tzset', 'CLOCK_MONOTONIC_RAW'},
}

class Lacking(types.ModuleType):
    "A module without the names that Windows lacks"
    def __init__(self, real):
        super().__init__(real.__name__, real.__doc__)
        self.__dict__['_real'] = real
    def __getattr__(self, name):
        if name in NAMES[self.__name__]:
            raise AttributeError(f'module {self.__name__!r} has no attribute {name!r} on Windows')
        return getattr(self._real, name)

LACKING = {name: Lacking(importlib.import_module(name)) for name in NAMES}

def importing(real):
    "`__import__`, which the package's modules see changed"
    def windows(name, globals=None, locals=None, fromlist=(), level=0):
        ours = str((globals or {}).get('__name__')).partition('.')[0] == 'sfr_repro'
        if ours and not level:
            if name in MODULES: raise ModuleNotFoundError(f'No module named {name!r}', name=name)
            if name in LACKING: return LACKING[name]
        return real(name, globals, locals, fromlist, level)
    return windows

def without_proc(real):
    "`Path.exists`, for which nothing lies in /proc"
    def exists(path, *args, **kwargs):
        return not path.as_posix().startswith('/proc') and real(path, *args, **kwargs)
    return exists

if __name__ == '__main__':
    builtins.__import__ = importing(builtins.__import__)
    pathlib.Path.exists = without_proc(pathlib.Path.exists)
    sys.argv = sys.argv[1:]
    sys.path[0] = os.getcwd()
    runpy.run_path(sys.argv[0], run_name='__main__')
