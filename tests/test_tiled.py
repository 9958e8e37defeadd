"Tiled losses and losses of a user's own, through `make_loss`, `register` and `load_losses`."
import json
import math
import subprocess
import sys
import textwrap
from pathlib import Path
import pytest
import torch
from conftest import ROOT
from sfr_repro.core.checks import autograd_gradient, relative_error, unit
from sfr_repro.core.config import load_experiment
from sfr_repro.core.errors import UserError
from sfr_repro.losses.components import GD, R, W
from sfr_repro.losses.paradigm import Paradigm, loss_spec, recipe
from sfr_repro.losses.registry import LOSSES, load_losses, make_loss, register
from sfr_repro.losses.spec import LossSpec
from sfr_repro.losses.tiled import TILED, tiled_paradigm

# none divides B; the last is larger than it
TILES = [100, 512, 600]
# just beyond the rows that always take the plain form
B, D = 530, 8
CASES = [(f.__name__, {}) for f in TILED] + [('arccon', {'u': .5}), ('met', {'form': 'paper'}),
    ('simulated_gradient', {'power': 4.}),
    *(('softcse_weight', {'rule': r}) for r in ('W2', 'W3', 'W4')),
    ('softcse_temperature', {'rule': 'T2', 'mean_tau': False}),
    ('softcse_weight', {'control': 'shuffled'}), ('softcse_temperature', {'control': 'reversed'})]

@pytest.fixture(scope='module')
def views():
    h = unit(B, D, seed=0)
    v = unit(B, 5, seed=2)
    return h, torch.nn.functional.normalize(h + .5*unit(B, D, seed=1)), v

@pytest.fixture
def registry():
    before = dict(LOSSES)
    yield LOSSES
    LOSSES.clear(); LOSSES.update(before)

def errors(a, b, h, h_pos, given_a, given_b=None):
    "Relative errors of value, gradients by hand, and gradients by autograd"
    given_b = given_a if given_b is None else given_b
    f, g = (lambda x, y: a(x, y, **given_a)), (lambda x, y: b(x, y, **given_b))
    return [relative_error(f(h, h_pos)[None], g(h, h_pos)[None]),
            *(relative_error(x, y) for x, y in zip(a.grad(h, h_pos, **given_a),
                b.grad(h, h_pos, **given_b), strict=True)),
            *(relative_error(x, y) for x, y in zip(autograd_gradient(f, h, h_pos),
                autograd_gradient(g, h, h_pos), strict=True))]

# ---------------------------------------------------------------- equal to the plain form

@pytest.mark.parametrize('tile', TILES)
@pytest.mark.parametrize('name,constants', CASES, ids=str)
def test_tiled_is_plain(views, name, constants, tile):
    h, h_pos, v = views
    plain, tiled = make_loss(name, **constants), make_loss(name, tile=tile, **constants)
    given = {n: v @ v.T for n in plain.needs}
    assert max(errors(tiled, plain, h, h_pos, given)) < 1e-9
    assert tiled.name == plain.name and tiled.constants == plain.constants
    # the same reference as two factors, for either form
    for n in given:
        assert max(errors(tiled, plain, h, h_pos, {n: (v, v)}, given)) < 1e-9
        assert max(errors(plain, plain, h, h_pos, {n: (v, v)}, given)) < 1e-9

def test_the_comparison_can_fail(views):
    h, h_pos, v = views
    assert min(errors(make_loss('infonce', tau=.051, tile=100), make_loss('infonce'), h, h_pos,
                      {})) > 1e-3
    other = {'sim_ref': (v, v.flip(0))}
    assert errors(make_loss('softcse_weight', tile=100), make_loss('softcse_weight'), h, h_pos,
                  other, {'sim_ref': v @ v.T})[1] > 1e-3

def test_a_reference_of_two_views(views):
    # the model as its own teacher: not symmetric
    h, h_pos, _ = views
    given = {'sim_ref': (h, h_pos)}
    for name in ('softcse_weight', 'softcse_temperature'):
        assert max(errors(make_loss(name, tile=100), make_loss(name), h, h_pos, given,
                          {'sim_ref': h @ h_pos.T})) < 1e-9

def test_rows_of_any_length(views):
    h, h_pos, _ = views
    h = h*torch.linspace(.1, 9, B, dtype=h.dtype)[:, None]
    h[7] = 0
    plain, tiled = (make_loss('infonce', tau=.5, normalize=True, tile=t) for t in (None, 100))
    assert max(errors(tiled, plain, h, h_pos, {})) < 1e-9

