"What the tests share. `make check-package` and `make check-offline` run them with the data folder and without."
import configparser
import os
import subprocess
import sys
from pathlib import Path
import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))           # the package of this folder, also where another copy is installed

def pytest_configure(config):
    config.addinivalue_line('markers', 'once: looks at neither data nor network, so `make check-offline` leaves it out')

def files_of_the_repo():
    "Each file that git tracks or would track: what a clone of the next commit holds"
    out = subprocess.run(['git', 'ls-files', '-co', '--exclude-standard', '-z'], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return sorted({ROOT/o for o in out.split('\0') if o and (ROOT/o).is_file()})

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
    "The folder with real sentences, found as the package finds it: SFR_DATA, else ../shared/data; skips without it"
    named = os.environ.get('SFR_DATA')
    folder = Path(named) if named else ROOT.parent/'shared/data'
    if named == 'none' or not folder.is_dir(): pytest.skip('no data folder')
    return folder

def quiet(cwd, **env):
    "Arguments for a subprocess that must not see this repo: another folder, no PYTHONPATH, nothing of a make around it"
    hidden = ('PYTHONPATH', 'PYTHONHOME', 'VIRTUAL_ENV', 'MAKEFLAGS', 'MAKELEVEL', 'MFLAGS', 'SFR_RUNS')
    return dict(cwd=cwd, env={k: v for k, v in os.environ.items() if k not in hidden} | env,
                text=True, capture_output=True, stdin=subprocess.DEVNULL)

@pytest.fixture(autouse=True)
def losses_as_they_were():
    "What a test registers goes with it"
    from sfr_repro.losses.registry import LOSSES
    before = dict(LOSSES)
    yield
    LOSSES.clear(); LOSSES.update(before)
