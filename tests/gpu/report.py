"""What these programs share: items that fail alone, a budget of minutes, one JSON file.

An item is one measurement. Its failure is recorded with type and message, and the next item runs.
The exit code is 1 when any item failed.
"""
import argparse
import json
import math
import platform
import sys
import time
import traceback
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
import torch

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ('torch', 'transformers', 'accelerate', 'sentence-transformers', 'numpy', 'triton')

# The training steps of steps.py, by name; those with a graph or compiled need a GPU
FORMS = ('padded', 'masked', 'buckets', 'unpadded', 'lean', 'masked graph', 'unpadded graph',
         'lean graph', 'lean efficient graph', 'lean compiled', 'lean compiled graph',
         'lean efficient compiled graph')
NEEDS = ('transformers', 'accelerate', 'safetensors', 'pydantic', 'pandas', 'numpy', 'scipy',
         'sentence_transformers')


def parse(description, argv, minutes):
    "The arguments that each program takes"
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument('--device', choices=('cuda', 'cpu'), default='cuda')
    parser.add_argument('--minutes', type=float, default=minutes, help='then leave out the rest')
    parser.add_argument('--tiny', action='store_true', help='the smallest sizes, for the tests')
    parser.add_argument('--out', type=Path, default=Path('runs/gpu'), help='folder of the file')
    parser.add_argument('--only', default='', help='items whose name contains this text')
    arguments = parser.parse_args(argv)
    if arguments.device == 'cuda' and not torch.cuda.is_available():
        parser.error('--device cuda: torch sees no CUDA device here, use --device cpu')
    return arguments


def versions():
    "Versions of what is compared; None where a package is missing"
    found = {'python': platform.python_version(), 'cuda': torch.version.cuda}
    for name in PACKAGES:
        try: found[name] = version(name)
        except PackageNotFoundError: found[name] = None
    return found


def plain(x):
    "For JSON, which has no infinity and no NaN: those become text"
    if isinstance(x, dict): return {str(k): plain(v) for k, v in x.items()}
    if isinstance(x, (list, tuple)): return [plain(v) for v in x]
    if isinstance(x, float) and not math.isfinite(x): return str(x)
    return x


class Report:
    "Runs items one after the other, prints a line for each, and keeps the file up to date"
    def __init__(self, name, arguments):
        self.path = arguments.out/f'{name}.json'
        self.arguments, self.start = arguments, time.monotonic()
        cuda = arguments.device == 'cuda'
        device = torch.cuda.get_device_name() if cuda else platform.machine()
        self.found = {'program': name, 'device': arguments.device, 'device_name': device,
                      'tiny': arguments.tiny, 'minutes': arguments.minutes,
                      'versions': versions(), 'items': []}
        self.say(f'{name}: {device}, torch {torch.__version__}, {arguments.minutes:g} minutes')
        self.found['missing'] = [n for n in NEEDS if find_spec(n) is None]
        if self.found['missing']:
            self.say(f'not installed here: {", ".join(self.found["missing"])}; what needs it fails')

    @property
    def seconds(self): return time.monotonic() - self.start

    def say(self, line): print(line, flush=True)

    def item(self, name, call):
        "`call() -> dict` with `line` for the reader, and `passed` where it is a check"
        if self.arguments.only not in name: return None
        entry = {'item': name}
        began = self.seconds
        if began >= 60*self.arguments.minutes:
            entry |= {'status': 'left out', 'line': f'left out: {began:.0f} s are over'}
        else:
            try:
                entry |= call()
                entry['status'] = 'passed' if entry.get('passed', True) else 'failed'
            except Exception as e:
                entry |= {'status': 'failed', 'line': f'{type(e).__name__}: {e}'.strip(),
                          'traceback': traceback.format_exc().splitlines()[-12:]}
            entry['took'] = round(self.seconds - began, 3)
        self.found['items'].append(entry)
        self.write()
        first = (entry.get('line') or '').splitlines()[:1]
        self.say(f'{self.seconds:6.1f} s  {entry["status"]:8} {name}: {"".join(first)[:700]}')
        return entry

    def write(self):
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.found['seconds'] = round(self.seconds, 1)
        part = self.path.with_suffix('.part')
        part.write_text(json.dumps(plain(self.found), indent=1) + '\n')
        part.replace(self.path)

    def end(self):
        "The last line, and the exit code"
        kinds = [i['status'] for i in self.found['items']]
        counts = {k: kinds.count(k) for k in ('passed', 'failed', 'left out')}
        self.found |= {'counts': counts, 'complete': True}
        self.write()
        said = ', '.join(f'{n} {k}' for k, n in counts.items())
        self.say(f'{self.found["program"]}: {said} in {self.seconds:.0f} s; {self.path}')
        return 1 if counts['failed'] else 0


def checks(found):
    "An item of named errors with bounds; a NaN never passes"
    wrong = [c for c in found if not c['error'] <= c['bound']]
    worst = max(found, key=lambda c: math.inf if c in wrong else c['error']/c['bound'])
    line = f'{worst["check"]} {worst["error"]:.1e} of {worst["bound"]:.0e}, {len(found)} checks'
    if wrong: line = f'{len(wrong)} wrong: {line}'
    for c in found: c['passed'] = c not in wrong
    return {'checks': found, 'passed': not wrong, 'line': line}


def check(name, error, bound): return {'check': name, 'error': float(error), 'bound': bound}


def import_trainer():
    """`sfr_repro.train.trainer`, also where tensorboard is missing.

    The trainer imports tensorboard at the top. Without it this program writes no such log.
    """
    if find_spec('tensorboard') is None and 'torch.utils.tensorboard' not in sys.modules:
        import types
        from transformers import TrainerCallback
        module = types.ModuleType('torch.utils.tensorboard')
        module.SummaryWriter = lambda *_: None
        sys.modules['torch.utils.tensorboard'] = module
        import sfr_repro.train.trainer as trainer
        trainer.TensorBoardCallback = lambda *_: TrainerCallback()
    import sfr_repro.train.trainer as trainer
    return trainer
