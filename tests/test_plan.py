"The plan: counted against PyTorch's own counter, its facts and errors, the rehearsal of large runs"
import itertools
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from unittest.mock import patch
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import BertConfig, BertModel, RobertaConfig, RobertaModel
from conftest import ROOT, quiet
from sfr_repro.core.config import TrainConfig, load_experiment
from sfr_repro.core.errors import UserError
from sfr_repro.core.records import read_record, read_records
from sfr_repro.encode.encoder import SentenceEncoder, best_device, make_head, tokenize
from sfr_repro.encode.names import YARDSTICK
from sfr_repro.encode.packed import FastDropout, forward_packed
from sfr_repro.losses.registry import make_loss
from sfr_repro.train.cost import encoder_shape, forward_flops, step_flops
from sfr_repro.train.plan import (
    AFTER,
    DEV,
    DEVICES,
    PROBE,
    TASK_TEXTS,
    Device,
    measured_share,
    memory_of,
    plan,
    plan_steps,
    plan_table,
    plan_text,
    show_time,
    work_of,
)
from sfr_repro.train.rehearse import random_encoder, rehearse
from sfr_repro.train.run import open_encoder
from sfr_repro.train.trainer import train
from sfr_repro.train.views import TwoViews, freeze_embeddings

PAPER = ROOT/'nbs/experiments/paper'
def paper(name, *more): return load_experiment(PAPER/f'infonce_{name}.toml', more)[0]
def embedded(*more): return load_experiment('embedded', more)[0]

@pytest.mark.once
@pytest.mark.parametrize('cls,config,first',
                         [(BertModel, BertConfig, 5), (RobertaModel, RobertaConfig, 5)])
@pytest.mark.parametrize('frozen,head,loss',
                         [(False, 'none', 'infonce'), (True, 'linear', 'barlow_twins_repaired')])
def test_work_of_a_step_is_what_the_counter_counts(cls, config, first, frozen, head, loss):
    made = config(vocab_size=60, hidden_size=24, num_hidden_layers=2, num_attention_heads=3,
                  intermediate_size=40, max_position_embeddings=40)
    encoder = SentenceEncoder(cls(made, add_pooling_layer=False), None, pooler='mean')
    if frozen: freeze_embeddings(encoder.model)
    module = TwoViews(encoder, make_head(head, 24), make_loss(loss)).train()
    def counted(T):
        with FlopCounterMode(display=False) as counter:
            module(torch.randint(first, 60, (6, T)),
                   torch.ones(6, T, dtype=torch.long))['loss'].backward()
        return counter.get_total_flops()
    shape = replace(encoder_shape('sfr-mini'), layers=2, width=24, inner=40, heads=3, vocabulary=60,
                    positions=40)
    assert shape.parameters == sum(p.numel()
                                   for p in cls(made, add_pooling_layer=False).parameters())
    def planned(T):
        return step_flops(shape, TrainConfig(batch=6, steps=1), T, make_loss(loss), frozen=frozen,
                          head=head)
    assert planned(12) == counted(12) != planned(13)
    # the trainer may fill its row of 132 tokens up to a round number
    assert planned(11) <= counted(11) < planned(11)*17/16

@pytest.mark.once
def test_chunks_cost_one_forward_pass_more():
    s, loss = encoder_shape('bert-base-uncased'), make_loss('infonce')
    whole, chunked, one = (step_flops(s, TrainConfig(batch=64, steps=1, chunk=c), 32, loss)
                           for c in (None, 16, 64))
    assert chunked-whole == forward_flops(s, 128*32, 128*32**2) and one == whole
    assert chunked/whole == pytest.approx(4/3, rel=1e-3)
    # PEERS' hand count of a BERT-base step with 64 sentences
    assert whole == pytest.approx(64*32.84e9, rel=1e-3)

@pytest.mark.once
def test_memory_falls_with_the_chunk_and_with_frozen_embeddings():
    bert = paper('bert')
    small, loose = (replace(bert, train=replace(bert.train, chunk=16)),
                    replace(bert, encoder=replace(bert.encoder, freeze_embeddings=False)))
    a, b, c = (memory_of(x, 'fp32') for x in (bert, small, loose))
    assert b['activations'] == a['activations']*16/128
    assert {k: v for k, v in a.items()
            if k != 'activations'} == {k: v for k, v in b.items() if k != 'activations'}
    assert c['gradients']-a['gradients'] == 4*encoder_shape('bert-base-uncased').embeddings
    assert a['AdamW'] == 2*a['gradients']
    assert memory_of(bert, 'bf16', gpu=True)['activations'] < memory_of(bert, 'bf16')[
        'activations'] < a['activations']

