"""Write constraints.txt: what is installed here and has passed the tests. `make pins` runs it.

It prints each pin that it changes, and how newer versions are tried.
"""
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
HEAD = ('# The versions that `make test` last passed with, all of them; made by `make pins`. '
        '`make` installs with these.\n')

def pins():
    "The text of constraints.txt"
    freeze = [sys.executable, '-m', 'pip', 'freeze', '--all', '--exclude', 'pip',
              '--exclude', 'sfr_repro', '--exclude-editable']
    lines = subprocess.run(freeze, capture_output=True, text=True, check=True).stdout.splitlines()
    pin = re.compile(r'([\w.-]+)==([\w.!]+)(?:\+\S+)?')           # no paths; no +cpu
    named = [m.groups() for m in map(pin.fullmatch, lines) if m]
    lost = [o for o in lines if not re.match(r'[\w.-]+==', o)]
    if lost:
        sys.exit(f'make: cannot pin {lost[0]!r}, which is not installed from an index by version')
    return HEAD + ''.join(f'{n}=={v}\n' for n, v in sorted(named, key=lambda o: o[0].lower()))

def versions(text):
    "Package -> version, of the text of constraints.txt"
    return dict(o.split('==') for o in text.splitlines() if '==' in o and not o.startswith('#'))

def changes(before, after):
    "One line for each pin that differs between two texts"
    old, new = versions(before), versions(after)
    names = sorted(old | new, key=str.lower)
    return [f'{k}: {old.get(k, "none")} -> {new.get(k, "none")}' for k in names
            if old.get(k) != new.get(k)]

HOW = """To try newer versions: raise a line of constraints.txt, or remove one (not torch's);
`make distclean test` installs and tests them; `make pins` writes down what passed. torch is
installed first, at its own line: where that finds no CPU build, Linux gets 3 GB of CUDA."""

def main():
    path = ROOT/'constraints.txt'
    before, after = path.read_text(encoding='utf-8'), pins()
    path.write_text(after, encoding='utf-8')
    print(f'constraints.txt: {len(versions(after))} pins, of what is installed in {sys.prefix}')
    print('\n'.join(changes(before, after)) or 'no pin changes')
    print(HOW)

if __name__ == '__main__': main()