@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.float16])
def test_precision(views, dtype):
    h, h_pos = (x.to(dtype) for x in views[:2])
    tiled, plain = (make_loss('infonce', tile=t) for t in (100, None))
    x = h.clone().requires_grad_()
    y = tiled(x, h_pos)
    g = torch.autograd.grad(y, x)[0]
    # computed in float32, handed back as it came
    assert y.dtype == torch.float32 and g.dtype == dtype
    torch.testing.assert_close(y.detach(), plain(h, h_pos), rtol=1e-5, atol=0)
    torch.testing.assert_close(tiled.grad(h, h_pos)[1], plain.grad(h, h_pos)[1], rtol=1e-3,
                               atol=1e-6)
    with torch.autocast('cpu', dtype=torch.bfloat16): assert tiled(h, h_pos).item() == y.item()

def test_extreme_batches():
    h = torch.zeros(600, 4, dtype=torch.float64)
    collapsed = h.clone()
    collapsed[:, 0] = 1
    for a, b in ((h, h), (collapsed, collapsed), (collapsed, -collapsed), (h, collapsed)):
        for name in TILED:
            plain, tiled = make_loss(name.__name__), make_loss(name.__name__, tile=128)
            given = {n: torch.zeros(600, 600, dtype=torch.float64) for n in plain.needs}
            found = (tiled(a, b, **given), *tiled.grad(a, b, **given))
            want = (plain(a, b, **given), *plain.grad(a, b, **given))
            for x, y in zip(found, want, strict=True):
                torch.testing.assert_close(x, y, rtol=1e-9, atol=1e-12)

def test_only_the_value_is_computed_without_a_graph(views):
    h, h_pos, _ = views
    loss = make_loss('infonce', tile=100)
    assert not loss(h, h_pos).requires_grad
    with torch.no_grad(): assert not loss(h.clone().requires_grad_(), h_pos).requires_grad
    x = h_pos.clone().requires_grad_()                          # a graph to one view only
    torch.testing.assert_close(torch.autograd.grad(3*loss(h, x), x)[0], 3*loss.grad(h, h_pos)[1],
                               rtol=1e-9, atol=1e-15)

def test_small_batches_take_the_plain_form():
    h, h_pos = unit(64, 4, seed=0), unit(64, 4, seed=1)
    assert make_loss('infonce', tile=8)(h, h_pos).item() == make_loss('infonce')(h, h_pos).item()
    one = make_loss('infonce', tile=8)
    assert one(h[:1], h_pos[:1]).item() == 0 and not one.grad(h[:1], h_pos[:1])[0].any()

# ---------------------------------------------------------------- mistakes

@pytest.mark.parametrize('tile', [0, -1, 1.5, True, '64', math.inf])
def test_a_tile_that_is_no_number_of_rows(tile):
    with pytest.raises(UserError, match='it must be a number of rows, at least 1'):
        make_loss('infonce', tile=tile)

@pytest.mark.once
@pytest.mark.parametrize('setting,words', [
    ('loss.tile=0', r'\[loss\] tile is 0'), ('train.chunk=0', r'\[train\] chunk is 0'),
    ('train.chunk=-1', r'\[train\] chunk is -1'),
    ('loss.tile=17', r'\[loss\] tile is 17: it must be at most train.batch, 16'),
    ('train.chunk=17', r'\[train\] chunk is 17: it must be at most train.batch, 16'),
    ('train.gradient_accumulation_steps=2',
     'accumulated batches add no negatives, so it is not offered')])
def test_sizes_that_an_experiment_may_not_have(setting, words):
    with pytest.raises(UserError, match=words) as e:
        load_experiment('smoke', ('train.batch=16', setting))
    assert '\n' not in str(e.value)
    load_experiment('smoke', ('train.batch=16', 'train.chunk=16', 'loss.tile=16'))

def test_losses_without_a_tiled_form_say_which_have_one():
    for name in set(LOSSES) - {f.__name__ for f in TILED}:
        said = (f'tile is 64: {name} has no tiled form, leave tile out; '
                'those that have one are infonce, arccon')
        with pytest.raises(UserError, match=said): make_loss(name, tile=64)

def test_references_of_the_wrong_shape(views):
    h, h_pos, v = views
    loss = make_loss('softcse_weight', tile=100)
    for wrong, words in (((v, v[:9]), 'factors of shape'), ((v,), 'must be two of'),
                         (v @ v[:9].T, 'it must be \\(530, 530\\)'),
                         (2*v @ v.T, 'reference similarities are cosines')):
        with pytest.raises(ValueError, match=words): loss(h, h_pos, sim_ref=wrong)

