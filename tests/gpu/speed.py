"""Part (b) of `make gpu`: how fast is a training step, against sentence-transformers?

`python tests/gpu/speed.py --device cuda --minutes 2.5 --out FOLDER` writes FOLDER/speed.json.
The model has BERT-base's shape and random weights; batches are random token ids with the lengths
of wiki sentences cut at 32 tokens. All sides take turns in one process on the same batches. A side
gets its tensors ready made and pinned, as from a data loader; a step then copies them to the GPU,
computes both passes, clips the gradient and calls the optimiser (AdamW, fused).
"""
import gc
import os
import sys
import tempfile
import time
import warnings
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1])]
os.environ.setdefault('HF_HUB_OFFLINE', '1')
import numpy as np
import steps
import torch
from report import Report, import_trainer, parse
from torch import nn
from transformers.utils import logging
from sfr_repro.core.checks import seed_all
from sfr_repro.core.notation import unit_rows
from sfr_repro.encode.encoder import SentenceEncoder
from sfr_repro.losses.registry import make_loss

FIRST = ('padded', 'masked', 'buckets', 'unpadded', 'lean', 'unpadded graph', 'lean graph',
         'lean efficient graph')
LATER = ('lean graph', 'lean compiled', 'lean compiled graph', 'lean efficient compiled graph')
IN_FP32 = ('padded', 'masked', 'unpadded', 'unpadded graph')


def synchronize(device):
    if device == 'cuda': torch.cuda.synchronize()


def spread(values):
    "Median, quartiles and number of turns"
    q1, median, q3 = np.quantile(np.array(values, dtype=float), (.25, .5, .75)).tolist()
    return {'median': median, 'q1': q1, 'q3': q3, 'turns': len(values)}


def timed(device, call):
    "Seconds of a call, the GPU's work included, and those until everything was asked for"
    synchronize(device)
    start = time.perf_counter()
    call()
    asked = time.perf_counter()
    synchronize(device)
    return time.perf_counter() - start, asked - start


def take_turns(device, sides, rounds):
    "Name -> list of `(seconds, seconds until all was asked for)`; the order turns each round"
    found = {name: [] for name in sides}
    for r in range(rounds):
        for name in list(sides)[::1 if r % 2 == 0 else -1]:
            found[name].append(timed(device, sides[name]))
    return found


def forget(device):
    "Give memory back"
    gc.collect()
    if device == 'cuda': torch.cuda.empty_cache()


