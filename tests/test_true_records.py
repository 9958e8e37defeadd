"""Never a record that is not true: changed inputs, damaged checkpoints, signals, two at once.

`SFR_LARGE=1 pytest tests/test_true_records.py` damages 200 folders and sends 60 signals; the suite
damages 10 and sends 6.
"""
import multiprocessing
import os
import random
import shutil
import signal
import time
from pathlib import Path
import pytest
from mutate import mutate_bytes
from sfr_repro.analysis.geometry_record import record_geometry
from sfr_repro.core.config import load_experiment
from sfr_repro.core.errors import UserError
from sfr_repro.core.records import equal_records, read_record
from sfr_repro.encode.encoder import SentenceEncoder
from sfr_repro.evaluate.tasks import evaluate_model
from sfr_repro.train import trainer
from sfr_repro.train.queue import run_all
from sfr_repro.train.run import run
from stages import STAGES, draw_moment, finish, hidden, make_workplace, start

pytestmark = pytest.mark.once
LARGE = os.environ.get('SFR_LARGE') == '1'
FOLDERS, SIGNALS = (200, 60) if LARGE else (10, 6)
CHANGES = ('train.steps=9', 'train.eval_every=3', 'train.chunk=10')

def setting(*changes): return load_experiment('smoke', (*CHANGES, *changes))[0]

class Broken(BaseException): "Ends a run from within, as a kill does"

@pytest.fixture
def break_at(monkeypatch):
    "A function that runs a setting until some step, and leaves its checkpoints"
    real = trainer.Watch.record_point
    def broken(config, out, last):
        def record_point(self, step, *args, **kwargs):
            if step == last: raise Broken
            real(self, step, *args, **kwargs)
        monkeypatch.setattr(trainer.Watch, 'record_point', record_point)
        with pytest.raises(Broken): run(config, out, progress=False, minutes=0.)
        monkeypatch.setattr(trainer.Watch, 'record_point', real)
    return broken

# ---------------------------------------------------------------- inputs

def corpus(file, word):
    lines = [f'the {word} number {i} runs in the park of {i*7%13}' for i in range(60)]
    file.write_text('\n'.join(lines))

def test_another_corpus_is_told_before_during_and_after(tmp_path, break_at):
    file, out = tmp_path/'mine.txt', tmp_path/'runs'
    config = setting(f"data.corpus=['{file}']")
    corpus(file, 'dog')
    break_at(config, out, 6)
    corpus(file, 'volcano')
    with pytest.raises(UserError, match='was made with another corpus.*--again'):
        run(config, out, progress=False)
    beside = run(config, out, progress=False, again=True)
    corpus(file, 'dog')
    first = run(config, out, progress=False)
    corpus(file, 'volcano')
    with pytest.raises(UserError, match='was made with another corpus'): run(config, out)
    assert run(config, out, progress=False, again=True) == beside
    a, b = read_record(first), read_record(beside)
    assert a.id == b.id and a.inputs != b.inputs and a.metrics != b.metrics
    assert beside.parent.name == f'{first.parent.name}-{b.inputs[:6]}'

def test_a_record_that_does_not_say_what_it_is_made_from(tmp_path):
    path = run(load_experiment('smoke', ('train.steps=0',))[0], tmp_path, progress=False)
    (path.parent/'inputs.json').unlink()
    with pytest.raises(UserError, match='does not say what it was made from'):
        run(load_experiment('smoke', ('train.steps=0',))[0], tmp_path, progress=False)

@pytest.mark.parametrize('text', ['', '{}', '[]', '{"schema": 1', 'null'])
def test_a_file_that_is_no_record_is_never_done(tmp_path, text, break_at):
    config = setting()
    break_at(config, tmp_path, 6)
    folder = next(tmp_path.glob('smoke-*'))
    (folder/'record.json').write_text(text)
    with pytest.raises(UserError, match='record.json.*move it away'):
        run(config, tmp_path, progress=False)
    assert len(list(folder.glob('checkpoint-*/complete'))) > 0, 'nothing was deleted'

def small_model(folder, **changes):
    "The shipped encoder, saved, with some words of its files changed"
    SentenceEncoder.from_pretrained('sfr-mini', pooler='mean').save_pretrained(folder)
    for name, (old, new) in changes.items():
        file = next(folder.glob(f'{name}.json'))
        text = file.read_text()
        assert old in text
        file.write_text(text.replace(old, new))

