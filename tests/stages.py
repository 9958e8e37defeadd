"""Commands that start at once, and get a signal at a moment that is named, on any machine the same.

Each is a fork of a process that has imported the package, so none waits for torch. A moment is the
nth call of one of the package's functions; `calls_of` counts the calls of a whole command.
"""
import ctypes
import json
import multiprocessing
import os
import resource
import shutil
import subprocess
import sys
import traceback
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

CONTEXT = multiprocessing.get_context('forkserver')
PRELOADED = ('analysis.geometry_record', 'cli', 'encode.mpnet', 'evaluate.tasks',
             'losses.registry', 'pretrain.recipe', 'results.isotropy', 'results.report',
             'train.plan', 'train.run', 'train.trainer')
# outside of these a signal is Python's own
DOORS = ('sfr_repro.cli:main', 'sfr_repro.core.stopping:')

def preload(): CONTEXT.set_forkserver_preload([f'sfr_repro.{name}' for name in PRELOADED])

class Calls:
    "Counts the calls of the package's functions; at one it sends a signal, or removes a folder"
    def __init__(self, moment=None): self.moment, self.counts = moment, Counter()

    def __call__(self, frame, event, arg):
        if event != 'call': return
        module = frame.f_globals.get('__name__', '')
        if not module.startswith('sfr_repro.'): return
        name = f'{module}:{frame.f_code.co_qualname}'
        self.counts[name] += 1
        if self.moment and (name, self.counts[name]) == tuple(self.moment[:2]):
            what = self.moment[2]
            if isinstance(what, str): shutil.rmtree(what, ignore_errors=True)
            else: os.kill(os.getpid(), what)

def limit(size):
    "No file may grow above so many bytes; what would exceed them is an error, not a signal"
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))

def give_up_rights():
    "Root, too, may then write only what the permissions say; nothing happens to other users"
    header, none = (ctypes.c_uint32*2)(0x20080522, 0), (ctypes.c_uint32*6)()
    ctypes.CDLL(None).capset(header, none)

def _say_to(file, number):
    "Let a process without limits write what this one says"
    with open(file, 'wb') as to:
        pipe = subprocess.Popen(['cat'], stdin=subprocess.PIPE, stdout=to)
    os.dup2(pipe.stdin.fileno(), number)
    pipe.stdin.close()
    return pipe

def _child(words, cwd, env, said, moment, largest, records):
    import torch
    from sfr_repro.core.config import SMOKE_SIZE
    from sfr_repro.results import report
    os.chdir(cwd)
    for k, v in env.items():
        if v is None: os.environ.pop(k, None)
        else: os.environ[k] = v
    torch.set_num_threads(1)
    if Path('tiny').is_dir(): SMOKE_SIZE['encoder']['name'] = 'tiny'
    pipes = [_say_to(f'{said}.{name}', number) for name, number in (('out', 1), ('err', 2))]
    if records: report.records_folder = lambda kind='runs': Path(records)/kind
    sys.argv, calls, code = ['sfr-repro', *words], Calls(moment), 0
    if largest: limit(largest)
    give_up_rights()
    try:
        from sfr_repro.cli import main
        sys.setprofile(calls)
        main()
    except SystemExit as e: code = e.code or 0
    except BaseException:
        code = 1
        traceback.print_exc()
    sys.setprofile(None)
    sys.stdout.flush(), sys.stderr.flush()
    limit(resource.RLIM_INFINITY)
    Path(f'{said}.calls').write_text(json.dumps(calls.counts))
    os.close(1), os.close(2)
    for p in pipes: p.wait()
    os._exit(code)

ENVIRONMENT = {'HF_HUB_OFFLINE': '1', 'SFR_DATA': 'none', 'SFR_CODE': None, 'SFR_RUNS': None,
               'OMP_NUM_THREADS': '1'}

@dataclass
class Command:
    "One command that was started"
    process: object
    said: Path # Where its words go: `.out`, `.err`, and `.calls` of a whole one

    def wait(self, seconds=None):
        "Its exit status, -9 after a kill"
        self.process.join(seconds)
        assert self.process.exitcode is not None, f'it hangs: {self.err}'
        return self.process.exitcode
    def read(self, name):
        file = self.said.with_name(f'{self.said.name}.{name}')
        return file.read_text(errors='replace') if file.exists() else ''
    @property
    def out(self): return self.read('out')
    @property
    def err(self): return self.read('err')
    @property
    def calls(self): return json.loads(self.read('calls'))

_numbers = iter(range(10**9))

def start(*words, cwd, moment=None, largest=None, records=None, **env):
    """Start a command. `moment` is a function's name, which of its calls, and a signal, or a folder
    that vanishes then; `largest` bounds the bytes of a file; `records` holds the kept ones"""
    said = Path(cwd)/'said'/str(next(_numbers))
    said.parent.mkdir(exist_ok=True)
    env = ENVIRONMENT | {'SFR_CACHE': str(Path(cwd)/'cache')} | env
    preload()
    process = CONTEXT.Process(target=_child, args=([str(w) for w in words], str(cwd), env,
                                                   str(said), moment, largest,
                                                   records and str(records)))
    process.start()
    return Command(process, said)

def finish(*words, **how):
    "Run a command to its end"
    command = start(*words, **how)
    command.wait()
    return command

# ---------------------------------------------------------------- what the commands do

# runs of the smallest size; where the folder holds `tiny`, the preset smoke takes it as encoder
FILES = {
    'x.toml': 'preset = "smoke"\nseeds = [0]\n[train]\nsteps = 6\nlr = 1e-3\n',
    't.toml': 'preset = "smoke"\nseeds = [0]\n[train]\nsteps = 4\n[loss]\n'
              'name = "softcse_weight"\n[teacher]\nname = "tiny"\n[evaluate]\n'
              'tasks = ["sts", "geometry"]\n',
    'p.toml': 'preset = "smoke"\n[pretrain]\nschedule = [[0, 0], [3, 1.0], [8, 0]]\n'
              'eval_every = 4\n'}
STAGES = (('run', 'x.toml'), ('pretrain', 'p.toml'),
          ('evaluate', 'tiny', '--tasks', 'sts,geometry'),
          ('analyse', 'tiny', '--sentences', 'texts.txt'), ('reproduce', '--preset', 'smoke'),
          ('run', 't.toml'))

def make_workplace(folder):
    "A tiny encoder, sentences, and the experiments of `STAGES`"
    import torch
    from transformers import BertConfig, BertModel
    from sfr_repro.data.mini_sts import load_mini_corpus
    from sfr_repro.encode.encoder import SentenceEncoder
    tokenizer = SentenceEncoder.from_pretrained('sfr-mini').tokenizer
    small = BertConfig(vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1,
                       num_attention_heads=2, intermediate_size=32, max_position_embeddings=128)
    torch.manual_seed(0)
    model = BertModel(small, add_pooling_layer=False).eval()
    SentenceEncoder(model, tokenizer).save_pretrained(folder/'tiny')
    (folder/'texts.txt').write_text('\n'.join(load_mini_corpus()[:80])+'\n', encoding='utf-8')
    for name, text in FILES.items(): (folder/name).write_text(text)
    return folder

def draw_moment(calls, draw, signals):
    "A function, any as likely as another, one of its calls, and a signal"
    name = draw.choice([n for n in sorted(calls) if not n.startswith(DOORS)])
    return name, draw.randint(1, calls[name]), draw.choice(signals)

def hidden(*folders):
    "What unfinished writes have left"
    return [p for folder in folders for p in Path(folder).rglob('.*')
            if '.sfr-' in p.name]
