"""Clean and export, then say what that changed. `make check-tree` runs it.

A notebook and its module are committed together, so both must change nothing: here nothing that
lies in the folder (your own edits may be there), and with `CI` set nothing at all, untracked files
included.
"""
import hashlib
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent

def git(*args):
    "Output of a git command, one entry a NUL"
    done = subprocess.run(['git', *args, '-z'], cwd=ROOT, capture_output=True, text=True)
    if done.returncode: sys.exit(f'make: git {" ".join(args)} failed: {done.stderr.strip()}')
    return [o for o in done.stdout.split('\0') if o]

def snapshot():
    "Path -> hash of what it holds, for each file that git tracks or would track"
    files = {ROOT/o for o in git('ls-files', '-co', '--exclude-standard')}
    return {f.relative_to(ROOT).as_posix(): hashlib.sha1(f.read_bytes()).hexdigest()
            for f in files if f.is_file()}

def main():
    before = snapshot()
    for tool in ('nbdev_clean', 'nbdev_export'):
        done = subprocess.run([BIN/tool], cwd=ROOT, capture_output=True, text=True,
                              stdin=subprocess.DEVNULL)
        said = (done.stdout + done.stderr).strip()
        if said: print(said)
        # Both only warn about a notebook that they could not read
        if done.returncode or 'warn' in said.lower(): sys.exit(f'make: {tool} failed')
    after = snapshot()
    changed = sorted(f for f in before.keys() | after.keys() if before.get(f) != after.get(f))
    if changed:
        sys.exit('make: notebooks and package did not agree; clean and export have just changed\n  '
                 + '\n  '.join(changed)
                 + '\nlook at the changes, then run make test again')
    if os.environ.get('CI'):
        dirty = git('status', '--porcelain')
        if dirty: sys.exit('make: the tree of a CI run is not clean\n  ' + '\n  '.join(dirty))

if __name__ == '__main__': main()