def test_sentences_of_the_evaluation(data_folder):
    "The constants that a plan rests on, counted again"
    from sfr_repro.data.retrieval import load_retrieval
    from sfr_repro.data.sts import STS_SETS, load_sts
    from sfr_repro.data.transfer import TRANSFER_SETS, load_transfer
    from sfr_repro.evaluate.options import TASKS
    from sfr_repro.evaluate.sts import distinct_sentences
    from sfr_repro.geometry.probe import named_sentences
    tokenizer = SentenceEncoder.from_pretrained(YARDSTICK).tokenizer
    searched = map(load_retrieval, ('cranfield', 'cisi', 'quora_dup', 'trecqa'))
    texts = {'sts': distinct_sentences([load_sts(n, 'test') for n in STS_SETS]),
             'transfer': distinct(map(load_transfer, TRANSFER_SETS)),
             'retrieval': distinct(searched), 'geometry': load_sts('STS-B', 'test').sentence1}
    assert tuple(TASK_TEXTS) == TASKS
    for said, given in ((DEV, distinct_sentences([load_sts('STS-B', 'dev')])),
                        (PROBE, named_sentences(n=512)[1]),
                        *((TASK_TEXTS[t], x) for t, x in texts.items())):
        n = [len(x) for x in tokenize(tokenizer, list(given), 512)]
        assert (len(n), sum(n), sum(x*x for x in n)) == (said.sentences, said.tokens, said.squares)

@pytest.mark.once
def test_each_task_is_counted_with_what_it_reads():
    "Alone, together, and while training; what is not encoding is named and not counted"
    s = encoder_shape('sfr-mini')
    def work(*more): return work_of(embedded(*more))
    plain, four = work(), work("evaluate.tasks=['sts', 'transfer', 'retrieval', 'geometry']")
    for task, texts in TASK_TEXTS.items():
        assert four[f'{task} at the end'] == forward_flops(s, texts.tokens, texts.squares)
        alone = work(f"evaluate.tasks=['{task}']")
        assert [k for k in alone if k.endswith('at the end')] == [f'{task} at the end']
        assert alone['training'] == plain['training']
    assert list(plain) == ['training', 'STS-B dev while training', 'sts at the end']
    probed = work('train.measure_every=50')
    # 200 steps: prepared, at 0, 50, 100, 150, 200
    assert probed['geometry while training'] == 6*forward_flops(s, PROBE.tokens, PROBE.squares)
    assert {k: probed[k] for k in plain} == plain
    assert 'geometry while training' not in work('train.measure_every=50', 'train.steps=0')
    text = plan_text(plan(embedded("evaluate.tasks=['transfer', 'geometry']",
                                   'train.measure_every=50'), 'cpu2'))
    assert '108,108 for transfer, 1,379 for geometry' in text
    assert 'the probe of geometry reads 512 sentences a look' in text
    left_out = f"{AFTER['transfer']}, {AFTER['geometry']}, the sums of geometry while training"
    assert f'not counted: {left_out}' in text
    assert 'retrieval' not in text

@pytest.mark.once
def test_a_plan_adds_up():
    for c in (paper('bert'), paper('roberta'), embedded()):
        for d in DEVICES:
            p = plan(c, d)
            assert p.work == work_of(c)
            assert p.seconds.keys() == p.work.keys()
            assert p.total == sum(p.seconds.values())
            measured = p.precision in DEVICES[d].measured
            assert ('measured on one' in p.assumptions[1]) == measured
            own = plan(c, replace(DEVICES[d], name='mine')).assumptions
            assert not DEVICES[d].gpu or 'measured' not in ' '.join(own)
            assert len(p.assumptions) == (4 if DEVICES[d].gpu else 3)
            text = plan_text(p)
            assert all(k in text for k in (*p.work, *p.assumptions, d)) and str(p) == text
    table = plan_table([plan(c, d) for c in (paper('bert'), paper('roberta'))
                        for d in DEVICES]).splitlines()
    assert len(table) == 2+2*len(DEVICES) and len({line.count('|') for line in table}) == 1
    assert plan_steps(paper('bert')) == 1_000_000//128
    assert plan_steps(paper('roberta')) == 1_000_000//512
    assert plan_steps(embedded()) == 200

@pytest.mark.once
def test_what_bounds_a_small_model_on_a_large_card():
    small = plan(embedded(), 'h100')
    assert 'bound the training' in ' '.join(small.assumptions)
    assert small.seconds['training'] == pytest.approx(200*100*4*4e-5)
    assert 'bound the training' not in ' '.join(plan(paper('roberta'), 'a100').assumptions)

