"Write constraints.txt: what is installed here and has passed the tests. `make pins` runs it."
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

if __name__ == '__main__': (ROOT/'constraints.txt').write_text(pins(), encoding='utf-8')