def test_no_second_derivative(views):
    h, h_pos, _ = views
    x = h.clone().requires_grad_()
    with pytest.raises(UserError, match='no second derivative'):
        torch.autograd.grad(make_loss('infonce', tile=100)(x, h_pos), x, create_graph=True)

# ---------------------------------------------------------------- compositions

@pytest.mark.parametrize('moves', ['views', 'pairs', 'alignment', 'anchors'])
@pytest.mark.parametrize('reduction', ['mean', 'active', 'entries', 'sum'])
def test_compositions(views, moves, reduction):
    h, h_pos, _ = views
    p = Paradigm(GD.margin(.4), 2*W.softmax(.1) + W.hardest, R.distance, moves=moves,
                 reduction=reduction)
    assert max(errors(tiled_paradigm(p, 100), p, h, h_pos, {})) < 1e-9

def test_composition_with_negatives_of_the_same_view_and_a_tensor(views):
    h, h_pos, v = views
    p = Paradigm(GD.nearest(.5), W.softmax(.1), R.joint(1.5), 'same')
    assert max(errors(tiled_paradigm(p, 64), p, h, h_pos, {})) < 1e-9
    p = recipe('softcse_weight', rule='W3')
    assert max(errors(tiled_paradigm(p, 64), p, h, h_pos, {'sim_ref': (v, v)},
                      {'sim_ref': v @ v.T})) < 1e-9

@pytest.mark.parametrize('role,p',
    [('weight', Paradigm(GD.off, W.pair_softmax, R.constant, 'same')),
    ('ratio', Paradigm(GD.off, W.softmax, R.correlation)),
    ('dissipation', Paradigm(lambda b: (b.pos < b.pos.mean()).to(b.h), W.softmax, R.constant)),
    ('weight', recipe('softcse_weight', control='shuffled'))])
def test_components_that_mix_rows_are_refused(role, p):
    said = (f"^{role} .*has no tiled form, leave tile out: "
            "it must be a function of its anchor's own row")
    with pytest.raises(UserError, match=said): tiled_paradigm(p, 100)

def test_registered_composition_is_tiled(views, registry):
    h, h_pos, _ = views
    register(loss_spec('mine', lambda *, ratio=1.: Paradigm(GD.infonce(.1), W.hardest,
        R.constant(ratio))))
    assert max(errors(make_loss('mine', ratio=1.5, tile=100), make_loss('mine', ratio=1.5), h,
                      h_pos, {})) < 1e-9
    register(Paradigm(GD.off, W.pair_softmax, R.constant, 'same'), 'crossed')
    with pytest.raises(UserError, match='pair_softmax.*has no tiled form'):
        make_loss('crossed', tile=100)

# ---------------------------------------------------------------- memory

PEAK = '''
    import json, re, sys, torch
    from pathlib import Path
    from sfr_repro.losses.registry import make_loss
    torch.manual_seed(0)
    def peak():
        # of this process alone, unlike ru_maxrss
        status = Path('/proc/self/status').read_text()
        return int(re.search(r'VmHWM:\\s+(\\d+)', status)[1])/1024
    def rows(B): return torch.nn.functional.normalize(torch.randn(B, 16)).requires_grad_()
    def grown(loss, B=4096):
        # the high-water mark starts again from here
        Path('/proc/self/clear_refs').write_text('5')
        before = peak()
        h, h_pos = rows(B), rows(B)
        given = {'sim_ref': (h.detach(), h_pos.detach())} if loss.needs else {}
        loss(h, h_pos, **given).backward()
        return peak()-before
    losses = {n: make_loss(n, tile=128) for n in sys.argv[1:]}
    for loss in losses.values(): grown(loss, 600)               # libraries take their buffers
    found = {n: grown(l) for n, l in losses.items()}
    print(json.dumps({**found, 'plain': grown(make_loss('infonce'))}))
'''

@pytest.mark.skipif(not Path('/proc/self/clear_refs').exists(),
                    reason='reads the high-water mark from /proc')
def test_peak_memory_is_below_one_matrix():
    "A 4096 x 4096 matrix has 64 MiB in float32; the strip of 128 rows has 2"
    names = [f.__name__ for f in TILED]
    out = subprocess.run([sys.executable, '-c', textwrap.dedent(PEAK), *names], cwd=ROOT,
                         capture_output=True, text=True)
    assert out.returncode == 0, out.stderr
    grown = json.loads(out.stdout)
    assert all(grown[n] < 40 for n in names), grown
    assert grown['plain'] > 128, grown                         # the control