@pytest.mark.parametrize('file,old,new,what', [
    ('config', '"hidden_act": "gelu"', '"hidden_act": "relu"', 'configuration'),
    ('tokenizer', '"lowercase": true', '"lowercase": false', 'tokenizer')])
def test_evaluate_and_analyse_tell_a_changed_model_folder(tmp_path, file, old, new, what):
    options = dict(source='embedded', progress=False, out=tmp_path/'runs')
    small_model(tmp_path/'m')
    path = evaluate_model(tmp_path/'m', 'sts', cache=False, **options)
    (_, folder), = record_geometry(tmp_path/'m', **options)
    small_model(tmp_path/'m', **{file: (old, new)})
    with pytest.raises(UserError, match=f'was made with another encoder {what}'):
        evaluate_model(tmp_path/'m', 'sts', cache=False, **options)
    with pytest.raises(UserError, match=f'was made with another encoder {what}'):
        record_geometry(tmp_path/'m', **options)
    beside = evaluate_model(tmp_path/'m', 'sts', cache=False, again=True, **options)
    assert beside != path and read_record(beside).id == read_record(path).id
    (_, other), = record_geometry(tmp_path/'m', again=True, **options)
    assert other.name.startswith(folder.name+'-')

# ---------------------------------------------------------------- checkpoints

def damage(folder, draw):
    "One thing wrong with a run's folder"
    files = [p for p in folder.rglob('*') if p.is_file() and p.name not in ('.lock', 'inputs.json')]
    file = draw.choice([p for p in files if p.parent.name.startswith('checkpoint-')])
    how = draw.choice(('gone', 'bit', 'cut', 'empty', 'folder gone', 'extra', 'moved', 'bytes'))
    if how == 'gone': file.unlink()
    if how == 'empty': file.write_bytes(b'')
    if how == 'bytes': file.write_bytes(mutate_bytes(file.read_bytes(), draw))
    if how == 'cut': os.truncate(file, draw.randrange(file.stat().st_size+1))
    if how == 'folder gone': shutil.rmtree(file.parent)
    if how == 'moved': file.parent.rename(folder/'checkpoint-7')
    if how == 'bit' and file.stat().st_size:
        with open(file, 'r+b') as f:
            at = draw.randrange(file.stat().st_size)
            f.seek(at)
            x = f.read(1)[0]
            f.seek(at)
            f.write(bytes([x ^ 1 << draw.randrange(8)]))
    (folder/'notes.txt').write_text("the user's own")
    if file.parent.exists(): (file.parent/'notes.txt').write_text("the user's own")
    return how, file.name

def test_damaged_checkpoints_never_change_a_record(tmp_path, break_at):
    config, draw = setting(), random.Random(0)
    whole = read_record(run(config, tmp_path/'whole', progress=False))
    break_at(config, tmp_path/'broken', 9)
    name = next((tmp_path/'broken').iterdir()).name
    assert len(list((tmp_path/'broken'/name).glob('checkpoint-*/complete'))) == 2
    for k in range(FOLDERS):
        out = tmp_path/f'{k}'
        shutil.copytree(tmp_path/'broken', out)
        done = [damage(out/name, draw) for _ in range(draw.choice((1, 1, 2)))]
        noted = len(list(out.rglob('notes.txt')))
        assert equal_records(read_record(run(config, out, progress=False)), whole), done
        assert len(list(out.rglob('notes.txt'))) == noted, 'things of the user stay'
        shutil.rmtree(out)

def test_the_seal_is_what_sees_it(tmp_path, break_at, monkeypatch):
    "The control: without the seal a changed weight gives another record"
    config = setting()
    whole = read_record(run(config, tmp_path/'whole', progress=False))
    break_at(config, tmp_path/'broken', 9)
    file, = (tmp_path/'broken').glob('*/checkpoint-6/trajectory.json')
    assert '"loss": 0.' in file.read_text()
    file.write_text(file.read_text().replace('"loss": 0.', '"loss": 1.'))
    monkeypatch.setattr('sfr_repro.train.checkpoints.checkpoint_damage', lambda *_: '')
    assert not equal_records(read_record(run(config, tmp_path/'broken', progress=False)), whole)

# ---------------------------------------------------------------- stopping

@pytest.fixture(scope='module')
def workplace(tmp_path_factory):
    "A folder in which each stage has come to its end: what it wrote, and its calls"
    folder = make_workplace(tmp_path_factory.mktemp('workplace'))
    calls = {}
    for k, words in enumerate(STAGES):
        done = finish(*words, '--out', f'whole{k}', cwd=folder, SFR_CACHE=str(folder/f'kept{k}'))
        assert done.wait() == 0, done.err
        calls[words] = done.calls
    return folder, calls

