"""Part (a) of `make gpu`: is everything right on the GPU?

`python tests/gpu/correct.py --device cuda --minutes 1.5 --out FOLDER` writes FOLDER/correct.json.
Each error is the largest difference over the largest entry of the reference, which is computed on
the CPU: in float64 for the losses, in float32 for encoders and steps. Exit code 1: a check failed.
"""
import copy
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1])]
os.environ.setdefault('HF_HUB_OFFLINE', '1')
import torch
from report import FORMS, Report, check, checks, import_trainer, parse
from safetensors.torch import load_file
from sfr_repro.core.checks import autograd_gradient, relative_error, seed_all, unit
from sfr_repro.core.errors import UserError
from sfr_repro.core.notation import unit_rows
from sfr_repro.losses.registry import LOSSES, make_loss

# The losses need torch alone. What needs more is imported where it is used, so that a missing
# package fails its own items only.

# Rows are more than 512: up to there a tiled form computes the plain one
ROWS, WIDTH, TILE = 700, 16, 128
TINY_ROWS = 520
VALUE = {torch.float32: 1e-4, torch.bfloat16: 1e-4}     # of half inputs too: computed in float32
GRADIENT = {torch.float32: 1e-3, torch.bfloat16: 1e-2}  # the gradient comes back in bfloat16


def loss_inputs(loss, dtype, rows):
    """Two views and what the loss needs, float64 numbers that `dtype` can hold.

    Pairs are from near to far, so that margins are met by some and missed by others.
    """
    h, away, v = (unit(rows, WIDTH, seed=s) for s in range(3))
    h_pos = unit_rows(h + torch.linspace(.2, 3., rows)[:, None]*away)
    given = {name: (v @ v.T).clamp(-1, 1).to(dtype).double() for name in loss.needs}
    return h.to(dtype).double(), h_pos.to(dtype).double(), given


def value_and_gradients(loss, h, h_pos, given):
    "Value, both gradients by autograd, and both by the loss's own `grad`"
    auto = autograd_gradient(lambda a, b: loss(a, b, **given), h, h_pos)
    found = [loss(h, h_pos, **given).reshape(1), *auto, *loss.grad(h, h_pos, **given)]
    return [x.detach().double().cpu() for x in found]


def check_loss(name, device, tiny):
    "A registered loss, plain and tiled, in float32 and bfloat16"
    forms, found, without = {'plain': make_loss(name)}, [], None
    try: forms['tiled'] = make_loss(name, tile=TILE)
    except UserError as e: without = str(e)
    for dtype in (torch.float32, torch.bfloat16):
        rows = TINY_ROWS if tiny else ROWS
        h, h_pos, given = loss_inputs(forms['plain'], dtype, rows)
        want = value_and_gradients(forms['plain'], h, h_pos, given)
        if not all(x.any() for x in want): raise ValueError('a zero gradient checks nothing')
        def there(x, dtype=dtype): return x.to(device, dtype)
        for form, loss in forms.items():
            got = value_and_gradients(loss, there(h), there(h_pos),
                                      {k: there(x) for k, x in given.items()})
            right = [*want[:3], *want[1:3]]             # autograd's in float64 is right for both
            errors = [relative_error(a, b) for a, b in zip(got, right, strict=True)]
            kind = f'{form} {str(dtype)[6:]}'
            found += [check(f'{kind} value', errors[0], VALUE[dtype]),
                      check(f'{kind} autograd', max(errors[1:3]), GRADIENT[dtype]),
                      check(f'{kind} grad', max(errors[3:]), GRADIENT[dtype])]
    return checks(found) | {'without_tiled_form': without}


def row_error(a, b):
    "Largest distance of two vectors over the length of the second"
    a, b = torch.as_tensor(a), torch.as_tensor(b)
    return ((a - b).norm(dim=1)/b.norm(dim=1)).max().item()


