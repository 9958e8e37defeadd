"""What a machine may do to a run: kill it anywhere, fill the disk, start it twice.

`SFR_KILLS=20 pytest tests/test_faults.py` kills at twenty random moments; the suite at four. Each
run is killed twice, once anywhere and once in the middle of a save, in this order and in the other.
Runs start from a fork server that has imported the package once.
"""
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import threading
import time
from pathlib import Path
import pytest
import torch
from safetensors.torch import load_file, save_file
from sfr_repro.core import folders
from sfr_repro.core.config import load_experiment
from sfr_repro.core.errors import UserError
from sfr_repro.core.folders import SESSIONS
from sfr_repro.core.records import equal_records, read_record
from sfr_repro.train.checkpoints import BEST, last_checkpoint
from sfr_repro.train.run import run
from sfr_repro.train.trainer import _Trainer

pytestmark = pytest.mark.once
CONTEXT = multiprocessing.get_context('forkserver')
KILLS = int(os.environ.get('SFR_KILLS', 4))
ENDED = {'.lock', 'inputs.json', 'model', 'record.json', 'tensorboard'}

def setting():
    return load_experiment('smoke', ('train.steps=9', 'train.eval_every=3', 'train.chunk=10'))[0]

def limit(size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))

def die_in_a_save(after, nth):
    "SIGKILL from within, some seconds after the nth save has begun; a fast disk waits half-way"
    save, saves = _Trainer._save_checkpoint, []
    def dying(*args):
        saves.append(1)
        if len(saves) == nth:
            threading.Timer(after, os.kill, (os.getpid(), signal.SIGKILL)).start()
            _Trainer._save_rng_state = lambda *args: time.sleep(60)
        return save(*args)
    _Trainer._save_checkpoint = dying

def child(out, dies, largest, largest_record):
    "One run, with a bound on the size of all files, or of the record; a mistake goes to a file"
    if dies: die_in_a_save(*dies)
    if largest: limit(largest)
    if largest_record:
        write = folders.write_record
        def full(record, path): limit(largest_record); return write(record, path)
        folders.write_record = full
    try: run(setting(), out, progress=False, minutes=0.)
    except UserError as e:
        limit(resource.RLIM_INFINITY)
        Path(out).parent.joinpath('said').write_text(str(e))
        os._exit(2)

def start(out, dies=None, largest=None, largest_record=None):
    CONTEXT.set_forkserver_preload(['sfr_repro.train.run', 'sfr_repro.train.trainer'])
    p = CONTEXT.Process(target=child, args=(str(out), dies, largest, largest_record))
    p.start()
    return p

def finish(out, **limits):
    p = start(out, **limits)
    p.join()
    return p.exitcode

def record_of(out): return read_record(next(Path(out).glob('*/record.json')))

def unmarked(out):
    return [p for p in Path(out).glob('*/checkpoint-*') if not (p/'complete').exists()]

def check_whole(out):
    "No file is half-written under its own name, in a folder of a run that was killed"
    for p in Path(out).glob('*/*.json'): json.loads(p.read_text())
    for p in Path(out).glob(f'*/{BEST}'): assert load_file(p)
    for p in Path(out).glob('*/model/model.safetensors'): assert load_file(p)
    for p in Path(out).glob('*/checkpoint-*/complete'):
        assert load_file(p.parent/'model.safetensors')
        assert load_file(p.parent/BEST)
        assert json.loads((p.parent/'trajectory.json').read_text())

@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    "The record of a run that nothing happens to"
    out = tmp_path_factory.mktemp('whole')/'runs'
    assert finish(out) == 0
    return record_of(out)

def test_kill_9_at_random_moments(whole, tmp_path):
    draw, in_a_save, counted = random.Random(0), 0, 0
    for k in range(KILLS//2):
        out = tmp_path/f'run{k}'
        # the first run dies in its second save alone, so that one session has left its seconds
        moments = ('any', 'save') if k%2 else ('save', 'any')
        for moment in moments if k else ('save',):
            before, dies, wait = unmarked(out), None, None
            if moment == 'save': dies = .02+draw.random()*.06, 1 if k%4 else 2
            else: wait = draw.random()*whole.seconds
            process = start(out, dies=dies)
            process.join(wait)
            if process.is_alive(): os.kill(process.pid, signal.SIGKILL)
            process.join()
            in_a_save += any(p not in before for p in unmarked(out))
            check_whole(out)
        found, began = list(out.glob(f'*/{SESSIONS}')), time.monotonic()
        sessions = [s['seconds'] for s in json.loads(found[0].read_text())] if found else []
        assert finish(out) == 0
        assert equal_records(record_of(out), whole), f'run {k}'
        # a run that was finished has cleared them away
        if sessions:
            counted += len(sessions)
            seconds = record_of(out).seconds-sum(sessions)
            assert 0 < seconds < time.monotonic()-began+.2, 'the time of all sessions'
        assert {p.name for p in next(out.iterdir()).iterdir()} == ENDED
        shutil.rmtree(out)
    # a run killed anywhere first may have none left to die in
    assert in_a_save >= KILLS//4, 'too few kills fell into a save'
    assert counted, 'no session was counted'
    print(f'{2*(KILLS//2)} kills, {in_a_save} of them left a checkpoint half-written')

def weights_that_end_half_way(path):
    "The kernel ends the process at the first byte above the bound"
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    limit(1_000_000)
    save_file({'weights': torch.zeros(1_000_000)}, path)

def test_a_kill_in_the_middle_of_the_weights(tmp_path):
    "Whatever name the half-written file has, nothing of it stays"
    checkpoint = tmp_path/'checkpoint-6'
    checkpoint.mkdir()
    process = CONTEXT.Process(target=weights_that_end_half_way,
                              args=(str(checkpoint/'model.safetensors'),))
    process.start(); process.join()
    assert process.exitcode == -signal.SIGXFSZ
    assert list(checkpoint.iterdir()), 'the kill left no file'
    assert last_checkpoint(tmp_path) is None
    assert not checkpoint.exists()

def test_a_full_disk_costs_nothing_that_was_whole(whole, tmp_path):
    "A real error of the kernel: files may not be above 40 MB, and the optimiser's state is"
    out = tmp_path/'runs'
    process = start(out)
    while not (marked := list(out.glob('*/checkpoint-*/complete'))):
        assert process.is_alive()
        time.sleep(.02)
    os.kill(process.pid, signal.SIGKILL); process.join()
    step = max(int(p.parent.name.split('-')[1]) for p in marked)
    assert finish(out, largest=40_000_000) == 2
    assert 'the disk is full' in (tmp_path/'said').read_text()
    assert not list(out.glob('*/record.json'))
    check_whole(out)
    assert next(out.glob(f'*/checkpoint-{step}/complete')).exists()
    assert finish(out, largest_record=1000) == 2             # and then while the record is written
    assert not list(out.glob('*/record.json')) and list(out.glob('*/checkpoint-*/complete'))
    check_whole(out)
    assert finish(out) == 0 and equal_records(record_of(out), whole)
    assert {p.name for p in next(out.iterdir()).iterdir()} == ENDED

def test_two_runs_in_one_folder(tmp_path, capfd):
    process = start(tmp_path)
    while not list(tmp_path.glob('*/inputs.json')): assert process.is_alive(); time.sleep(.02)
    path = run(setting(), tmp_path, progress=False)          # waits, and finds the other's record
    process.join()
    assert process.exitcode == 0 and read_record(path).seconds > 0
    assert 'another command is writing here' in capfd.readouterr().err
