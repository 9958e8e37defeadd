"What the tests share. `make check-package` runs them with the data, `make check-offline` without."
import configparser
import os
import subprocess
import sys
from pathlib import Path
import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))       # the package of this folder, where another is installed too

def pytest_configure(config):
    why = 'looks at neither data nor network, so `make check-offline` leaves it out'
    config.addinivalue_line('markers', f'once: {why}')

def files_of_the_repo():
    "Each file that git tracks or would track: what a clone of the next commit holds"
    command = ['git', 'ls-files', '-co', '--exclude-standard', '-z']
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return sorted({ROOT/o for o in done.stdout.split('\0') if o and (ROOT/o).is_file()})

@pytest.fixture(scope='session')
def repo_files(): return files_of_the_repo()

@pytest.fixture(scope='session')
def settings():
    "settings.ini, the one configuration"
    cfg = configparser.ConfigParser(delimiters=['='])
    cfg.read(ROOT/'settings.ini', encoding='utf-8')
    return cfg['DEFAULT']

@pytest.fixture(scope='session')
def data_folder():
    "The folder with real sentences: SFR_DATA, else ../shared/data, as in the package; else a skip"
    named = os.environ.get('SFR_DATA')
    folder = Path(named) if named else ROOT.parent/'shared/data'
    if named == 'none' or not folder.is_dir(): pytest.skip('no data folder')
    return folder

def quiet(cwd, **env):
    "For a subprocess that must not see this repo: another folder, no PYTHONPATH, no make around it"
    hidden = ('PYTHONPATH', 'PYTHONHOME', 'VIRTUAL_ENV', 'MAKEFLAGS', 'MAKELEVEL', 'MFLAGS',
              'SFR_RUNS')
    return dict(cwd=cwd, env={k: v for k, v in os.environ.items() if k not in hidden} | env,
                text=True, capture_output=True, stdin=subprocess.DEVNULL)

@pytest.fixture(autouse=True)
def losses_as_they_were():
    "What a test registers goes with it"
    from sfr_repro.losses.registry import LOSSES
    before = dict(LOSSES)
    yield
    LOSSES.clear(); LOSSES.update(before)