def check_vectors(device, count):
    "Vectors of `sfr-mini` by `encode`"
    from sfr_repro.data.mini_sts import load_mini_corpus
    from sfr_repro.encode.encoder import SentenceEncoder
    found, sentences = [], load_mini_corpus()[:count]
    for pooler in ('cls', 'mean', 'max', 'first_last'):
        def vectors(where, precision, pooler=pooler):
            encoder = SentenceEncoder.from_pretrained('sfr-mini', pooler=pooler,
                                                      precision=precision)
            return encoder.to(where).encode(sentences, progress=False)
        want = vectors('cpu', 'fp32')
        for precision, bound in (('fp32', 1e-4), ('bf16', 5e-2)):
            found.append(check(f'{pooler} {precision}',
                               row_error(vectors(device, precision), want), bound))
    return checks(found)


class Gradients:
    "The gradient of a training step with `sfr-mini`, on either device"
    def __init__(self, device, count, dropout=0.):
        from sfr_repro.data.mini_sts import load_mini_corpus
        from sfr_repro.encode.encoder import SentenceEncoder, make_head, pad_ids, tokenize
        self.trainer, self.device = import_trainer(), device
        seed_all(0)
        self.encoder = SentenceEncoder.from_pretrained('sfr-mini', pooler='mean', dropout=dropout)
        self.head = make_head('linear', self.encoder.dim, .05)
        ids = tokenize(self.encoder.tokenizer, load_mini_corpus()[:count], 32)
        self.ids, self.mask = pad_ids(ids, self.encoder.tokenizer.pad_token_id)
        self.sentences = unit(count, 32, seed=3).float()

    def module(self, where, name):
        from sfr_repro.encode.teachers import frozen_teacher
        encoder, head = copy.deepcopy(self.encoder).to(where), copy.deepcopy(self.head).to(where)
        loss = make_loss(name)
        teacher = frozen_teacher(self.sentences) if loss.needs else None
        return self.trainer.TwoViews(encoder, head, loss, teacher=teacher).train()

    def batch(self, where, name):
        rows = {'rows': list(range(len(self.ids)))} if make_loss(name).needs else {}
        return {'input_ids': self.ids.to(where), 'attention_mask': self.mask.to(where)} | rows

    def of(self, where, name='infonce', chunk=None, half=False):
        "All gradients as one vector, and the loss"
        module, batch = self.module(where, name), self.batch(where, name)
        def autocast(): return torch.autocast(where, torch.bfloat16, enabled=half)
        if chunk:
            def wrapped(*args, **more):
                with autocast(): return module(*args, **more)
            loss = self.trainer.cached_backward(module, batch, chunk, wrapped=wrapped,
                                                autocast=autocast)
        else:
            with autocast(): loss = module(**batch)['loss']
            loss.backward()
        grads = [p.grad.float().cpu().flatten() for p in module.parameters()
                 if p.grad is not None]
        return torch.cat(grads), loss.detach().float().cpu().reshape(1)


def check_step(device, name, count):
    "One step on the device, whole and in three chunks, against the whole one on the CPU"
    step, found, chunk = Gradients(device, count), [], count//3 + 1
    want, value = step.of('cpu', name)
    for c in (None, chunk):
        for half, bound in ((False, 1e-3), (True, 3e-2)):
            grad, loss = step.of(device, name, c, half)
            kind = f'{"chunked" if c else "whole"} {"bf16" if half else "fp32"}'
            found += [check(f'{kind} loss', relative_error(loss, value), bound),
                      check(f'{kind} gradient', relative_error(grad, want), bound)]
    return checks(found)


def check_chunks_with_dropout(device, count):
    "The second pass of a chunked step draws the same dropout as the first"
    step, chunk = Gradients(device, count, dropout=.2), count//3 + 1
    seed_all(1)
    got, _ = step.of(device, chunk=chunk)
    module, batch = step.module(device, 'infonce'), step.batch(device, 'infonce')
    seed_all(1)
    from sfr_repro.train.views import make_chunks
    chunks = make_chunks(batch['input_ids'], batch['attention_mask'], chunk)
    views = [module.represent(*c).chunk(2) for c in chunks]
    module.value(torch.cat([v for side in zip(*views, strict=True) for v in side])).backward()
    want = torch.cat([p.grad.cpu().flatten() for p in module.parameters() if p.grad is not None])
    seed_all(2)
    other, _ = step.of(device, chunk=chunk)
    found = checks([check('same dropout', relative_error(got, want), 1e-3)])
    found['control'] = relative_error(other, want)          # other dropout is seen by this check
    found['passed'] = found['passed'] and found['control'] > .05
    if not found['control'] > .05: found['line'] = 'the control saw no difference'
    return found


