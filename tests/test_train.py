"A run that is killed goes on, and ends as if it had not been."
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
import pytest
import torch
from conftest import ROOT
from sfr_repro.core.checks import RandomState, relative_error, seed_all
from sfr_repro.core.config import load_experiment
from sfr_repro.core.records import equal_records, read_record
from sfr_repro.data.mini_sts import load_mini_corpus
from sfr_repro.encode.encoder import SentenceEncoder, make_head, pad_ids, tokenize
from sfr_repro.losses.registry import LOSSES, make_loss
from sfr_repro.train.run import RunError, complete_setting, run
from sfr_repro.train.views import TwoViews, cached_backward, make_chunks

CODE = '''
import sys
from sfr_repro.core.config import load_experiment
from sfr_repro.train.run import run
config, = load_experiment("smoke", ("train.steps=12", "train.eval_every=3"))
print(run(config, sys.argv[1], progress=False, minutes=0.))
'''

def start(out):
    return subprocess.Popen([sys.executable, '-c', CODE, str(out)], stdout=subprocess.PIPE,
                            stderr=subprocess.DEVNULL, text=True,
                            env={**os.environ, 'HF_HUB_OFFLINE': '1'})

def finish(out):
    path, _ = start(out).communicate()
    return read_record(path.strip())

def test_kill_9_in_the_middle(tmp_path):
    whole = finish(tmp_path/'whole')
    process, checkpoints = start(tmp_path/'killed'), []
    while not checkpoints:
        assert process.poll() is None, 'the run ended before it could be killed'
        time.sleep(.05)
        checkpoints = list((tmp_path/'killed').glob('*/checkpoint-*/complete'))
    process.send_signal(signal.SIGKILL); process.wait()
    assert not list((tmp_path/'killed').glob('*/record.json'))
    again = finish(tmp_path/'killed')
    assert equal_records(whole, again)
    left = {p.name for p in next(Path(tmp_path/'killed').glob('smoke-*')).iterdir()}
    assert left == {'.lock', 'inputs.json', 'model', 'record.json', 'tensorboard'}

def test_the_record_says_what_was_run(tmp_path):
    record = finish(tmp_path)
    assert [p.step for p in record.trajectory] == [0, 3, 6, 9, 12]
    assert {'pos_cos', 'neg_cos', 'alignment', 'uniformity', 'mean_norm',
            'grad_norm'} <= set(record.trajectory[-1].metrics)
    assert record.selection.best_step in {p.step for p in record.trajectory}
    assert all(d.source == 'embedded' and d.rows > 1 and len(d.sha256) == 64 for d in record.data)
    best = max(p.metrics[record.selection.metric] for p in record.trajectory)
    assert next(p for p in record.trajectory
                if p.metrics[record.selection.metric] == best).step == record.selection.best_step
    assert json.loads(record.model_dump_json(by_alias=True))['schema'] == 1

def test_a_run_made_with_other_data_is_not_taken_for_this_one(tmp_path):
    finish(tmp_path)
    inputs = next(tmp_path.glob('*/inputs.json'))
    inputs.write_text(inputs.read_text().replace('"dev set": "', '"dev set": "0'))
    process = subprocess.run([sys.executable, '-c', CODE, str(tmp_path)], capture_output=True,
                             text=True, env={**os.environ, 'HF_HUB_OFFLINE': '1'})
    assert process.returncode and 'was made with another dev set' in process.stderr

def test_optional_keys_leave_the_committed_runs_their_names():
    experiments = ROOT/'nbs/experiments'
    for name in ('infonce', 'original_repaired', 'untrained'):
        ids = {complete_setting(c)[0].id for c in load_experiment(experiments/f'{name}.toml')}
        records = list((ROOT/'nbs/records/runs').glob(f'{name}-*.json'))
        assert records and {json.loads(p.read_text())['id'] for p in records} <= ids

@pytest.mark.once
@pytest.mark.parametrize('dtype,head,bound', [(torch.float32, 'linear', 1e-6),
                                              (torch.float32, 'none', 1e-6),
                                              (torch.bfloat16, 'linear', 1e-3)])
def test_a_chunked_batch_has_the_gradient_of_one_graph_with_dropout(
    dtype, head, bound, monkeypatch):
    "Of its largest entry; under bf16 autocast to rounding, since one graph adds up chunks in bf16"
    encoder = SentenceEncoder.from_pretrained('sfr-mini', pooler='mean', dropout=.2)
    ids, mask = pad_ids(tokenize(encoder.tokenizer, load_mini_corpus()[:14], 24),
                        encoder.tokenizer.pad_token_id)
    seed_all(0)
    module = TwoViews(encoder, make_head(head, encoder.dim, .05),
                      make_loss('infonce', tau=.1)).train()
    autocast = partial(torch.autocast, 'cpu', torch.bfloat16, enabled=dtype == torch.bfloat16)
    def wrapped(*args, **kwargs):
        with autocast(): return module(*args, **kwargs)
    def gradient(f):
        module.zero_grad(); seed_all(1); f()
        return torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None])
    def whole():
        with autocast():
            views = [module.represent(*c).chunk(2) for c in make_chunks(ids, mask, 4)]
            firsts, seconds = zip(*views, strict=True)
            loss = module.value(torch.cat([*firsts, *seconds]))
        loss.backward()
    batch = {'input_ids': ids, 'attention_mask': mask}
    want = gradient(whole)
    def error(chunk, wrapped=wrapped):
        step = partial(cached_backward, module, batch, chunk, wrapped=wrapped, autocast=autocast)
        return relative_error(gradient(step), want)
    assert error(4) < bound and error(4, None) < bound
    assert error(14) > .05, 'other chunks have other masks'
    monkeypatch.setattr(RandomState, 'restore', lambda self: None)
    assert error(4) > .05, 'a second pass with masks of its own'

@pytest.fixture
def own_losses():
    "Forget afterwards what a test registers"
    before = dict(LOSSES)
    yield
    LOSSES.clear(); LOSSES.update(before)

def test_a_loss_from_the_readers_own_file(tmp_path, own_losses):
    (tmp_path/'mine.toml').write_text('preset = "smoke"\nseeds = [0]\n[loss]\nmodule = '
                                      '"invented.py"\nname = "infonce_met"\n[train]\nsteps = 2\n')
    content = (ROOT/'nbs/experiments/invented.py').read_bytes()
    (tmp_path/'invented.py').write_bytes(content)
    config, = load_experiment(tmp_path/'mine.toml')
    record = read_record(run(config, tmp_path/'runs', progress=False))
    assert record.config['loss']['module_sha256'] == hashlib.sha256(content).hexdigest()
    assert record.config['loss']['name'] == 'infonce_met'
    (tmp_path/'invented.py').write_bytes(content+b'\n')
    with pytest.raises(RunError, match='has changed since the experiment was read'):
        run(config, tmp_path/'runs', progress=False)
