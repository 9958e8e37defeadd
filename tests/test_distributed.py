"""Several processes share a batch: loss and gradient of the whole, for every loss in every form.

Real processes, gloo on CPUs, alone and through the trainer. They come from a fork server that has
imported the package once, so that four start in a moment.
"""
import multiprocessing
import os
import pickle
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
import pytest
import torch
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel as DDP
from transformers import BertConfig, BertModel
from sfr_repro.core.checks import relative_error
from sfr_repro.core.config import TrainConfig, load_experiment
from sfr_repro.core.errors import UserError
from sfr_repro.core.notation import unit_rows
from sfr_repro.core.records import equal_records, read_record, write_whole
from sfr_repro.encode.packed import can_pack
from sfr_repro.encode.teachers import frozen_teacher, self_teacher
from sfr_repro.losses.registry import LOSSES, make_loss
from sfr_repro.losses.tiled import TiledForm
from sfr_repro.train.distributed import Processes, gather_views, join_processes
from sfr_repro.train.run import complete_setting, run
from sfr_repro.train.trainer import Watch, _Trainer, training_arguments
from sfr_repro.train.views import TwoViews, cached_backward

B, T, WORDS, D = 12, 5, 50, 8

class Small:
    "In place of an encoder: words to vectors, with words of its own for the second view"
    device = torch.device('cpu')
    def __init__(self, dropout=0.):
        torch.manual_seed(0)
        self.model = nn.ModuleDict(dict(first=nn.Embedding(WORDS, 16),
                                        second=nn.Embedding(WORDS, 16), top=nn.Linear(16, D),
                                        drop=nn.Dropout(dropout))).double()
        self.model.config = SimpleNamespace(model_type='small')        # none that the trainer packs
        with torch.no_grad(): self.model.second.weight.mul_(.3).add_(self.model.first.weight)
    def forward(self, ids, mask):
        a, b = ids.chunk(2)
        x = torch.cat([self.model.first(a), self.model.second(b)])*mask[..., None]
        return self.model.top(self.model.drop(x.sum(1)/mask.sum(1, keepdim=True)))

class Packed:
    "A small BERT that the trainer packs; views are alike, for it drops nothing"
    device, pooler = torch.device('cpu'), 'mean'
    def __init__(self):
        torch.manual_seed(0)
        shape = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
                     intermediate_size=32, hidden_dropout_prob=0., attention_probs_dropout_prob=0.)
        self.model = BertModel(BertConfig(vocab_size=WORDS, max_position_embeddings=T, **shape),
                               add_pooling_layer=False).double()
    def skip(self): return 0

@dataclass(frozen=True)
class Uneven(Processes):
    counts: tuple = ()
    def gather(self, z): return gather_views(z, self.counts)
    # each has its slice of 0, 1, 2, ...
    def rows(self, rows): return list(range(sum(self.counts)))

class Plain(Processes):
    "The control: gathered as SimCSE does it, others as numbers and the own slice with its graph"
    def gather(self, z):
        every = gather_views(z.detach()).view(2, -1, D)
        n = len(z)//2
        return torch.cat([every[:, :self.rank*n], z.view(2, n, D), every[:, (self.rank+1)*n:]],
                         1).flatten(0, 1)

def batch(n):
    g = torch.Generator().manual_seed(1)
    ids, lengths = (torch.randint(WORDS, (n, T), generator=g),
                    torch.randint(2, T+1, (n,), generator=g))
    mask = (torch.arange(T) < lengths[:, None]).long()
    return {'input_ids': ids*mask, 'attention_mask': mask, 'rows': list(range(n))}

def part(whole, a, b): return {k: x[a:b] for k, x in whole.items()}

def measured(two, step):
    "Loss and all gradients after one step"
    two.zero_grad()
    loss = step()
    return torch.cat([loss.detach().reshape(1), *(p.grad.flatten() for p in two.parameters())])

def tiled(name):
    "The loss in tiles that do not divide the batch, or None where it has no such form"
    try: loss = make_loss(name, tile=5)
    except UserError: return None
    return replace(loss, strips=replace(loss.strips, small=0))

def count_tiled():
    "A list that grows with each value computed in tiles"
    value, calls = TiledForm.value, []
    def counted(*args, **given): calls.append(1); return value(*args, **given)
    TiledForm.value = counted
    return calls

