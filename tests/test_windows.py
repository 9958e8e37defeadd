"The package, its command line and the losses on Windows, as far as another system can tell."
import ast
import subprocess
import sys
import pytest
from conftest import ROOT, quiet
from on_windows import MODULES, NAMES

pytestmark = pytest.mark.once
PACKAGE = sorted((ROOT/'sfr_repro').rglob('*.py'))
# A console of Western Europe, and a locale in which an encoding that is not named is ASCII
LOCALE = {'LC_ALL': 'C', 'PYTHONCOERCECLOCALE': '0', 'PYTHONUTF8': '0',
          'PYTHONIOENCODING': 'cp1252:strict', 'HF_HUB_OFFLINE': '1', 'SFR_DATA': 'none'}
TEXT_READERS = {'read_text', 'write_text'}

# ---------------------------------------------------------------- by inspection

def lacking(tree):
    "What a module uses that Windows lacks"
    found = []
    for n in ast.walk(tree):
        if isinstance(n, ast.Import): found += [a.name for a in n.names if a.name in MODULES]
        if isinstance(n, ast.ImportFrom) and not n.level:
            if n.module in MODULES: found.append(n.module)
            names = NAMES.get(n.module, ())
            found += [f'{n.module}.{a.name}' for a in n.names if a.name in names]
        if isinstance(n, ast.Attribute) and isinstance(n.value, ast.Name):
            if n.attr in NAMES.get(n.value.id, ()): found.append(f'{n.value.id}.{n.attr}')
    return found

def called(n):
    "The name of what is called"
    return getattr(n.func, 'attr', getattr(n.func, 'id', ''))

def mode(n):
    "The mode of a call of `open`, as it is written"
    given = [*n.args[1:2], *(k.value for k in n.keywords if k.arg == 'mode')]
    return getattr(given[0], 'value', '') if given else 'r'

def unnamed_encodings(tree):
    "Lines on which a text file is opened in the encoding of the machine"
    calls = [n for n in ast.walk(tree) if isinstance(n, ast.Call)]
    opens = [n for n in calls if getattr(n.func, 'id', '') == 'open' and 'b' not in mode(n)]
    texts = [n for n in calls if called(n) in TEXT_READERS]
    return sorted(n.lineno for n in opens + texts if 'encoding' not in {k.arg for k in n.keywords})

def test_planted_faults_are_seen():
    "The control"
    code = ('import fcntl, os\nfrom signal import SIGKILL\nfrom pwd import x\n'
            'os.fork()\nos.kill(1, 9)')
    assert sorted(lacking(ast.parse(code))) == ['fcntl', 'os.fork', 'pwd', 'signal.SIGKILL']
    code = ('p.read_text()\nopen(p)\nopen(p, "rb")\nopen(p, mode="w")\n'
            'p.write_text(x, encoding="utf-8")\np.open("rb")')
    assert unnamed_encodings(ast.parse(code)) == [1, 2, 4]

def test_the_package_uses_nothing_that_windows_lacks():
    assert len(PACKAGE) > 50
    for p in PACKAGE: assert not lacking(ast.parse(p.read_text(encoding='utf-8'))), p

def test_the_package_names_the_encoding_of_each_text():
    for p in PACKAGE:
        lines = unnamed_encodings(ast.parse(p.read_text(encoding='utf-8')))
        assert not lines, f'{p}: {lines}'

# ---------------------------------------------------------------- by running it

def on_windows(tmp_path, program, *args):
    "What a program prints, with the package as on Windows"
    file = tmp_path/'program.py'
    file.write_text(program, encoding='utf-8')
    kwargs = quiet(ROOT, **LOCALE, SFR_RUNS=str(tmp_path/'runs'), OMP_NUM_THREADS='1')
    kwargs['encoding'] = 'cp1252'
    command = [sys.executable, str(ROOT/'tests/on_windows.py'), str(file), *args]
    return subprocess.run(command, **kwargs)

def passes(tmp_path, program, *args):
    done = on_windows(tmp_path, program, *args)
    assert not done.returncode, done.stdout[-2000:] + done.stderr[-3000:]
    return done.stdout

