"The loss for sentence-transformers in several processes: the gradient of one with the whole batch"
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel as DDP
from conftest import found_by_processes
from sfr_repro.core.checks import relative_error
from sfr_repro.train.adapters import SentenceTransformersLoss

B, T, WORDS, W = 8, 4, 30, 2

class Model(nn.Module):
    "What a loss asks of a `SentenceTransformer`: features in, sentence vectors out"
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.words, self.top = nn.Embedding(WORDS, 12), nn.Linear(12, 6)
        self.double()
    def forward(self, features):
        mask = features['attention_mask'][..., None]
        x = (self.words(features['input_ids'])*mask).sum(1)/mask.sum(1)
        return {**features, 'sentence_embedding': self.top(x).tanh()}

def columns(rank=None):
    "Anchors, positives and negatives; a process has its rows of each"
    draw = torch.Generator().manual_seed(1)
    ids = torch.randint(0, WORDS, (3, B, T), generator=draw)
    if rank is not None: ids = ids.view(3, W, B//W, T)[:, rank]
    return [dict(input_ids=x, attention_mask=torch.ones_like(x)) for x in ids]

CASES = [('infonce', {}), ('infonce', dict(hard_negative_weight=1.)), ('met', {}),
         ('softcse_weight', dict(teacher='self')), ('mhe_repaired', {})]

def gradient(name, more, chunk, gather, rank=None):
    seen = columns(rank)[:2 if name == 'mhe_repaired' else 3]
    model = Model() if rank is None else DDP(Model())
    loss = SentenceTransformersLoss(model, name, chunk=chunk, gather_across_devices=gather, **more)
    loss(seen).backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()])

def gradients(rank):
    return {(k, chunk, gather): gradient(*case, chunk, gather, rank)
            for k, case in enumerate(CASES) for chunk in (None, 3) for gather in (True, False)}

def test_two_processes_have_the_gradient_of_one(tmp_path):
    found = found_by_processes(gradients, tmp_path, W)
    for k, case in enumerate(CASES):
        one = gradient(*case, None, False)
        for chunk in (None, 3):
            assert relative_error(gradient(*case, chunk, False), one) < 1e-9
            assert relative_error(found[k, chunk, True], one) < 1e-9, case
            assert relative_error(found[k, chunk, False], one) > .01, case     # the control
