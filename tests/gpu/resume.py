"""Small trainings, for `correct.py`: `python resume.py FOLDER... [--device cuda] [--die N]`.

Each leaves `end.json` and `end.safetensors` in its folder: the last weights, the state of every
random generator, and the losses. With `--die N` the last one kills the process in its N-th step.
The same folder without `--die` goes on from its last checkpoint.
"""
import argparse
import hashlib
import json
import os
import pickle
import random
import signal
from pathlib import Path

os.environ.setdefault('HF_HUB_OFFLINE', '1')
import numpy as np
import torch
from report import import_trainer
from safetensors.torch import save_file
from sfr_repro.core.checks import seed_all
from sfr_repro.core.config import TrainConfig
from sfr_repro.data.mini_sts import load_mini_corpus
from sfr_repro.encode.encoder import SentenceEncoder, make_head, tokenize
from sfr_repro.losses.registry import make_loss

STEPS, EVERY, BATCH = 12, 3, 16


def generators(device):
    "Hash of the state of each random generator"
    states = {'torch': torch.get_rng_state(), 'numpy': np.random.get_state(),
              'python': random.getstate()}
    if device == 'cuda': states['cuda'] = torch.cuda.get_rng_state()
    def digest(x):
        data = x.numpy().tobytes() if isinstance(x, torch.Tensor) else pickle.dumps(x)
        return hashlib.sha256(data).hexdigest()
    return {k: digest(x) for k, x in states.items()}


def main(argv=None):
    parser = argparse.ArgumentParser()
    parser.add_argument('folders', type=Path, nargs='+')
    parser.add_argument('--device', default='cuda')
    parser.add_argument('--die', type=int, default=0)
    arguments = parser.parse_args(argv)
    torch.backends.cuda.matmul.allow_tf32 = False
    *whole, last = arguments.folders
    for folder in whole: training(folder, arguments.device)
    training(last, arguments.device, arguments.die)


def training(folder, device, die=0):
    "One training of twelve steps"
    folder.mkdir(parents=True, exist_ok=True)
    seed_all(0)
    encoder = SentenceEncoder.from_pretrained('sfr-mini', pooler='cls', dropout=.1).to(device)
    head = make_head('linear', encoder.dim, .006).to(device)
    ids = tokenize(encoder.tokenizer, load_mini_corpus()[:400], 32)
    infonce, calls, seen = make_loss('infonce'), [], {}

    def loss(*views, **tensors):
        calls.append(1)
        if len(calls) == die: os.kill(os.getpid(), signal.SIGKILL)
        return infonce(*views, **tensors)

    def select():
        seen['weights'] = {k: x.detach().cpu().clone().contiguous()
                           for k, x in encoder.model.state_dict().items()}
        seen['generators'] = generators(device)
        return {'norm': -sum(float(p.detach().norm()) for p in encoder.model.parameters())}

    config = TrainConfig(batch=BATCH, steps=STEPS, eval_every=EVERY, precision='fp32')
    trainer = import_trainer()
    watch = trainer.train(encoder, head, loss, ids, config, select, folder/'run',
                          options=trainer.TrainOptions(progress=False, minutes=0.))
    save_file(seen['weights'], folder/'end.safetensors')
    losses = {p['step']: p['loss'] for p in watch.trajectory}
    (folder/'end.json').write_text(json.dumps({
        'generators': seen['generators'], 'losses': losses, 'steps_here': len(calls)}))


if __name__ == '__main__': main()