def test_what_is_saved_is_linear(views):
    h, h_pos, _ = views
    def largest(loss):
        sizes = []
        def pack(x):
            sizes.append(x.numel())
            return x
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            loss(h.clone().requires_grad_(), h_pos.clone().requires_grad_())
        return max(sizes)
    assert largest(make_loss('infonce', tile=64)) == B*D and largest(make_loss('infonce')) == B*B

# ---------------------------------------------------------------- losses of a user's own

def test_registry_imports_nothing_more():
    code = ("import sys; import sfr_repro.losses.registry; "
            "print([m for m in sys.modules if m in ('transformers', 'scipy', 'sklearn')])")
    assert subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True,
                          text=True).stdout.strip() == '[]'

def test_register(registry, views):
    h, h_pos, v = views
    def mine(h, h_pos, sim_ref, *, tau=.1):
        return ((h*h_pos).sum(1)/tau).exp().mean() + sim_ref.mean()
    spec = register(mine)
    assert isinstance(spec, LossSpec) and spec is LOSSES['mine'] and spec.constants == {'tau': .1}
    assert spec.needs == ('sim_ref',)
    loss = make_loss('mine', tau=1)
    assert max(errors(loss, loss, h, h_pos, {'sim_ref': (v, v)})) == 0
    with pytest.raises(UserError, match="loss 'mine' exists already"): register(mine)
    with pytest.raises(UserError, match='mine has no tiled form'): make_loss('mine', tile=8)
    with pytest.raises(UserError, match="did you mean mine"): make_loss('mines')

def bad(h, h_pos): return (h*h_pos).sum()
@pytest.mark.parametrize('given,words', [
    (lambda: register(bad, 'not a name'), 'letters, digits and underscores'),
    (lambda: register(bad, 'infonce'), "'infonce' exists already"),
    (lambda: register(lambda *views: 0, 'a'), 'without \\*args'),
    (lambda: register(lambda h: h.sum(), 'b'), 'it must take \\(h, h_pos'),
    (lambda: register(lambda h, h_pos, **k: h.sum(), 'c'), 'without \\*args and \\*\\*kwargs'),
    (lambda: register(None), 'was given None'),
    (lambda: register(bad, 'd', grad=lambda h, h_pos: (h, h_pos)),
     "grad of 'd' differs from autograd"),
     (lambda: register(bad, 'e', grad=lambda h, h_pos: h), 'no pair'),
    (lambda: register(Paradigm(GD.off, W.softmax, R.constant)), 'a composition without a name')])
def test_what_register_refuses(registry, given, words):
    before = list(LOSSES)
    with pytest.raises(UserError, match=words): given()
    assert list(LOSSES) == before

FILE = '''
from __future__ import annotations
from dataclasses import dataclass
from sfr_repro.losses.paradigm import GD, R, W, Paradigm, loss_spec
from sfr_repro.losses.registry import LOSSES, register

@dataclass
class Kept: x: int = 1                                          # dataclasses look their module up

known = LOSSES['infonce']                                       # not this file's, left alone
second = loss_spec('second', lambda *, tau=.2: Paradigm(GD.infonce(tau), W.hardest, R.constant(1)))

def first(h, h_pos, *, tau=.1): return -((h*h_pos).sum(1)/tau).mean()
register(first)
'''

def test_a_file_of_losses(registry, tmp_path, views):
    path = tmp_path/'invented.py'
    path.write_text(FILE)
    assert load_losses(path) == ('first', 'second') == load_losses(str(path))
    assert make_loss('second', tau=.3, tile=8).constants == {'tau': .3}
    path.write_text(FILE.replace('register(first)', "register(first, 'third')"))
    assert load_losses(path) == ('third', 'second') and 'first' not in LOSSES
    path.write_text(FILE + '\nregister(first, "fourth")\nraise KeyError("late")\n')
    kept = list(LOSSES)
    with pytest.raises(UserError, match=r'invented.py, line 17: KeyError: .late.'):
        load_losses(path)
    assert list(LOSSES) == kept and not list(tmp_path.glob('__pycache__'))

def test_two_files_may_not_share_a_name(registry, tmp_path):
    for name in ('a.py', 'b.py'): (tmp_path/name).write_text(FILE)
    load_losses(tmp_path/'a.py')
    with pytest.raises(UserError, match=r"b.py, line 14: loss 'first' exists already"):
        load_losses(tmp_path/'b.py')