class Bench:
    "The items, and what they share: the peak"
    def __init__(self, report, arguments):
        self.report, self.device, self.tiny = report, arguments.device, arguments.tiny
        self.cuda = self.device == 'cuda'
        self.shape = steps.TINY if self.tiny else steps.BASE
        self.peak, self.sides = {}, {}

    # ---- the matrix peak

    def measure_peak(self, precision):
        "The rate of one large product; the best of several groups"
        n, dtype = 128 if self.tiny else 8192, getattr(torch, precision)
        x, y = (torch.randn(n, n, device=self.device).to(dtype) for _ in range(2))
        out, group = torch.empty_like(x), 10 if precision == 'bfloat16' else 2
        def products():
            for _ in range(group): torch.mm(x, y, out=out)
        products()
        rates = [2*n**3*group/timed(self.device, products)[0] for _ in range(7)]
        self.peak[precision] = max(rates)
        return {'flops': spread(rates), 'best': max(rates), 'n': n,
                'line': f'{max(rates)/1e12:.4g} TFLOP/s at {n}^3'}

    # ---- training steps

    def build(self, name, precision, hosts_of, model):
        "A side, warm: every batch was seen once"
        before = 0
        if self.cuda:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
        kind, options = (steps.Theirs, {}) if name == 'theirs' else steps.FORMS[name][:2]
        start = time.perf_counter()
        step = kind(model(), precision, fill=2*len(hosts_of[0]), **options)
        hosts = [step.prepare(b) for b in hosts_of]
        losses = [step(h) for h in hosts]
        losses = [float(x) for x in losses]
        seconds = time.perf_counter() - start
        if not np.isfinite(losses).all(): raise FloatingPointError(f'losses {losses}')
        def turn():
            for h in hosts: step(h)
        self.sides[name] = turn
        peak = torch.cuda.max_memory_allocated() - before if self.cuda else None
        line = f'{seconds:.1f} s to start, loss {losses[-1]:.4f}'
        if self.cuda: line += f', peak {peak/2**30:.2f} GiB with weights and optimiser'
        return {'start_seconds': seconds, 'losses': losses, 'peak_bytes': peak, 'line': line,
                'graphs': len(step.graphs)}

    def turns(self, batches, precision, rounds):
        "All sides that were built"
        if not self.sides: raise RuntimeError('no side could be built')
        model = steps.make_model(self.shape | {'num_hidden_layers': 1}, device='meta')
        model.config.num_hidden_layers = self.shape['num_hidden_layers']
        work = sum(steps.work(model, b) for b in batches)
        found = take_turns(self.device, self.sides, rounds)
        peak = self.peak.get({'bf16': 'bfloat16', 'fp32': 'float32'}[precision])
        sides = {}
        for name, pairs in found.items():
            whole, asked = np.array(pairs).T
            sides[name] = {
                'seconds': spread(whole/len(batches)), 'turns': (whole/len(batches)).tolist(),
                'flops': spread(work/whole), 'asked_share': spread(asked/whole)}
            if peak: sides[name]['share_of_peak'] = spread(work/whole/peak)
            if 'theirs' in found:                           # round by round
                sides[name]['ratio'] = spread(np.array(found['theirs'])[:, 0]/whole)
        def said(name):
            s = sides[name]
            line = f'{name} {1e3*s["seconds"]["median"]:.2f} ms'
            if 'ratio' in s: line += f' {s["ratio"]["median"]:.2f}x'
            return line + (f' {100*s["share_of_peak"]["median"]:.0f}%' if peak else '')
        return {'sides': sides, 'useful_flops_a_step': work/len(batches), 'peak': peak,
                'steps_a_turn': len(batches), 'line': ', '.join(map(said, sides))}

    def compare(self, precision, batch, names, count, rounds, label=''):
        "Build each side as an item of its own, then let them take turns"
        if self.tiny: batch, count, rounds = batch//32, 2, 2
        title = f'{precision} b{batch}{label}'
        if self.report.arguments.only not in f'step {title}': return
        self.sides = {}
        rows = steps.make_batches(count, batch, self.shape['vocab_size'])
        def model(): return steps.make_model(self.shape, device=self.device)
        for name in ('theirs', *names):
            if name != 'theirs' and steps.FORMS[name][3] and not self.cuda: continue
            self.report.item(f'step {title}: {name}', lambda n=name: self.build(
                n, precision, rows, model))
        self.report.item(f'step {title}', lambda: self.turns(rows, precision, rounds))
        self.sides = {}
        forget(self.device)

    # ---- the trainer itself

    def trainer(self):
        "`train` of the package: time from step to step, its data loader and logging included"
        batch, count = (4, 6) if self.tiny else (128, 24)
        rows = sum(steps.make_batches(count, batch, self.shape['vocab_size']), [])
        tokenizer = SentenceEncoder.from_pretrained('sfr-mini').tokenizer
        from sfr_repro.core.config import TrainConfig
        config = TrainConfig(batch=batch, steps=count, precision='bf16', eval_every=10**9)
        model = steps.make_model(self.shape, device=self.device)
        encoder = SentenceEncoder(model, tokenizer, pooler='mean')
        ticks, loss = [], make_loss('infonce')
        def watched(*views, **tensors):
            ticks.append(time.perf_counter())
            return loss(*views, **tensors)
        with tempfile.TemporaryDirectory() as folder:
            trainer = import_trainer()
            trainer.train(encoder, nn.Identity(), watched, rows, config, lambda: {'none': 0.},
                          folder, options=trainer.TrainOptions(progress=False))
        seconds = np.diff(ticks)[2:]
        return {'seconds': spread(seconds),
                'line': f'{1e3*np.median(seconds):.2f} ms from step to step'}

    def synchronisations(self):
        "How often one step waits for the GPU"
        row = steps.make_batches(1, 128, self.shape['vocab_size'])[0]
        found = {}
        for name in ('theirs', 'padded', 'masked', 'buckets', 'unpadded', 'lean'):
            kind = steps.Theirs if name == 'theirs' else steps.FORMS[name][0]
            step = kind(steps.make_model(self.shape, device=self.device), 'bf16')
            host = step.prepare(row)
            step(host)
            torch.cuda.synchronize()
            torch.cuda.set_sync_debug_mode('warn')
            try:
                with warnings.catch_warnings(record=True) as seen:
                    warnings.simplefilter('always')
                    step(host)
            finally: torch.cuda.set_sync_debug_mode('default')
            found[name] = sum('synchroniz' in str(w.message) for w in seen)
        return {'synchronisations': found, 'line': str(found)}

    # ---- tiled losses

    def tiled(self):
        "InfoNCE of 65,536 pairs in tiles, beside the plain one of a quarter"
        width, small, large = (16, 600, 1200) if self.tiny else (768, 16384, 65536)
        tile, found = 64 if self.tiny else 2048, {}
        sides = (('plain', small, None), ('tiled', small, tile), ('tiled', large, tile))
        for form, pairs, rows in sides:
            loss, name = make_loss('infonce', tile=rows), f'{form} {pairs}'
            torch.manual_seed(0)
            h = unit_rows(torch.randn(pairs, width, device=self.device)).requires_grad_()
            h_pos = unit_rows(h.detach() + .03*torch.randn_like(h)).requires_grad_()
            def both(loss=loss, h=h, h_pos=h_pos):
                h.grad = h_pos.grad = None
                loss(h, h_pos).backward()
            both()
            before = peak = 0
            if self.cuda:
                torch.cuda.synchronize()
                torch.cuda.reset_peak_memory_stats()
                before = torch.cuda.memory_allocated()
                both()
                peak = torch.cuda.max_memory_allocated() - before
            seconds = [timed(self.device, both)[0] for _ in range(3)]
            gradient = h.grad[:64].double().cpu()
            if not gradient.isfinite().all(): raise FloatingPointError(f'{name}: gradient')
            found[name] = {'seconds': spread(seconds), 'peak_bytes': peak if self.cuda else None,
                           'value': float(loss(h.detach(), h_pos.detach())),
                           'flops': spread(6*pairs**2*width/np.array(seconds))}
            del h, h_pos, both
            forget(self.device)
        def said(name):
            f = found[name]
            memory = f' {f["peak_bytes"]/2**30:.2f} GiB' if self.cuda else ''
            return f'{name}: {1e3*f["seconds"]["median"]:.1f} ms{memory}'
        return {'losses': found, 'tile': tile, 'line': ', '.join(map(said, found))}


def main(argv=None):
    "Measure; 0, or 1 when an item failed"
    arguments = parse(__doc__.splitlines()[0], argv, 2.5)
    for backend in (torch.backends.cuda.matmul, torch.backends.cudnn): backend.allow_tf32 = False
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    seed_all(0)
    report = Report('speed', arguments)
    bench = Bench(report, arguments)
    report.item('peak bfloat16', lambda: bench.measure_peak('bfloat16'))
    bench.compare('bf16', 128, (*FIRST, 'masked graph'), 8, 5)
    bench.compare('bf16', 512, FIRST, 4, 5)                # without one that needs most memory
    report.item('tiled loss', bench.tiled)
    bench.compare('bf16', 128, LATER, 8, 5, ' compiled')
    bench.compare('bf16', 512, LATER, 4, 5, ' compiled')
    report.item('peak float32', lambda: bench.measure_peak('float32'))
    bench.compare('fp32', 128, IN_FP32, 3, 3)
    report.item('trainer bf16 b128', bench.trainer)
    if bench.cuda: report.item('synchronisations in a step', bench.synchronisations)
    return report.end()


if __name__ == '__main__': sys.exit(main())
