"""Run nbdev's test of each notebook, two at a time: `make check-notebooks` runs it.

Each notebook has a process of its own, and may take as long as it takes. One in which no cell has
ended for HANG seconds hangs: it is ended, and its name and the first line of that cell are printed.
"""
import argparse
import multiprocessing
import os
import signal
import sys
import time
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
HANG = 30*60        # seconds for one cell; the slowest takes half a minute on two cores
WORKERS = 2

def run(notebook, send):
    "nbdev's test, in a process of its own: sends each cell's first line, then whether all passed"
    os.setsid()                     # so that what a cell starts ends with it
    import nbdev.test
    from nbdev.config import get_config

    class Reporting(nbdev.test.CaptureShell):
        "nbdev's shell, which says what it runs"
        def run_cell(self, raw_cell, *args, **kwargs):
            lines = [o for o in raw_cell.splitlines() if o.strip() and not o.startswith('#|')]
            send.send(lines[0] if lines else '')
            return super().run_cell(raw_cell, *args, **kwargs)

    nbdev.test.CaptureShell = Reporting
    os.chdir(ROOT)                  # where settings.ini is
    config = get_config()
    passed, _ = nbdev.test.test_nb(notebook, config.tst_flags.split(), basepath=config.config_path)
    send.send(passed)

@dataclass
class Running:
    "One notebook on its way"
    notebook: Path
    process: BaseProcess
    reports: Connection
    began: float = field(default_factory=time.monotonic)
    heard: float = field(default_factory=time.monotonic)    # when its last cell began
    cell: str = ''
    passed: bool = False
    ended: bool = False

    def read(self):
        "Take in what was sent; a pipe that closes ends the run, whatever closed it"
        try:
            while self.reports.poll():
                report = self.reports.recv()
                self.heard = time.monotonic()
                if isinstance(report, bool): self.passed = report
                else: self.cell = report
        except EOFError: self.ended = True

    def kill(self):
        "End the process and what it has started"
        try: os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError: self.process.kill()
        self.ended = True

def start(notebook):
    "Begin with a notebook"
    context = multiprocessing.get_context('spawn')
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=run, args=(notebook, send))
    process.start()
    send.close()                    # now it is the process's alone, so that its end closes the pipe
    return Running(notebook, process, receive)

def run_all(notebooks, hang=HANG, workers=WORKERS):
    "(notebook, seconds, what went wrong or None) for each notebook, as they end"
    waiting, running = list(notebooks)[::-1], []
    try:
        while waiting or running:
            while waiting and len(running) < workers: running.append(start(waiting.pop()))
            wait([r.reports for r in running], timeout=min(1, hang/4))
            for r in list(running):
                r.read()
                wrong = None if r.passed else 'failed'
                if not r.ended and time.monotonic() - r.heard > hang:
                    wrong = f'was ended: no cell ended for {hang:.0f} s, and it was in "{r.cell}"'
                    r.kill()
                if r.ended:
                    r.process.join()
                    running.remove(r)
                    yield r.notebook, time.monotonic() - r.began, wrong
    finally:
        for r in running: r.kill()

def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('notebooks', nargs='*', type=Path, help='which, instead of all')
    names = parser.parse_args().notebooks or (ROOT/'nbs').rglob('[!_.]*.ipynb')
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))     # so that what runs is ended too
    times, failed = {}, []
    for notebook, seconds, wrong in run_all(sorted(o.resolve() for o in names)):
        name = os.path.relpath(notebook, ROOT)
        times[name] = seconds
        if not wrong: continue
        failed.append(name)
        print(f'{name} {wrong}', file=sys.stderr, flush=True)
    for name in sorted(times, key=times.get, reverse=True): print(f'{times[name]:5.0f} s  {name}')
    if failed:
        sys.exit(f'make: {len(failed)} of {len(times)} notebooks failed: {", ".join(failed)}')
    print(f'all {len(times)} notebooks passed')

if __name__ == '__main__': main()