@pytest.mark.once
def test_advice_names_what_is_largest_and_helps():
    "Chunk, then tile, then it fits; what neither helps; a device of one's own and its memory"
    big = 'train.batch=65536'
    def advice(*more, device='rtx4090'):
        p = plan(paper('roberta', *more), device)
        assert (p.advice in str(p)) and ('This is more than' in str(p)) == bool(p.advice)
        return p.advice
    assert 'the largest part is the activations: set train.chunk,' in advice('train.batch=4096')
    assert 'tile' not in advice('train.batch=4096')
    assert 'set train.chunk,' in advice(big)
    assert 'set a smaller train.chunk than 32768,' in advice(big, 'train.chunk=32768')
    assert 'the largest part is the loss: set loss.tile,' in advice(big, 'train.chunk=64')
    assert 'chunk' not in advice(big, 'train.chunk=64')
    assert 'set a smaller loss.tile than 32768,' in advice(big, 'train.chunk=64', 'loss.tile=32768')
    assert advice(big, 'train.chunk=64',
                  'loss.tile=1024') == '' == advice(big, 'train.chunk=64', device='h100')
    vicreg = load_experiment(PAPER/'vicreg_roberta.toml', (big, 'train.chunk=64'))[0]
    assert 'set a smaller train.batch, as vicreg has no tiled form' in plan(
        vicreg, 'rtx4090').advice
    held = plan(paper('bert'), 'h100').held
    for memory, said in ((held*.99, 'GB of mine, and beside'), (held, ''),
                         (1e9, 'take a smaller encoder')):
        p = plan(paper('bert'), replace(DEVICES['h100'], name='mine', memory=memory))
        assert said in p.advice and bool(said) == bool(p.advice)

def distinct(sets): return dict.fromkeys(itertools.chain.from_iterable(d.sentences for d in sets))

def with_length(name, n): return embedded(f"encoder.name='{name}'", f'encoder.max_length={n}')

@pytest.mark.once
def test_a_plan_refuses_what_a_run_refuses_in_its_words(tmp_path):
    "And nothing else: the largest length, the whole corpus as a batch, no training at all"
    def said(f, *args):
        with pytest.raises(UserError) as e: f(*args)
        return str(e.value)
    small = embedded('data.sentences=10', 'train.batch=16')
    parts = SentenceEncoder.from_pretrained('sfr-mini'), make_head('none', 8), make_loss('infonce')
    by_train = said(train, *parts, [[2, 3]]*10, small.train, dict, tmp_path)
    larger = 'train.batch is 16: the corpus has 10 sentences, and a batch cannot be larger'
    assert said(plan, small, 'h100') == by_train == larger
    for name in ('sfr-mini', YARDSTICK, str(random_encoder('roberta-base', tmp_path, **TINY))):
        most = SentenceEncoder.from_pretrained(name, pooler='mean').max_length
        sized = partial(with_length, name)
        assert said(plan, sized(most+1), 'h100') == said(open_encoder, sized(most+1))
        assert plan(sized(most), 'h100').steps == 200
    assert 'roberta-base reads at most 512 word pieces' in said(
        plan, paper('roberta', 'encoder.max_length=513'), 'h100')
    assert plan(paper('roberta', 'encoder.max_length=512'), 'h100')
    assert 'needs' not in said(plan, paper('bert', 'data.sentences=127'), 'h100')
    assert plan(paper('bert', 'data.sentences=128'), 'h100').steps == 1
    assert plan(embedded('data.sentences=10', 'train.steps=0'), 'cpu2').work['training'] == 0
    # as the trainer rounds
    assert plan_steps(paper('bert', 'data.sentences=384', 'train.epochs=0.5')) == 2

@pytest.mark.once
def test_a_teacher_and_a_device_of_ones_own():
    c = embedded("loss.name='softcse_weight'", f"teacher.name='{YARDSTICK}'")
    assert work_of(c)["the teacher's vectors"] == forward_flops(
        encoder_shape(YARDSTICK), 20_000*32, 20_000*32**2)
    one = Device('mine', 1e9, {'bf16': 1e12}, {'bf16': .5}, 0., 'the label on the box')
    p = plan(embedded(), one)
    assert p.seconds['training'] == p.work['training']/.5e12
    assert 'the label on the box' in p.assumptions[0]

