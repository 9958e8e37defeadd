"""`make gpu-data`: one ignored folder with all that `make gpu` needs beside the tracked files.

It holds the training sentences that paper A's experiments draw (128,000 of wiki_2014, sample 0),
the STS sets, and a stamp: the commit and a hash of the code, so that records made where there is no
git are accepted as clean. The folder is a data folder like any other; a machine without network
reads it.
"""
import argparse
import gzip
import json
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
from sfr_repro.core.errors import UserError
from sfr_repro.core.provenance import code_hash, code_state
from sfr_repro.data.corpus import load_corpus
from sfr_repro.data.sources import resolve
from sfr_repro.data.sts import STS_SETS

CORPUS, SENTENCES, SEED = 'wiki_2014', 128_000, 0


def write_data(out, sentences=SENTENCES):
    "The folder, anew; what it says of itself"
    source = resolve('folder')
    corpus = load_corpus(CORPUS, sentences, seed=SEED, source=source)
    state = code_state()
    if state['dirty']:
        raise UserError('the tree has uncommitted changes: commit them first, records name a '
                        'commit')
    if not state['commit']: raise UserError('no commit is known here: run this in a clone')
    if out.resolve() == source.root.resolve():
        raise UserError(f'{out} is the data folder itself: name another one')
    if out.exists() and any(out.iterdir()) and not (out/'code.json').is_file():
        raise UserError(f'{out} holds something else, and it is not replaced: name a new folder')
    shutil.rmtree(out, ignore_errors=True)
    for part in ('corpus', 'sts'): (out/part).mkdir(parents=True)
    with gzip.GzipFile(out/f'corpus/{CORPUS}.txt.gz', 'wb', mtime=0) as f:
        f.write('\n'.join(corpus.sentences).encode() + b'\n')
    for name in STS_SETS: shutil.copy(source.root/f'sts/{name}.tsv', out/'sts')
    said = {'version': state['version'], 'commit': state['commit'], 'code_hash': code_hash(ROOT),
            'corpus': corpus.describe()}
    (out/'code.json').write_text(json.dumps(said, indent=1) + '\n')
    return said


def main(argv=None):
    ask = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ask.add_argument('--out', type=Path, default=ROOT/'gpu-data')
    ask.add_argument('--sentences', type=int, default=SENTENCES, help='fewer, for the tests')
    o = ask.parse_args(argv)
    try: said = write_data(o.out, o.sentences)
    except UserError as e:
        print(f'gpu-data: {e}', file=sys.stderr)
        return 2
    size = sum(p.stat().st_size for p in o.out.rglob('*') if p.is_file())
    print(f'{o.out}: {said["corpus"]["rows"]:,} sentences, {len(STS_SETS)} STS sets, commit '
          f'{said["commit"][:7]}, ' f'{size/1e6:.1f} MB')
    return 0


if __name__ == '__main__': sys.exit(main())
