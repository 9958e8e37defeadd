"Hard negatives and triples in the losses"
import pytest
from sfr_repro.core.checks import autograd_gradient, relative_error, unit
from sfr_repro.core.errors import UserError
from sfr_repro.losses.registry import LOSSES, make_loss

HARD = [name for name, spec in LOSSES.items() if spec.hard]

def references(loss, B, M):
    v, w = unit(B, 4, seed=5), unit(B+M, 4, seed=6)
    return {n: (v, w) for n in loss.needs}

def test_the_losses_that_compare_with_a_list_take_them():
    assert HARD == ['infonce', 'arccon', 'mpt', 'met', 'mat', 'simulated_gradient',
                    'softcse_weight', 'softcse_temperature']
    h = unit(4, 3)
    for name in set(LOSSES)-set(HARD):
        with pytest.raises(UserError, match=f'{name} was given h_neg'): make_loss(name)(h, h, h)

@pytest.mark.parametrize('name', HARD)
@pytest.mark.parametrize('B,M', [(5, 5), (4, 8), (1, 3)])
def test_value_gradient_and_components(name, B, M):
    loss = make_loss(name, normalize=True)
    views = 2*unit(B, 4, seed=1), unit(B, 4, seed=2), unit(M, 4, seed=3)/3
    given = references(loss, B, M)
    auto = autograd_gradient(lambda *x: loss(*x, **given), *views)
    hand = loss.grad(*views, **given)
    assert [g.shape for g in hand] == [v.shape for v in views]
    assert max(map(relative_error, hand, auto)) < 1e-9
    c = loss.components(*views, **given)
    assert c.weight.shape == (B, B+M) and not c.weight.diagonal().any()
    unit_loss = make_loss(name)
    units = [v/v.norm(dim=1, keepdim=True) for v in views]
    composed = c.gradient(units[0], units[1], units[2])
    assert relative_error(composed, unit_loss.grad(*units, **given)[0]) < 1e-9

def test_without_hard_negatives_nothing_changes():
    h, h_pos = unit(6, 4, seed=1), unit(6, 4, seed=2)
    for name in HARD:
        loss = make_loss(name)
        assert loss.constants.get('hard_negative_weight') is None
        assert len(loss.grad(h, h_pos, **references(loss, 6, 0))) == 2

def test_a_weight_for_the_own_one_is_a_constant():
    h, h_pos, h_neg = (unit(4, 3, seed=k) for k in range(3))
    one, real = (make_loss('infonce', hard_negative_weight=x) for x in (1, 1.))
    assert repr(one) == repr(real) == 'infonce(tau=0.05, hard_negative_weight=1)'
    assert one(h, h_pos, h_neg) > make_loss('infonce')(h, h_pos, h_neg)
    with pytest.raises(UserError, match='there is no h_neg to weigh'): one(h, h_pos)
    with pytest.raises(UserError, match='3 hard negatives for 4 anchors'): one(h, h_pos, h_neg[:3])
    with pytest.raises(UserError, match='it must be a finite number'):
        make_loss('infonce', hard_negative_weight='a')
    with pytest.raises(UserError, match="mpt has no constant 'hard_negative_weight'"):
        make_loss('mpt', hard_negative_weight=1)
