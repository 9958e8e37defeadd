"""Never a record that is not true: changed inputs, damaged files, signals, full disks, two at once.

`SFR_LARGE=1 pytest tests/test_true_records.py` damages 200 folders, sends 60 signals, flips bits in
1,000 files of the cache, and fills or takes away 60 folders; the suite damages 10, sends 6, flips
bits in 100 files and fills or takes away 6 folders.
"""
import json
import multiprocessing
import os
import random
import shutil
import signal
import threading
import time
from contextlib import nullcontext
from pathlib import Path
import numpy as np
import pytest
from conftest import ROOT
from mutate import mutate_bytes
from sfr_repro.analysis.geometry_record import record_geometry
from sfr_repro.core.config import load_experiment
from sfr_repro.core.errors import UserError
from sfr_repro.core.records import equal_records, read_record
from sfr_repro.encode import cache
from sfr_repro.encode.encoder import SentenceEncoder
from sfr_repro.encode.teachers import teacher_vectors
from sfr_repro.evaluate.tasks import evaluate_model, vectors_of
from sfr_repro.pretrain.config import pretrain_config
from sfr_repro.pretrain.recipe import pretrain
from sfr_repro.train import trainer
from sfr_repro.train.queue import run_all
from sfr_repro.train.run import run
from stages import STAGES, draw_moment, finish, hidden, make_workplace, start

pytestmark = pytest.mark.once
LARGE = os.environ.get('SFR_LARGE') == '1'
FOLDERS, SIGNALS, FLIPS, FAULTS = (200, 60, 1000, 60) if LARGE else (10, 6, 100, 6)
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

def test_checkpoints_that_do_not_say_what_they_are_made_from(tmp_path, break_at):
    break_at(setting(), tmp_path, 6)
    next(tmp_path.glob('*/inputs.json')).unlink()
    with pytest.raises(UserError, match='does not say what it was made from'):
        run(setting(), tmp_path, progress=False)

def test_another_metric_code_is_told(tmp_path, monkeypatch):
    config = load_experiment('smoke', ('train.steps=0',))[0]
    run(config, tmp_path, progress=False)
    monkeypatch.setattr('sfr_repro.core.provenance.METRICS', 2)
    with pytest.raises(UserError, match='which metric code it was made with'):
        run(config, tmp_path, progress=False)

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
    ours = [p for p in files if p.parent.name.startswith('checkpoint-') or p.parent.name == 'text']
    file = draw.choice(ours)
    how = draw.choice(('gone', 'bit', 'cut', 'empty', 'folder gone', 'extra', 'moved', 'bytes'))
    if how == 'gone': file.unlink()
    if how == 'empty': file.write_bytes(b'')
    if how == 'bytes': file.write_bytes(mutate_bytes(file.read_bytes(), draw))
    if how == 'cut': os.truncate(file, draw.randrange(file.stat().st_size+1))
    if how == 'folder gone': shutil.rmtree(file.parent)
    if how == 'moved': file.parent.rename(folder/f'checkpoint-{draw.randint(5, 99)}')
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

def check_damage(folder, out, draw, again, whole):
    "The files of a broken run, damaged in some way, lead to the record of the unbroken one"
    shutil.copytree(folder, out)
    name = next(out.iterdir())
    done = [damage(name, draw) for _ in range(draw.choice((1, 1, 2)))]
    noted = len(list(out.rglob('notes.txt')))
    assert equal_records(read_record(again(out)), whole), done
    assert len(list(out.rglob('notes.txt'))) == noted, 'things of the user stay'
    shutil.rmtree(out)