@pytest.mark.once
def test_committed_runs_say_what_two_cores_reach():
    runs = read_records(ROOT/'nbs/records/runs')
    share, name = measured_share(runs, DEVICES['cpu2'], 'bf16')
    assert 1/3 < share/DEVICES['cpu2'].share['bf16'] < 3
    assert name in {r.experiment.name+f'-{r.id}-s{r.seed}' for r in runs}
    assert measured_share([], DEVICES['cpu2'], 'bf16') is None
    assert measured_share([r for r in runs if r.kind != 'train'], DEVICES['cpu2'], 'bf16') is None
    assert name in plan_text(plan(embedded(), 'cpu2', runs))
    assert name not in plan_text(plan(embedded(), 'h100', runs))

@pytest.mark.once
@pytest.mark.parametrize('seconds,text', [(.04, '0.0 s'), (80, '80.0 s'), (90, '1.5 min'),
                                          (5400, '1.5 h'), (129600, '1.5 days')])
def test_times_for_readers(seconds, text): assert show_time(seconds) == text

@pytest.mark.once
def test_mistakes_are_one_sentence(tmp_path):
    def refused(text, f, *args):
        with pytest.raises(UserError) as e: f(*args)
        assert text in str(e.value) and '\n' not in str(e.value)
    refused("device is 'tpu': it must be one of h100, a100, rtx4090, cpu2", plan, embedded(), 'tpu')
    refused('needs data.sentences', plan,
            replace(paper('bert'), data=replace(paper('bert').data, sentences=None)), 'h100')
    refused('has no config.json', encoder_shape, tmp_path)
    (tmp_path/'config.json').write_text('{"model_type": "albert"}')
    (tmp_path/'model.safetensors').touch()
    refused("and this is 'albert'", encoder_shape, tmp_path)
    (tmp_path/'config.json').write_text('{')
    refused('of this folder cannot be read', encoder_shape, tmp_path)
    refused('there are stand-ins for bert-base-uncased, roberta-base', random_encoder, 'sfr-mini',
            tmp_path)

@pytest.mark.once
def test_an_encoder_that_is_not_here_is_a_sentence_offline(tmp_path):
    code = ("from sfr_repro.train.cost import encoder_shape\nfrom sfr_repro.core.errors import "
            "UserError\nassert encoder_shape('roberta-base').vocabulary == 50265\n" "try: "
            "encoder_shape('nobody/nothing')\nexcept UserError as e: print(e)")
    done = subprocess.run([sys.executable, '-c', code], **quiet(
                              tmp_path, PYTHONPATH=str(ROOT), HF_HUB_OFFLINE='1',
                              HF_HOME=str(tmp_path)))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("encoder.name is 'nobody/nothing': its config is neither here "
                                  "nor to be had")
    assert done.stdout.count('\n') == 1

TINY = dict(num_hidden_layers=1, hidden_size=16, num_attention_heads=2, intermediate_size=32)

@pytest.mark.once
@pytest.mark.parametrize('packed', [False, True])
@pytest.mark.parametrize('name,steps,passes',
                         [('bert', {}, 2), ('roberta', {'batch': 32, 'chunk': 10}, 2*4*2)])
def test_rehearsal_takes_the_path_it_says(tmp_path, name, steps, passes, packed):
    "A GPU's path by default: padded rows, torch's attention and dropout; the control is packed"
    attend, drop = torch.nn.functional.scaled_dot_product_attention, FastDropout.forward
    with (patch('sfr_repro.train.views.forward_packed', wraps=forward_packed) as packs,
          patch.object(torch.nn.functional, 'scaled_dot_product_attention', wraps=attend) as sdpa,
          patch.object(FastDropout, 'forward', autospec=True, side_effect=drop) as drops):
        record = read_record(rehearse(paper(name), tmp_path, smaller=TINY, packed=packed, **steps))
    # evaluation drops nothing
    trained = [c for c in sdpa.call_args_list if c.kwargs['dropout_p'] > 0]
    here = packed and best_device() == 'cpu'
    assert (packs.call_count, len(trained), drops.call_count
            > 0) == ((passes, 0, True) if here else (0, passes*TINY['num_hidden_layers'], False))
    assert [p.step for p in record.trajectory] == [0, 2]
    assert 0 < record.trajectory[-1].loss < float('inf')
    assert Path(record.encoder.name).name == {'bert': 'bert-base-uncased-random',
                                              'roberta': 'roberta-base-random-own-bpe'}[name]
    assert record.config['train'].get('chunk') == steps.get('chunk')
    assert record.experiment.name.endswith('-packed') == packed
    assert {d.source for d in record.data} == {'embedded'}
    assert record.config['encoder']['head'] == {'bert': 'linear', 'roberta': 'tanh-linear'}[name]