def compare(here, counts, controls):
    "Every loss, plain, tiled and in chunks, against one process; relative errors by name"
    n, start = sum(counts), sum(counts[:here.rank])
    whole = batch(n); own = part(whole, start, start+counts[here.rank])
    even, kind = len(set(counts)) == 1, 'empty ' if 0 in counts else 'uneven '
    together = here if even else Uneven(here.rank, here.size, counts)
    vectors = unit_rows(torch.randn(n, 6, dtype=torch.float64,
                                    generator=torch.Generator().manual_seed(2)))
    errors = {}
    for name in LOSSES:
        teachers = ([{'teacher': frozen_teacher(vectors)}, {'online': self_teacher}]
                    if make_loss(name).needs else [{}])
        for form, loss in (('plain', make_loss(name)), ('tiled', tiled(name))):
            if loss is None: continue
            for i, more in enumerate(teachers):
                batches = [x if 'teacher' in more else without_rows(x) for x in (whole, own)]
                one = TwoViews(Small(), nn.Identity(), make_loss(name), **more).train()
                want = measured(one, partial(whole_step, one, batches[0]))
                got = partial(shared_step, loss, batches[1], more)
                key = f'{name} {form} {"" if even else kind}{i}'
                errors[key] = relative_error(got(together), want)
                errors[key+' in chunks'] = relative_error(got(together, chunk=2), want)
                if controls and form == 'plain':
                    plain = got(Plain(here.rank, here.size))[1:]*here.size
                    errors[key+' control'] = relative_error(plain, want[1:])
    return errors

def without_rows(batch): return {k: v for k, v in batch.items() if k != 'rows'}

def whole_step(module, batch):
    "Loss and gradient of a batch at once"
    loss = module(**batch)['loss']
    loss.backward()
    return loss

def shared_step(loss, own, more, processes, chunk=None):
    "Loss and gradients of one process's part, at once or in chunks"
    two = TwoViews(Small(), nn.Identity(), loss, processes=processes, **more).train()
    ddp = DDP(two)
    if chunk: return measured(two, partial(cached_backward, two, own, chunk, wrapped=ddp))
    return measured(two, partial(whole_step, ddp, own))

def compare_packed(here, counts):
    "Through the row of real tokens of a BERT, at once and in chunks: relative errors by name"
    start, whole = sum(counts[:here.rank]), batch(sum(counts))
    own, errors = part(whole, start, start+counts[here.rank]), {}
    together = here if len(set(counts)) == 1 else Uneven(here.rank, here.size, counts)
    for x in (whole, own): x.pop('rows')
    for name in ('infonce', 'met'):
        two, one = (TwoViews(Packed(), nn.Identity(), make_loss(name), processes=p).train()
                    for p in (together, None))
        assert can_pack(two.encoder)
        ddp, want = DDP(two), measured(one, partial(whole_step, one, whole))
        assert want[1:].norm() > 0
        steps = {'at once': (two, partial(whole_step, ddp, own)),
                 'in chunks': (two, partial(cached_backward, two, own, 2, wrapped=ddp)),
                 'control': (one, partial(whole_step, one, own))}
        for how, (module, step) in steps.items():
            errors[f'{name} {how}'] = relative_error(measured(module, step), want)
    return errors