def written(folder):
    "The names of all files of a command but those that a machine names"
    return {p.relative_to(folder).as_posix() for p in Path(folder).rglob('*')
            if p.is_file() and 'tfevents' not in p.name}

def check_stopped(command, words, number):
    "A command that got a signal says so, in one sentence, or was past its end"
    code = command.wait(600)
    if number == signal.SIGKILL:
        assert code in (0, -9), command.err
        return code
    assert code in (0, 128+number), (words, code, command.err)
    assert 'Traceback' not in command.err, (words, command.err)
    if code: assert 'goes on from there: sfr-repro '+words[0] in command.err, command.err
    return code

KINDS = (signal.SIGINT, signal.SIGTERM, signal.SIGKILL)

def test_signals_at_any_moment(workplace):
    folder, calls = workplace
    draw, codes = random.Random(0), []
    for k in range(SIGNALS):
        n = k % len(STAGES)
        words = STAGES[n]
        moment = draw_moment(calls[words], draw, KINDS)
        how = dict(cwd=folder, SFR_CACHE=str(folder/f'cache{k}'))
        stopped = start(*words, '--out', f'out{k}', moment=moment, **how)
        codes.append(check_stopped(stopped, words, moment[2]))
        assert finish(*words, '--out', f'out{k}', **how).wait() == 0, moment
        assert written(folder/f'out{k}') == written(folder/f'whole{n}'), moment
        for path in (folder/f'out{k}').glob('*/record.json'):
            there = folder/f'whole{n}'/path.parent.name/'record.json'
            assert equal_records(read_record(path), read_record(there)), (moment, path)
        assert not hidden(folder/f'out{k}', folder/f'cache{k}'), moment
        print(f'{k+1}: {" ".join(words[:2])}, {moment}: {codes[-1]}', flush=True)
        shutil.rmtree(folder/f'out{k}')
        shutil.rmtree(folder/f'cache{k}', ignore_errors=True)
    assert all(codes), 'each moment lies before the end'
    if not LARGE: return
    assert {130, 143, -9} == set(codes)

def test_a_hidden_file_that_is_left_is_seen(tmp_path):
    "The control of what the test above looks for"
    (tmp_path/'a/b').mkdir(parents=True)
    (tmp_path/'a/b/.record.json.abcdefgh.sfr-tmp').write_text('half')
    (tmp_path/'a/.notes').write_text("the user's own")
    assert len(hidden(tmp_path)) == 1

def wait_for(found, seconds=60):
    end = time.monotonic()+seconds
    while not found() and time.monotonic() < end: time.sleep(.1)
    return found()

def many(out): run_all([setting(f'seeds=[{s}]', 'train.steps=100000') for s in range(2)], out,
                       processes=2)

@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGKILL])
def test_workers_end_with_the_process_that_started_them(tmp_path, number):
    parent = multiprocessing.get_context('spawn').Process(target=many, args=(str(tmp_path),))
    parent.start()
    assert wait_for(lambda: len(list(tmp_path.glob('*/tensorboard'))) == 2, 300)
    workers = Path(f'/proc/{parent.pid}/task/{parent.pid}/children').read_text().split()
    assert len(workers) >= 2
    os.kill(parent.pid, number)
    parent.join()
    assert wait_for(lambda: not any(map(alive, workers)))

def alive(pid):
    try: return Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[0] != 'Z'
    except OSError: return False

# ---------------------------------------------------------------- sharing

@pytest.mark.parametrize('words', STAGES, ids=lambda words: ' '.join(words[:2]))
def test_two_equal_commands_at_once(workplace, tmp_path, words):
    folder, _ = workplace
    how = dict(cwd=folder, SFR_CACHE=str(tmp_path/'cache'))
    both = [start(*words, '--out', tmp_path/'out', **how) for _ in range(2)]
    assert [c.wait(900) for c in both] == [0, 0], [c.err for c in both]
    n = STAGES.index(words)
    assert written(tmp_path/'out') == written(folder/f'whole{n}')
    for record in tmp_path.glob('out/*/record.json'):
        there = folder/f'whole{n}'/record.parent.name/'record.json'
        assert equal_records(read_record(record), read_record(there))
    assert not hidden(tmp_path)
