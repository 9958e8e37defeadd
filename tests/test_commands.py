"The README's commands, run as a reader would: in a clean clone, with this environment."
import json
import re
import shutil
import subprocess
import sys
import pytest
from conftest import ROOT, files_of_the_repo, quiet
from test_structure import commands

@pytest.fixture(scope='module')
def clone(tmp_path_factory):
    "A clone of HEAD, brought up to what lies in the working tree (in CI the two are the same)"
    to = tmp_path_factory.mktemp('clone')/'sfr_repro'
    subprocess.run(['git', 'clone', '-q', str(ROOT), str(to)], check=True, capture_output=True)
    ours = {p.relative_to(ROOT) for p in files_of_the_repo()}
    for p in subprocess.run(['git', 'ls-files', '-z'], cwd=to, capture_output=True, text=True,
                            check=True).stdout.split('\0'):
        if p and (to/p).relative_to(to) not in ours: (to/p).unlink()
    for p in ours:
        (to/p).parent.mkdir(parents=True, exist_ok=True)
        if not (to/p).is_symlink(): shutil.copy(ROOT/p, to/p, follow_symlinks=False)
    return to

def make(clone, *args):
    "Run make in the clone with this environment; the data folder is the one this run has"
    kwargs = quiet(clone)
    for name in ('VENV', 'PYTHONDONTWRITEBYTECODE', 'PYTHONPYCACHEPREFIX'):
        kwargs['env'].pop(name, None)
    if (ROOT.parent/'shared/data').is_dir():
        kwargs['env'].setdefault('SFR_DATA', str(ROOT.parent/'shared/data'))
    return subprocess.run(['make', *args], **kwargs)

def test_readmes_reproduce_line_in_a_clean_clone(clone):
    line = next(o for o in commands((ROOT/'README.md').read_text(encoding='utf-8'))
                if o.startswith('make reproduce'))
    done = make(clone, *line.split()[1:], 'PRESET=smoke', f'VENV={sys.prefix}')
    assert not done.returncode, f'{done.stdout}\n{done.stderr}'
    for title in ('toy result', 'Committed records on the seven real STS sets', 'To run on the'):
        assert title in done.stdout, done.stdout
    assert list((clone/'sfr_repro').rglob('*.pyc')), "the clone's own package was not what ran"
    records = list((clone/'runs').rglob('record.json'))
    assert records
    for p in records: assert json.loads(p.read_text(encoding='utf-8'))['status']
    for kind in ('*.png', '*.html'): assert list((clone/'runs').rglob(kind)), f'no {kind} in runs/'
    changed = subprocess.run(['git', 'status', '--porcelain'], cwd=clone, capture_output=True,
                             text=True).stdout
    before = subprocess.run(['git', 'status', '--porcelain'], cwd=ROOT, capture_output=True,
                            text=True).stdout
    assert set(changed.splitlines()) <= set(before.splitlines()), \
        'reproduce left files that git sees'

@pytest.mark.once
def test_set_up_takes_torch_first_and_the_rest_at_the_pins(clone):
    done = make(clone, '-n', 'reproduce')
    steps = [o for o in done.stdout.splitlines() if ' install ' in o or 'sfr-repro reproduce' in o]
    torch = next(o for o in (clone/'constraints.txt').read_text().splitlines()
                 if o.startswith('torch=='))
    assert len(steps) == 3 and steps[0].endswith(torch), done.stdout
    assert '-c constraints.txt -e .' in steps[1] and 'sfr-repro reproduce' in steps[2], done.stdout

@pytest.mark.once
def test_make_alone_lists_every_command(clone):
    done = make(clone)
    for name in ('reproduce', 'test', 'docs', 'lab', 'refresh', 'clean', 'readme', 'help'):
        assert re.search(rf'^make {name} +\w', done.stdout, re.M), done.stdout

@pytest.mark.once
@pytest.mark.parametrize('says', ['Python 3.10.1', None])
def test_a_python_that_is_too_old_or_missing_is_one_sentence(clone, tmp_path, says):
    fake = tmp_path/'python'
    if says:
        fake.write_text(f'#!/bin/sh\n[ "$1" = -V ] && echo "{says}"\n[ "$1" = -V ]\n')
        fake.chmod(0o755)
    done = make(clone, 'reproduce', f'PYTHON={fake}')
    said = [o for o in (done.stdout + done.stderr).splitlines() if 'needs Python' in o]
    assert done.returncode == 2 and len(said) == 1, done.stdout + done.stderr
    assert (says or 'was not found') in said[0], done.stdout + done.stderr
    assert not (clone/'.venv').exists()