def count_reductions(here):
    "All-reduces of gradients in one step; the control is in chunks without `no_sync`"
    found, own = {}, part(batch(B), here.rank*B//here.size, (here.rank+1)*B//here.size)
    own.pop('rows')
    for name in ('at once', 'in chunks', 'control'):
        two = TwoViews(Small(), nn.Identity(), make_loss('infonce'), processes=here).train()
        ddp, calls = DDP(two), []
        def counted(calls, bucket):
            calls.append(1)
            return allreduce_hook(None, bucket)
        ddp.register_comm_hook(calls, counted)
        if name == 'at once': ddp(**own)['loss'].backward()
        else:
            wrapped = ddp if name == 'in chunks' else partial(ddp)     # a plain call has no no_sync
            cached_backward(two, own, 1, wrapped=wrapped)
        found[name] = len(calls)
    return found

def views_of_one_sentence(here, step, seeded):
    "A batch that is one sentence over and over: what each process makes of its part"
    two = TwoViews(Small(dropout=.5), nn.Identity(), make_loss('infonce'), processes=here).train()
    torch.manual_seed(0)
    watch = Watch(two, dict, 1, Path('.'), processes=here)
    watch.trajectory = [{'step': 0, 'metrics': {}}]
    if seeded:
        watch.on_train_begin(SimpleNamespace(seed=0), SimpleNamespace(global_step=step), None)
    with torch.no_grad():
        z = here.gather(two.represent(torch.ones(3, T, dtype=torch.int64),
                                      torch.ones(3, T, dtype=torch.int64)))
    return list(z.view(2, here.size, 3, D).transpose(0, 1).flatten(1))

def order(folder, processes, epochs=2, n=37):
    "Sentences of each batch of this process, as the trainer's loader gives them"
    items = [{'row': i} for i in range(n)]
    arguments = training_arguments(TrainConfig(batch=8, epochs=1., precision='fp32'), folder, 3,
                                   processes=processes)
    trainer = _Trainer(nn.Linear(1, 1), arguments, train_dataset=items,
                       data_collator=lambda x: {'rows': [i['row'] for i in x]})
    loader = trainer.get_train_dataloader()
    found = []
    for e in range(epochs):
        loader.set_epoch(e)
        found.append([b['rows'] for b in loader])
    return found

def refusals(here, folder):
    "What each process says of a run that cannot start, of its data and of its folder"
    def said(*changes, out):
        with pytest.raises(UserError) as e:
            run(load_experiment('smoke', changes)[0], out, progress=False)
        every = [None]*here.size
        torch.distributed.all_gather_object(every, str(e.value))
        return every
    found = [said("data.corpus=['nowhere']", out=f'{folder}/nowhere'),
             said('train.batch=30' if here.size == 4 else 'train.batch=15', out=f'{folder}/batch')]
    config = complete_setting(load_experiment('smoke')[0])[0]
    used = Path(folder)/'used'/config.run_name
    if here.first: write_whole(used/'inputs.json', b'{"corpus": "0"}')
    here.wait()
    return [*found, said(out=f'{folder}/used')]

def set_environment(rank, size, port):
    "As a launcher does"
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(size),
                      MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port), HF_HUB_OFFLINE='1')

