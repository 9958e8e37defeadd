"""What each departure from SentEval's classifiers does to a score.

`python tests/departures.py` measures one at a time, prints each as it comes, and writes
nbs/records/published/transfer_departures.csv anew. It takes half an hour or more on one core and
needs the sets of the data folder."""
import argparse
import copy
import csv
import sys
import warnings
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold
from sklearn.multiclass import OneVsRestClassifier
from torch.nn.functional import cross_entropy
from tqdm.auto import tqdm
from sfr_repro.core.errors import UserError
from sfr_repro.core.provenance import code_state
from sfr_repro.data.transfer import load_transfer
from sfr_repro.encode.encoder import SentenceEncoder, weights_sha256
from sfr_repro.evaluate.tasks import vectors_of
from sfr_repro.evaluate.transfer import (
    CS,
    FOLDS,
    SEED,
    cross_validate,
    fit_regression,
    pair_features,
    score_transfer,
    senteval_order,
)

CSV = ROOT/'nbs'/'records'/'published'/'transfer_departures.csv'
SETS = ('CR', 'MRPC', 'TREC')                        # without splits, pairs, more than two classes
DECAYS = (1e-5, 1e-4, 1e-3, 1e-2)                    # of SentEval's PyTorch classifier

class Adam:
    """SentEval's PyTorch classifier without a hidden layer, written anew: four passes at a time
    until the held-out accuracy failed to rise six times"""
    def __init__(self, decay): self.decay = decay
    def fit(self, x, y, held=None):
        np.random.seed(SEED); torch.manual_seed(SEED)
        if held is None:                             # at the end: a twentieth of the training part
            mixed = np.random.permutation(len(x))
            out, rest = np.split(mixed, [len(x)//20])
            held, (x, y) = (x[out], y[out]), (x[rest], y[rest])
        x, y = torch.tensor(x, dtype=torch.float32), torch.tensor(y)
        held = torch.tensor(held[0], dtype=torch.float32), held[1]
        layer = torch.nn.Linear(x.shape[1], int(y.max())+1)
        step, best, late = torch.optim.Adam(layer.parameters(), weight_decay=self.decay), -1., 0
        for _ in range(51):
            for batch in (b for _ in range(4)
                          for b in torch.tensor(np.random.permutation(len(x))).split(64)):
                step.zero_grad(); cross_entropy(layer(x[batch]), y[batch]).backward(); step.step()
            if (score := self._score(layer, *held)) > best:
                best, self.layer = score, copy.deepcopy(layer)
            elif (late := late+1) > 5: break
        return self
    @torch.no_grad()
    def _score(self, layer, x, y): return float((layer(x).argmax(1).numpy() == y).mean())
    def score(self, x, y): return self._score(self.layer, torch.tensor(x, dtype=torch.float32), y)

class Penalised:
    "Solved to the end, the intercept a weight like the others"
    def __init__(self, C): self.C = C
    def fit(self, x, y):
        self.model = LogisticRegression(C=self.C, solver='newton-cholesky', tol=1e-6, max_iter=1000,
                                        fit_intercept=False).fit(self._more(x), y)
        return self
    def _more(self, x): return np.c_[x, np.ones(len(x))]
    def score(self, x, y): return self.model.score(self._more(x), y)

class Solved:
    "The classifier here"
    def __init__(self, C): self.C = C
    def fit(self, x, y): return fit_regression(x, y, self.C)

def choose(make, values, held=False):
    """`train(x, y)` that takes the first of the best values by ten folds; with `held`, the held-out
    fold says when to stop too"""
    def train(x, y):
        scores = np.zeros((len(values), FOLDS))
        folds = StratifiedKFold(FOLDS, shuffle=True, random_state=SEED).split(x, y)
        for k, (a, b) in enumerate(folds):
            for i, v in enumerate(values):
                more = ((x[b], y[b]),) if held else ()
                scores[i,k] = make(v).fit(x[a], y[a], *more).score(x[b], y[b])
        return make(values[int(np.argmax(scores.mean(1).round(4)))]).fit(x, y)
    return train

def without_a_twentieth(Cs):
    "The classifier here, fitted at last on what a random twentieth leaves"
    def train(x, y):
        kept = np.random.RandomState(SEED).permutation(len(x))[len(x)//20:]
        return fit_regression(x[kept], y[kept], cross_validate(x, y, Cs)[0].C)
    return train

def accuracy(d, x, train, ordered=True):
    "Of the test split, or the mean over ten folds"
    rows = {s: senteval_order(d, d.rows(s)) if ordered else d.rows(s) for s in d.counts}
    if 'all' not in rows:
        return train(x[rows['train']], d.labels[rows['train']]).score(x[rows['test']],
                                                                      d.labels[rows['test']])
    x, y = x[rows['all']], d.labels[rows['all']]
    return np.mean([train(x[a], y[a]).score(x[b], y[b])
                    for a, b in StratifiedKFold(FOLDS, shuffle=True, random_state=SEED).split(x,
                                                                                              y)])

def variants(d, x):
    "Name -> accuracy of one departure, as a function"
    whole = 'all' in d.counts
    Cs, many = CS['all' if whole else 'test'], len(d.classes) > 2
    n = .81*len(d) if whole else .9*len(d.rows('train'))
    rest = (lambda make: lambda C: OneVsRestClassifier(make(C))) if many else (lambda make: make)
    sklearn = lambda **k: lambda C: LogisticRegression(C=C, **k)
    chosen = lambda make, values: accuracy(d, x, choose(make, values))
    liblinear = sklearn(solver='liblinear', random_state=SEED)
    solved = sklearn(solver='newton-cholesky', tol=1e-6, max_iter=1000)
    grid = tuple((1 if many else 2)/(n*l) for l in DECAYS[::-1])    # two weight vectors, or one
    found = {'here': lambda: score_transfer(d, x).accuracy,
        'intercept penalised': lambda: accuracy(d, x, choose(Penalised, Cs)),
        'SentEval, scikit-learn (liblinear)': lambda: chosen(rest(liblinear), Cs),
        'SentEval, PyTorch (Adam)': lambda: accuracy(d, x, choose(Adam, DECAYS, held=True)),
        "grid of Adam's four decays, solved to the end": lambda: chosen(Solved, grid),
        'a twentieth of the training part left out at the end':
            lambda: accuracy(d, x, without_a_twentieth(Cs)),
        'folds dealt in the order of the file': lambda: accuracy(d, x, choose(Solved, Cs),
                                                                 ordered=False),
        "scikit-learn's default solver and tolerance (lbfgs)": lambda: chosen(sklearn(), Cs)}
    if many: found['one class against the rest'] = lambda: chosen(rest(solved), Cs)
    return found | {f'folds of seed {SEED+s}': lambda s=s: score_transfer(d, x, SEED+s).accuracy
                    for s in (1,2,3,4)}

def features(d, encoder):
    "What the classifier reads, in float64"
    row = {s: i for i, s in enumerate(dict.fromkeys(d.sentences))}
    v = vectors_of(encoder, list(row), False)
    u = v[[row[s] for s in d.sentence1]]
    return (pair_features(u, v[[row[s] for s in d.sentence2]]) if d.sentence2
            else u).astype(np.float64)

def measure(sets, encoder):
    "Rows of the CSV, as they are measured"
    code, weights = code_state(), weights_sha256(encoder.model)[:12]
    commit = f"{(code['commit'] or 'none')[:7]}{' with changes' if code['dirty'] else ''}"
    model = f"{encoder.pooler} pooling, weights {weights}"
    source = f"{model}; tests/departures.py at commit {commit}"
    for d in sets:
        every = variants(d, features(d, encoder))
        for name, score in tqdm(every.items(), desc=d.name, disable=None):
            with warnings.catch_warnings():
                # solvers that end early are what is measured
                warnings.simplefilter('ignore')
                yield {'encoder': encoder.name, 'set': d.name, 'departure': name,
                       'accuracy': f'{100*score():.2f}', 'source': source}

def main(argv=None):
    ask = argparse.ArgumentParser(description=__doc__)
    ask.add_argument('--out', default=CSV, help='where the table goes; default: the committed one')
    ask.add_argument('--sets', nargs='+', default=SETS,
                     help=f"of the seven transfer sets; default: {' '.join(SETS)}")
    o = ask.parse_args(argv)
    rows = []
    try:
        for row in measure([load_transfer(s) for s in o.sets],
                           SentenceEncoder.from_pretrained('sfr-mini', pooler='mean')):
            rows.append(row)
            print(f"{row['set']:5s} {row['departure']:55s} {row['accuracy']}", flush=True)
    except UserError as e:
        print(f'departures: {e}', file=sys.stderr)
        sys.exit(2)
    with open(o.out, 'w', newline='') as f:
        table = csv.DictWriter(f, rows[0], lineterminator='\n')
        table.writeheader(); table.writerows(rows)

if __name__ == '__main__': main()
