"""A loss of one's own in five lines: InfoNCE's dissipation and weight, but MET's ratio.

MET's ratio pulls harder the closer the positive is.
"""
from sfr_repro.losses.paradigm import GD, Paradigm, R, W, loss_spec
from sfr_repro.losses.registry import register

def infonce_met(*, tau=.05):
    return Paradigm(GD.infonce(tau), W.softmax(tau)/tau, R.distance, moves="pairs")
register(loss_spec("infonce_met", infonce_met))