def work(rank, size, port, folder):
    "What each process does; the first writes what was found"
    set_environment(rank, size, port)
    here = join_processes()
    uneven, calls = tuple(map(len, torch.arange(B-1).tensor_split(size))), count_tiled()
    found = {'even': compare(here, (B//size,)*size, True), 'uneven': compare(here, uneven, False),
             'empty': compare(here, (B,)+(0,)*(size-1), False), 'in tiles': len(calls),
             'packed': [compare_packed(here, c) for c in ((B//size,)*size, uneven)],
             'reductions': count_reductions(here), 'views': [
                 views_of_one_sentence(here, s, seeded)
                 for s, seeded in ((0, True), (4, True), (0, False))]}
    mine = order(folder, here)
    found['order'] = [list(map(here.rows, epoch)) for epoch in mine]
    found['refusals'] = refusals(here, folder)
    assert here.tell(rank) == 0
    here.wait()
    if here.first: Path(folder, 'found.pickle').write_bytes(pickle.dumps(found))

def start(target, size, *args):
    "So many processes that call `target(rank, size, port, *args)`"
    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload(['sfr_repro.train.run', 'sfr_repro.train.trainer'])
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    processes = [context.Process(target=target, args=(r, size, port, *args)) for r in range(size)]
    for p in processes: p.start()
    return processes

@pytest.fixture(scope='module', params=[2, 4])
def found(request, tmp_path_factory):
    "What `size` processes found together"
    size, folder = request.param, tmp_path_factory.mktemp(f'processes{request.param}')
    processes = start(work, size, str(folder))
    for p in processes: p.join(240)
    assert [p.exitcode for p in processes] == [0]*size
    return size, pickle.loads((folder/'found.pickle').read_bytes())

def test_loss_and_gradient_are_those_of_one_process(found):
    size, seen = found
    for kind in ('even', 'uneven', 'empty'):
        wrong = {k: e for k, e in seen[kind].items() if not k.endswith('control') and not e < 1e-9}
        assert not wrong, wrong
        assert {k.split()[0] for k in seen[kind]} == set(LOSSES)
        assert {k.split()[0] for k in seen[kind]
                if ' tiled ' in k} == {n for n in LOSSES if tiled(n)} > {'infonce', 'met'}
    assert seen['in tiles'] == sum(' tiled ' in k for kind in ('even', 'uneven', 'empty')
                                   for k in seen[kind]), 'a small batch takes the plain form'

def test_a_plain_gather_has_one_wth_of_the_gradient(found):
    size, seen = found
    controls = {k: e for k, e in seen['even'].items() if k.endswith('control')}
    assert {k.split()[0] for k in controls} == set(LOSSES)
    assert max(controls.values()) < 1e-9, 'times the number of processes it is the gradient'

def test_a_packed_bert_has_the_gradient_of_one_process(found):
    size, seen = found
    for errors in seen['packed']:
        assert len(errors) == 6
        assert all((e > .1) if k.endswith('control') else (e < 1e-9)
                   for k, e in errors.items()), errors

def test_one_all_reduce_a_step(found):
    size, seen = found
    assert seen['reductions'] == {'at once': 1, 'in chunks': 1, 'control': B//size}

def test_dropout_differs_between_processes_and_after_resuming(found):
    size, seen = found
    start, resumed, unseeded = seen['views']
    # the first process keeps its stream at the start
    everything = [*start, *resumed[1:]]
    assert all(not torch.equal(a, b) for i, a in enumerate(everything) for b in everything[:i])
    assert all(torch.equal(unseeded[0], x)
               for x in unseeded), 'without seeds of their own all would have one mask'

def test_sampling_neither_repeats_nor_loses_a_sentence(found, tmp_path):
    size, seen = found
    alone = order(tmp_path, None)
    assert seen['order'] == alone, 'the batches of one process, in its order'
    assert alone[0] != alone[1]
    for epoch in alone:
        assert [len(b) for b in epoch] == [8]*4 and len({i for b in epoch for i in b}) == 32

def test_each_process_is_told_why_a_run_cannot_start(found):
    size, seen = found
    nowhere, shared, used = seen['refusals']
    for every, words in ((nowhere, "corpus is 'nowhere'"),
                         (shared, f'{size} processes share it, so it must be a multiple of {size}'),
                         (used, 'does not say which')):
        assert len(every) == size and set(every) == {every[0]} and words in every[0]

def shared_run(rank, size, port, out):
    set_environment(rank, size, port)
    run(load_experiment('smoke', ('train.steps=4', 'train.eval_every=2'))[0], out, progress=False,
        minutes=0.)

def record_of(size, out, kill=False):
    "Of a run by so many processes; or they are killed after the first checkpoint"
    processes = start(shared_run, size, str(out))
    while kill and not list(out.glob('*/checkpoint-*/complete')):
        assert all(p.is_alive() for p in processes)
        time.sleep(.02)
    for p in processes:
        if kill: p.kill()
        p.join(240)
    assert [p.exitcode for p in processes] == [-signal.SIGKILL if kill else 0]*size
    records = list(out.glob('*/record.json'))
    return read_record(records[0]) if records else None

@pytest.mark.once
def test_two_processes_that_are_killed_end_as_if_they_had_not_been(tmp_path):
    "With dropout; the control is begun by one process, so its dropout was another"
    whole = record_of(2, tmp_path/'whole')
    assert record_of(2, tmp_path/'two', kill=True) is None
    assert equal_records(record_of(2, tmp_path/'two'), whole)
    assert record_of(1, tmp_path/'one', kill=True) is None
    more = record_of(2, tmp_path/'one')
    assert [p.step for p in more.trajectory] == [p.step for p in whole.trajectory] == [0, 2, 4]
    assert more.device == whole.device and more.device.name.endswith(
        ', 2 processes'), 'it names those that ended it'
    assert not equal_records(more, whole)

@pytest.mark.parametrize('value', ['x', '0'])
def test_a_world_size_that_is_no_number_of_processes(value, tmp_path):
    done = subprocess.run([sys.executable, '-c', 'from sfr_repro.cli import main; main()', 'run',
                           'smoke'], cwd=tmp_path, capture_output=True, text=True,
                          env={**os.environ, 'WORLD_SIZE': value, 'HF_HUB_OFFLINE': '1'})
    assert done.returncode == 2
    assert done.stderr == f"sfr-repro: WORLD_SIZE is '{value}': it must be a number of processes\n"

CODE = '''
import sys
from sfr_repro.core.config import load_experiment
from sfr_repro.train import trainer
from sfr_repro.train.run import run
trainer.check_views = lambda views: None         # no dropout, so that only rounding differs
config, = load_experiment("smoke", ("train.steps=12", "train.eval_every=3",
                                    "encoder.dropout=0.0", "train.precision=fp32"))
print(run(config, sys.argv[1], progress=False, minutes=0.))
'''

TORCHRUN = ('torch.distributed.run', '--standalone', '--nproc_per_node')
ACCELERATE = ('accelerate.commands.launch', '--multi_gpu', '--num_machines', '1',
              '--mixed_precision', 'no', '--dynamo_backend', 'no', '--main_process_port', '0',
              '--num_processes')

def launch(*args, by=TORCHRUN, size=2, **kwargs):
    return subprocess.Popen([sys.executable, '-m', *by, str(size), *map(str, args)], text=True,
                            start_new_session=True,
                            env={**os.environ, 'HF_HUB_OFFLINE': '1', 'OMP_NUM_THREADS': '1'},
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, **kwargs)

def children(pid):
    return [int(p) for t in Path(f'/proc/{pid}/task').iterdir()
            for p in (t/'children').read_text().split()]

@pytest.mark.once
def test_a_process_that_dies_ends_the_others_and_one_goes_on_alone(tmp_path, monkeypatch):
    "Two processes, the second killed after a checkpoint; one goes on and ends as one alone"
    monkeypatch.setattr('sfr_repro.train.trainer.check_views', lambda views: None)
    (tmp_path/'code.py').write_text(CODE)
    together = launch(tmp_path/'code.py', tmp_path/'runs')
    while not list(tmp_path.glob('runs/*/checkpoint-*/complete')):
        assert together.poll() is None, together.stderr.read()
        time.sleep(.05)
    workers = children(together.pid)
    assert len(workers) == 2
    started = time.monotonic()
    os.kill(workers[1], signal.SIGKILL)
    said = together.communicate(timeout=60)[1]
    assert time.monotonic()-started < 60 and together.returncode and 'SIGKILL' in said
    assert not any(Path(f'/proc/{p}').exists() for p in workers)
    assert not list(tmp_path.glob('runs/*/record.json'))
    step = max(int(p.parent.name.split('-')[1])
               for p in tmp_path.glob('runs/*/checkpoint-*/complete'))
    config, = load_experiment('smoke', ('train.steps=12', 'train.eval_every=3',
                                        'encoder.dropout=0.0', 'train.precision=fp32'))
    ended, alone = (read_record(run(config, tmp_path/o, progress=False)) for o in ('runs', 'alone'))
    assert 3 <= step < 12
    assert [p.step for p in ended.trajectory] == [p.step
                                                  for p in alone.trajectory] == [0, 3, 6, 9, 12]
    # no dropout: only rounding differs
    for a, b in zip(ended.trajectory[1:], alone.trajectory[1:], strict=True):
        assert abs(a.loss-b.loss) < 1e-4*b.loss
        assert abs(a.metrics['grad_norm']-b.metrics['grad_norm']) < 1e-3*b.metrics['grad_norm']

@pytest.mark.once
def test_a_run_by_two_processes_from_the_command_line(tmp_path):
    "The same file, another command: equal records by `torchrun` and by `accelerate launch`"
    (tmp_path/'x.toml').write_text('preset = "smoke"\nseeds = [0]\n[loss]\nname = '
                                   '"softcse_weight"\ntile = 5\n[teacher]\nname = '
                                   '"sfr-mini"\n[train]\nsteps = 2\nchunk = 3\n')
    (tmp_path/'cli.py').write_text('from sfr_repro.cli import main; main()')
    done = launch(tmp_path/'cli.py', 'run', 'x.toml', cwd=tmp_path)
    out, err = done.communicate(timeout=300)
    assert not done.returncode, err
    record = read_record(next(tmp_path.glob('runs/*/record.json')))
    assert record.device.name.endswith(', 2 processes') and record.config['train']['chunk'] == 3
    assert [p.step for p in record.trajectory] == [0, 2]
    assert {p.name for p in next(tmp_path.glob('runs/*')).iterdir()} == {
        '.lock', 'inputs.json', 'model', 'record.json', 'tensorboard'}
    by_accelerate = launch(tmp_path/'cli.py', 'run', 'x.toml', '--out', 'again', by=ACCELERATE,
                           cwd=tmp_path)
    out, err = by_accelerate.communicate(timeout=300)
    assert not by_accelerate.returncode, err
    again = read_record(next(tmp_path.glob('again/*/record.json')))
    assert again.device == record.device and equal_records(again, record)
    refused = launch(tmp_path/'cli.py', 'run', 'x.toml', '--set', 'train.batch=15', cwd=tmp_path)
    out, err = refused.communicate(timeout=300)
    assert refused.returncode
    assert 'train.batch is 15: 2 processes share it, so it must be a multiple of 2' in err
    assert 'sfr_repro/train' not in err and len(list(tmp_path.glob('runs/*'))) == 1