def test_damaged_checkpoints_never_change_a_record(tmp_path, break_at):
    config, draw = setting(), random.Random(0)
    whole = read_record(run(config, tmp_path/'whole', progress=False))
    break_at(config, tmp_path/'broken', 9)
    name = next((tmp_path/'broken').iterdir()).name
    assert len(list((tmp_path/'broken'/name).glob('checkpoint-*/complete'))) == 2
    def again(out): return run(config, out, progress=False)
    for k in range(FOLDERS//2): check_damage(tmp_path/'broken', tmp_path/f'{k}', draw, again, whole)

def test_damaged_files_of_a_pretraining_never_change_its_record(tmp_path):
    config, draw = pretrain_config('smoke', schedule=((0, 0.), (2, 1.), (6, 0.))), random.Random(1)
    whole = read_record(pretrain(config, tmp_path/'whole', progress=False))
    for stop in (2, 4): pretrain(config, tmp_path/'broken', progress=False, stop_at=stop)
    name = next((tmp_path/'broken').iterdir()).name
    assert len(list((tmp_path/'broken'/name).glob('checkpoint-*/complete'))) == 2
    def again(out): return pretrain(config, out, progress=False)
    for k in range(FOLDERS//2): check_damage(tmp_path/'broken', tmp_path/f'{k}', draw, again, whole)

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

# ---------------------------------------------------------------- caches

def flipped(raw, draw):
    "Some bits turned"
    raw = bytearray(raw)
    for _ in range(draw.choice((1, 1, 2, 8))):
        raw[draw.randrange(len(raw))] ^= 1 << draw.randrange(8)
    return bytes(raw)

TEXTS = [f'the cat number {i} sleeps' for i in range(12)]

@pytest.fixture
def kept(workplace, tmp_path, monkeypatch):
    "Functions that ask the cache for vectors, each with its one file, and how often they compute"
    monkeypatch.setenv('SFR_CACHE', str(tmp_path/'cache'))
    encoder = SentenceEncoder.from_pretrained(workplace[0]/'tiny')
    real, computed = SentenceEncoder.encode, []
    def encode(self, texts, **how):
        computed.append(len(texts))
        return real(self, texts, **how)
    monkeypatch.setattr(SentenceEncoder, 'encode', encode)
    def teacher(): return teacher_vectors(encoder, TEXTS, progress=False).numpy()
    def evaluation(): return vectors_of(encoder, TEXTS)
    asked = {}
    for f in (teacher, evaluation):
        before = set(tmp_path.rglob('*.vectors'))
        f()
        asked[f], = set(tmp_path.rglob('*.vectors'))-before
    return asked, computed

def test_any_flipped_bit_of_the_cache_is_a_miss(kept):
    asked, computed = kept
    draw = random.Random(0)
    for f, file in asked.items():
        whole, want = file.read_bytes(), f()
        for k in range(FLIPS//2):
            wrong = flipped(whole, draw) if k%2 else mutate_bytes(whole, draw)
            file.write_bytes(wrong)
            computed.clear()
            assert np.array_equal(f(), want) and bool(computed) == (wrong != whole)
            assert file.read_bytes() == whole, 'mended'

def test_the_checksum_is_what_sees_a_flipped_bit(kept, monkeypatch):
    "The control: a file whose checksum is made anew gives other vectors"
    asked, _ = kept
    evaluation = next(f for f in asked if f.__name__ == 'evaluation')
    file, want = asked[evaluation], evaluation()
    raw = bytearray(file.read_bytes())
    raw[-600] ^= 64
    file.write_bytes(cache._checksum(file.parent.name, bytes(raw[32:]))+bytes(raw[32:]))
    try: found = evaluation()
    except Exception: found = None
    assert found is None or not np.array_equal(found, want)

LEFT = ('.k.vectors.abcdefgh.sfr-tmp', 'vectors/other/.k.vectors.abcd_123.sfr-tmp')
MINE = ('.mine.sfr-tmp', 'vectors/other/notes.vectors.abcdefgh.sfr-tmp', 'vectors/other/.notes')

@pytest.mark.parametrize('words', [STAGES[0], STAGES[2]], ids=lambda words: words[0])
def test_what_killed_writers_left_in_the_cache_goes_with_the_next_start(workplace, tmp_path, words):
    for name in (*LEFT, *MINE):
        (tmp_path/name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path/name).write_text('half')
    done = finish(*words, '--out', tmp_path/'out', cwd=workplace[0], SFR_CACHE=str(tmp_path))
    assert done.wait() == 0, done.err
    assert [(tmp_path/name).exists() for name in (*LEFT, *MINE)] == [False]*2+[True]*3

@pytest.fixture
def slow_writer(tmp_path, monkeypatch):
    "A thread that is in the middle of a file of the cache, and what lets it go on"
    monkeypatch.setenv('SFR_CACHE', str(tmp_path))
    begun, go_on, real = threading.Event(), threading.Event(), os.fsync
    def fsync(number):
        begun.set()
        go_on.wait(60)
        real(number)
    monkeypatch.setattr(os, 'fsync', fsync)
    def write():
        try: cache.write_vectors(tmp_path/'k.vectors', 'k', vectors=np.ones(3))
        except FileNotFoundError: pass
    thread = threading.Thread(target=write)
    def start():
        thread.start()
        assert begun.wait(60) and len(hidden(tmp_path)) == 1
    return start, go_on, thread

def test_a_file_that_is_still_being_written_is_waited_for(tmp_path, slow_writer):
    start, go_on, writer = slow_writer
    start()
    cleaner = threading.Thread(target=cache.clear_cache)
    cleaner.start()
    cleaner.join(.5)
    assert cleaner.is_alive() and len(hidden(tmp_path)) == 1
    go_on.set()
    for t in (writer, cleaner): t.join(60)
    assert cache.read_vectors(tmp_path/'k.vectors', 'k') and not hidden(tmp_path)

def test_the_lock_is_what_keeps_it(tmp_path, slow_writer, monkeypatch):
    "The control: without the lock the file that is being written is lost"
    monkeypatch.setattr(cache, 'locked_folder', lambda *args, **how: nullcontext())
    start, go_on, writer = slow_writer
    start()
    cache.clear_cache()
    go_on.set()
    writer.join(60)
    assert cache.read_vectors(tmp_path/'k.vectors', 'k') is None

# ---------------------------------------------------------------- disks

def check_refused(command, words):
    "One sentence, exit status 2, or the end of its work"
    code = command.wait(600)
    assert code in (0, 2), (words, code, command.err)
    if not code: return 0
    said = [o for o in command.err.splitlines() if o.startswith('sfr-repro: ')]
    assert len(said) == 1 and 'Traceback' not in command.err, (words, command.err)
    assert any(w in said[0] for w in ('the disk is full', 'cannot be', 'has vanished')), said
    return 2

def check_after(folder, n, **how):
    "The same command goes on, and ends as if nothing had been"
    out, words = how['cwd']/how.pop('name'), STAGES[n]
    assert not hidden(out, how['SFR_CACHE'])
    for path in out.glob('*/*.json'): json.loads(path.read_text())
    again = finish(*words, '--out', out, **how)
    if 'does not say what it was made from' in again.err: # only a part of it was made again
        shutil.rmtree(out)
        again = finish(*words, '--out', out, **how)
    assert again.wait() == 0, again.err
    assert written(out) == written(folder/f'whole{n}')
    for path in out.glob('*/record.json'):
        there = folder/f'whole{n}'/path.parent.name/'record.json'
        assert equal_records(read_record(path), read_record(there)), path
    assert not hidden(out, how['SFR_CACHE'])
    shutil.rmtree(out)

def test_a_full_disk_in_every_command(workplace):
    "The kernel's own error: a file may not grow above a size that is drawn"
    folder, draw, codes = workplace[0], random.Random(0), []
    for k in range(FAULTS):
        n, name = k % len(STAGES), f'full{k}'
        how = dict(cwd=folder, SFR_CACHE=str(folder/f'full-cache{k}'))
        largest = int(10**draw.uniform(2, 6))
        command = start(*STAGES[n], '--out', name, largest=largest, **how)
        codes.append(check_refused(command, (STAGES[n], largest)))
        check_after(folder, n, name=name, **how)
        print(f'{k+1}: {" ".join(STAGES[n][:2])}, {largest} bytes: {codes[-1]}', flush=True)
    assert 2 in codes

def test_a_folder_that_vanishes_in_every_command(workplace):
    folder, calls = workplace
    draw, codes = random.Random(0), []
    for k in range(FAULTS):
        n, name = k % len(STAGES), f'gone{k}'
        how = dict(cwd=folder, SFR_CACHE=str(folder/f'gone-cache{k}'))
        moment = draw_moment(calls[STAGES[n]], draw, [str(folder/name)])
        command = start(*STAGES[n], '--out', name, moment=moment, **how)
        codes.append(check_refused(command, (STAGES[n], moment)))
        check_after(folder, n, name=name, **how)
        print(f'{k+1}: {" ".join(STAGES[n][:2])}, {moment[:2]}: {codes[-1]}', flush=True)

@pytest.mark.parametrize('words', STAGES, ids=lambda words: ' '.join(words[:2]))
def test_a_folder_that_is_read_only(workplace, tmp_path, words):
    (tmp_path/'out').mkdir()
    (tmp_path/'out').chmod(0o555)
    how = dict(cwd=workplace[0], SFR_CACHE=str(tmp_path/'cache'))
    out = tmp_path/'out'/('below' if words[0] == 'run' else '')
    command = finish(*words, '--out', out, **how)
    assert check_refused(command, words) == 2 and 'cannot be written' in command.err
    assert not list((tmp_path/'out').iterdir())

RECORD_WORDS = {'add': ('records', 'add', 'fine.json'),
                'supersede': ('records', 'supersede', 'kept/runs/{}', '--why', 'a bug')}

@pytest.fixture
def kept_folder(tmp_path):
    "A committed record, kept once, and the same as a file of its own"
    record = next((ROOT/'nbs/records/runs').glob('infonce-*.json'))
    (tmp_path/'kept/runs').mkdir(parents=True)
    shutil.copy(record, tmp_path/'fine.json')
    def words(name):
        if name == 'supersede': shutil.copy(record, tmp_path/'kept/runs'/record.name)
        return [w.format(record.name) for w in RECORD_WORDS[name]]
    return tmp_path, words

@pytest.mark.parametrize('name', RECORD_WORDS)
def test_disks_of_kept_records(kept_folder, name):
    folder, words = kept_folder
    words, how = words(name), dict(cwd=folder, records=folder/'kept')
    before = written(folder/'kept')
    assert check_refused(start(*words, largest=200, **how), words) == 2
    assert written(folder/'kept') - {'runs/.lock'} == before and not hidden(folder)
    (folder/'kept').chmod(0o555), (folder/'kept/runs').chmod(0o555)
    assert check_refused(start(*words, **how), words) == 2
    (folder/'kept').chmod(0o755), (folder/'kept/runs').chmod(0o755)
    (folder/'kept/runs/.x.json.abcdefgh.sfr-tmp').write_text('half')
    both = [start(*words, **how) for _ in range(2)]
    assert [c.wait(300) for c in both] == [0, 0], [c.err for c in both]
    assert not hidden(folder)
    runs, moved = (len(list((folder/'kept'/n).glob('*.json'))) for n in ('runs', 'superseded'))
    assert (runs, moved) == ((1, 0) if name == 'add' else (0, 1))
    if moved: assert len((folder/'kept/superseded.csv').read_text().splitlines()) == 2

# ---------------------------------------------------------------- settings, before the first step

LAST = {'a constant': ('"loss.tau" = [0.1, -1.0]', 'tau is -1.0'),
        'a corpus': ('"data.corpus" = [["mini"], ["absent.txt"]]',
                     "names 'absent.txt': there is no such file"),
        'a length': ('"encoder.max_length" = [16, 1000]', 'reads at most 128 word pieces'),
        'a batch': ('"train.batch" = [8, 100000]', 'a batch cannot be larger'),
        'no dropout': ('"encoder.dropout" = [0.2, 0.0]', 'the encoder has no dropout'),
        'an encoder': ('"encoder.name" = ["sfr-mini", "./nowhere"]', 'no folder with a model'),
        'a pooler': ('"encoder.pooler" = ["cls", "last"]', '[encoder] pooler is'),
        'a task': ('"evaluate.tasks" = [["dev"], ["transfer"]]', 'transfer cannot be evaluated'),
        'a rendering': ('"evaluate.rendering" = ["raw", "senteval"]', "has 'raw' only"),
        'a warm-up': ('"train.warmup" = [1, 1000]', 'at most the steps of the training'),
        'a loss': ('"loss.name" = ["mhe", "softcse_weight"]', 'from a teacher'),
        'a teacher': ('[sweep.grid]\n"loss.name" = ["softcse_weight"]\n"teacher.name" = ["tiny", '
                      '"./nowhere"]', 'no folder with a model')}

@pytest.mark.parametrize('what', LAST)
def test_a_sweep_with_a_wrong_last_setting_trains_nothing(workplace, tmp_path, what):
    folder, (swept, said) = workplace[0], LAST[what]
    file = tmp_path/'sweep.toml'
    file.write_text(f'preset = "smoke"\nseeds = [0, 1]\n[train]\nepochs = 1.0\n[sweep]\n{swept}\n')
    for check in ((), ('--check',)) if what in ('a constant', 'a corpus') else ((),):
        done = finish('run', file, '--out', tmp_path/'out', *check, cwd=folder)
        assert check_refusal(done, said) == 2
        assert not (tmp_path/'out').exists(), 'nothing was begun'

def check_refusal(command, said):
    assert said in command.err and 'Traceback' not in command.err, command.err
    assert len(command.err.strip().splitlines()) == 1, command.err
    return command.wait()

def test_a_sweep_that_is_right_is_counted(workplace, tmp_path):
    file = tmp_path/'sweep.toml'
    file.write_text('preset = "smoke"\nseeds = [0, 1, 2]\n[sweep]\n"loss.tau" = [0.1, 0.3]\n')
    done = finish('run', file, '--check', '--out', tmp_path/'out', cwd=workplace[0])
    assert done.wait() == 0 and done.out.strip() == '3 settings x 3 seeds, valid', done.err
    assert not (tmp_path/'out').exists()

# ---------------------------------------------------------------- workers

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