@pytest.mark.parametrize('line, says', [
    ('import fcntl', 'ModuleNotFoundError'),
    ('from pwd import getpwuid', 'ModuleNotFoundError'),
    ('import os\nos.getloadavg()', "no attribute 'getloadavg' on Windows"),
    ('from signal import SIGKILL', 'ImportError'),
    ('open(__file__).read()', 'UnicodeDecodeError'),
    ("print('\\u2265')", 'UnicodeEncodeError'),
])
def test_what_windows_lacks_is_lacking(tmp_path, line, says):
    "The control: the package would meet these errors; \u2265 is not in the console's code page"
    body = f'# \u2265\n{line}\n'
    program = (f'source = {body!r}\nfrom pathlib import Path\n'
               'p = Path(__file__).with_name("part.py")\np.write_text(source, encoding="utf-8")\n'
               'exec(compile(source, p, "exec"), {"__name__": "sfr_repro.part", '
               '"__file__": str(p), "__package__": "sfr_repro"})\n')
    done = on_windows(tmp_path, program)
    assert done.returncode and says in done.stderr, done.stderr[-2000:]

def test_every_module_is_imported(tmp_path):
    names = [p.relative_to(ROOT).with_suffix('').as_posix().replace('/', '.') for p in PACKAGE]
    names = [n for n in names if not n.rpartition('.')[2].startswith('_')]
    assert len(names) > 50
    program = ('import importlib, sys\n'
               f'for name in {names!r}: importlib.import_module(name)\n'
               'print(len(sys.modules))')
    assert int(passes(tmp_path, program)) > len(names)

def test_every_loss_has_its_gradient(tmp_path):
    program = '''
import torch
from sfr_repro.core.checks import unit
from sfr_repro.losses.registry import LOSSES, make_loss
for name,spec in LOSSES.items():
    h,h_pos = unit(6, 4, seed=0).requires_grad_(), unit(6, 4, seed=1).requires_grad_()
    v = unit(6, 4, seed=2)
    needs = {n: (v @ v.T).clamp(-1, 1) for n in spec.needs}
    loss = make_loss(name)
    auto = torch.autograd.grad(loss(h, h_pos, **needs), (h, h_pos))
    hand = loss.grad(h.detach(), h_pos.detach(), **needs)
    for a,b in zip(auto, hand, strict=True): torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
    print(name)
'''
    assert len(passes(tmp_path, program).split()) >= 18

# Each argument is a command line; what each prints ends with its exit status
MAIN = '''
import sys
from sfr_repro.cli import main
for words in sys.argv[1:]:
    sys.argv = ["sfr-repro", *words.split()]
    try: main()
    except SystemExit as e: print("exit", e.code or 0)
'''

COMMANDS = {'--help': 'reproduce', 'presets': 'embedded', 'losses': 'mhe_repaired',
            'records list': 'infonce', 'plan infonce.toml': 'h100',
            'run infonce.toml --check': 'valid'}

def test_command_line(tmp_path):
    lines = [o.replace('infonce.toml', 'nbs/experiments/infonce.toml') for o in COMMANDS]
    *shown, rest = passes(tmp_path, MAIN, *lines).lower().split('exit 0\n')
    assert len(shown) == len(COMMANDS) and not rest
    for says, text in zip(COMMANDS.values(), shown, strict=True): assert says in text, text

def test_a_mistake_is_one_sentence(tmp_path):
    done = on_windows(tmp_path, MAIN, 'run nowhere.toml')
    assert done.stdout.strip() == 'exit 2' and 'Traceback' not in done.stderr
    assert done.stderr.startswith('sfr-repro: ') and 'nowhere.toml' in done.stderr

def test_reproduce_then_evaluate_what_it_trained(tmp_path):
    program = MAIN + '''
from pathlib import Path
model, = {p.parent for p in Path(__file__).parent.rglob("model/config.json")}
sys.argv = ["sfr-repro", "evaluate", str(model)]
main()
'''
    shown = passes(tmp_path, program, 'reproduce --preset smoke')
    assert 'Committed records' in shown and 'pooling' in shown.partition('Page: ')[2]

def test_a_model_whose_name_is_not_ascii_is_saved(tmp_path):
    program = '''
import sys
from sfr_repro.encode.encoder import SentenceEncoder, save_encoder
encoder = SentenceEncoder.from_pretrained("sfr-mini")
encoder.name = "mod\\u00e8le"
save_encoder(encoder, sys.argv[1])
print(SentenceEncoder.from_pretrained(sys.argv[1]).encode(["a b"]).shape)
'''
    assert passes(tmp_path, program, str(tmp_path/'model')).strip().endswith('(1, 256)')
    assert 'modèle' in (tmp_path/'model/README.md').read_text(encoding='utf-8')