def check_replay(name, count):
    "A step that is replayed as one CUDA graph, against the plain step with the same dropout"
    from sfr_repro.train.replay import ReplayedStep
    step = Gradients('cuda', count, dropout=.1)
    def autocast(): return torch.autocast('cuda', torch.bfloat16)
    module, batch = step.module('cuda', name), step.batch('cuda', name)
    replayed = ReplayedStep(module, batch, autocast, bound=float('inf'))
    if replayed.graph is None: raise RuntimeError('no graph could be made')
    def gradient(call):
        seed_all(1)
        loss = call()
        grads = [p.grad.float().cpu().flatten() for p in replayed.parameters if p.grad is not None]
        return loss.float().cpu().reshape(1).clone(), torch.cat(grads)
    def plain():
        replayed.clear()
        return replayed.once()
    want = gradient(plain)
    views = module.views.float().cpu().clone()
    got = gradient(lambda: replayed(batch))
    seen = relative_error(module.views.float().cpu(), views)
    again = gradient(lambda: replayed(batch))
    other = replayed(batch).float().cpu().reshape(1)
    found = checks([check('loss', relative_error(got[0], want[0]), 1e-2),
                    check('gradient', relative_error(got[1], want[1]), 2e-2),
                    check('views', seen, 1e-2),
                    check('again', relative_error(again[1], got[1]), 1e-2)])
    found['control'] = relative_error(other, got[0])        # without seeding: other dropout
    found['passed'] = found['passed'] and found['control'] > 0
    return found


def check_form(device, name, tiny):
    "A candidate of steps.py against the trainer's step on the CPU, without dropout"
    import steps
    kind, options, precisions, _ = steps.FORMS[name]
    shape = steps.TINY if tiny else steps.TINY | {'hidden_size': 256, 'num_attention_heads': 4,
                                                  'intermediate_size': 1024}
    model = steps.make_model(shape, dropout=0.)
    rows = steps.make_batches(1, 8 if tiny else 64, shape['vocab_size'])[0]
    found = []

    def eager(step):
        loss = step.backward(step.moved(step.prepare(rows)))
        grad = torch.cat([p.grad.flatten().cpu() for p in step.parameters])
        step.update()
        return loss.float().cpu().reshape(1), grad

    want, gradient = eager(steps.Padded(copy.deepcopy(model), 'fp32'))
    for precision in precisions:
        bound = 1e-3 if precision == 'fp32' else 5e-2
        step = kind(copy.deepcopy(model).to(device), precision, **options)
        if options.get('graph'):
            path = steps.Padded(copy.deepcopy(model), 'fp32')
            after = [path(path.prepare(rows)) for _ in range(6)][3:]    # three steps warm up
            got = [step(step.prepare(rows)).clone().cpu() for _ in range(3)]
            found += [check(f'{precision} step {i}', abs(a-b)/b, bound/10)
                      for i, (a, b) in enumerate(zip(got, after, strict=True))]
        else:
            loss, grad = eager(step)
            found += [check(f'{precision} loss', relative_error(loss, want), bound/10),
                      check(f'{precision} gradient', relative_error(grad, gradient), bound)]
    return checks(found)


