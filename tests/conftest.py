"What the tests share. `make check-package` runs them with the data, `make check-offline` without."
import configparser
import multiprocessing
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

@pytest.fixture
def here(tmp_path, monkeypatch):
    "An empty folder, on the project's own data"
    for k, v in {'SFR_DATA': 'none', 'HF_HUB_OFFLINE': '1'}.items(): monkeypatch.setenv(k, v)
    monkeypatch.delenv('SFR_RUNS', raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path

@pytest.fixture
def command(here, capsys, monkeypatch):
    "Calls a command there, in this process: exit status, standard output and standard error"
    from sfr_repro.cli import main
    def call(*words):
        monkeypatch.setattr(sys, 'argv', ['sfr-repro', *map(str, words)])
        code = 0
        try: main()
        except SystemExit as e: code = e.code or 0
        said = capsys.readouterr()
        return code, said.out, said.err
    return call

def _member(rank, size, store, box, work):
    import torch
    import torch.distributed as dist
    dist.init_process_group('gloo', init_method=f'file://{store}', rank=rank, world_size=size)
    torch.set_num_threads(1)
    found = work(rank)
    if rank == 0: torch.save(found, box)
    dist.barrier()
    dist.destroy_process_group()

def found_by_processes(work, folder, size=2):
    "What `work(rank)`, a function of a test's module, returns in the first of several processes"
    import torch
    spawn = multiprocessing.get_context('spawn')
    store, box = str(folder/'store'), str(folder/'found.pt')
    members = [spawn.Process(target=_member, args=(r, size, store, box, work)) for r in range(size)]
    for m in members: m.start()
    for m in members: m.join()
    assert [m.exitcode for m in members] == [0]*size
    return torch.load(box, weights_only=True)