class Resume:
    """Small trainings: a whole one (twice on a GPU), and one that is killed and goes on.

    They run in a process of their own beside the other checks, the last part in a second one.
    """
    def __init__(self, device, folder, tiny):
        self.device, self.folder, self.twice = device, Path(folder), not tiny
        self.process = self.start(['whole', *(['again'] if self.twice else []), 'killed'], 8)

    def start(self, names, die=0):
        command = [sys.executable, str(HERE/'resume.py'), *(str(self.folder/n) for n in names),
                   '--device', self.device, '--die', str(die)]
        path = os.pathsep.join([str(HERE.parents[1]), os.environ.get('PYTHONPATH', '')])
        threads = {} if self.device == 'cuda' else {'OMP_NUM_THREADS': '1'}
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                text=True, env=os.environ | {'PYTHONPATH': path} | threads)

    def end(self, code):
        "Wait for the process; it must end with this code"
        said, _ = self.process.communicate(timeout=60 if self.device == 'cuda' else 900)
        found = self.process.returncode
        if found != code: raise RuntimeError(f'exit code {found}, not {code}: {said[-300:]}')

    def stop(self):
        if self.process.poll() is None: self.process.kill()

    def read(self, name):
        return (json.loads((self.folder/name/'end.json').read_text()),
                load_file(self.folder/name/'end.safetensors'))

    def check(self):
        "The killed training against the whole one; errors are shares of what training moved"
        from sfr_repro.encode.encoder import SentenceEncoder
        self.end(-signal.SIGKILL)
        if (self.folder/'killed/end.json').exists(): raise RuntimeError('nothing was killed')
        self.process = self.start(['killed'])
        self.end(0)
        whole, killed = self.read('whole'), self.read('killed')
        again = self.read('again') if self.twice else whole
        start = SentenceEncoder.from_pretrained('sfr-mini').model.state_dict()
        moved = max((whole[1][k] - x).abs().max().item() for k, x in start.items())
        def apart(a, b): return max((a[1][k] - b[1][k]).abs().max().item() for k in start)/moved
        def equal(a, b): return all(torch.equal(a[1][k], b[1][k]) for k in start)
        same = killed[0]['generators'] == whole[0]['generators']
        found = checks([check('weights', apart(killed, whole), 1e-2),
                        check('random generators', 0. if same else 1., 0.5),
                        check('steps repeated', killed[0]['steps_here'], 11)])
        return found | {
            'bit_equal': equal(killed, whole) and killed[0]['losses'] == whole[0]['losses'],
            'two_whole_runs_bit_equal': equal(again, whole) if self.twice else None,
            'two_whole_runs_apart': apart(again, whole),
            'line': f'bit-equal {equal(killed, whole)}, apart {apart(killed, whole):.1e} '
                    f'(two whole runs: {equal(again, whole)}, {apart(again, whole):.1e}), '
                    f'generators equal {same}'}


def main(argv=None):
    "Run the checks; 0, or 1 when one failed"
    arguments = parse(__doc__.splitlines()[0], argv, 1.5)
    device, tiny = arguments.device, arguments.tiny
    for backend in (torch.backends.cuda.matmul, torch.backends.cudnn): backend.allow_tf32 = False
    report, resume = Report('correct', arguments), None
    if arguments.only in 'resume after a kill':
        import tempfile
        folder = tempfile.TemporaryDirectory()
        resume = Resume(device, folder.name, tiny)
    try:
        for name in list(LOSSES):
            report.item(f'loss {name}', lambda n=name: check_loss(n, device, tiny))
        count = 14 if tiny else 62
        report.item('step infonce', lambda: check_step(device, 'infonce', count))
        report.item('step softcse_weight with a teacher',
                    lambda: check_step(device, 'softcse_weight', count))
        report.item('chunks with dropout', lambda: check_chunks_with_dropout(device, count))
        report.item('vectors of sfr-mini', lambda: check_vectors(device, 14 if tiny else 400))
        if device == 'cuda':
            from sfr_repro.losses.registry import make_loss
            for name in LOSSES:
                if not make_loss(name).needs:
                    report.item(f'replay {name}', lambda n=name: check_replay(n, count))
        if resume: report.item('resume after a kill', resume.check)
        for name in FORMS:
            if device == 'cuda' or not name.endswith(('graph', 'compiled')):
                report.item(f'form {name}', lambda n=name: check_form(device, n, tiny))
    finally:
        if resume:
            resume.stop()
            folder.cleanup()
    return report.end()


if __name__ == '__main__': sys.exit(main())
