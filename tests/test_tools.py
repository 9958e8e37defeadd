"Programs of this folder: a notebook that hangs is ended with its name, and rhythm is counted."
import ast
import json
import time
import pytest
import rhythm
import run_notebooks

pytestmark = pytest.mark.once

def notebook(path, *sources):
    "A notebook with these code cells"
    cells = [{'cell_type': 'code', 'id': f'cell{i}', 'metadata': {}, 'execution_count': None,
              'outputs': [], 'source': o} for i, o in enumerate(sources)]
    about = {'kernelspec': {'name': 'python3', 'display_name': 'python3', 'language': 'python'}}
    whole = {'cells': cells, 'metadata': about, 'nbformat': 4, 'nbformat_minor': 5}
    path.write_text(json.dumps(whole))
    return path

def test_a_notebook_that_hangs_is_ended_with_its_name(tmp_path):
    beat = tmp_path/'beat'
    child = 'from pathlib import Path\nimport time\nwhile True:\n    time.sleep(.1)\n'
    child += f'    Path({str(beat)!r}).write_text(str(time.time()))'
    hang = f'import subprocess, sys\nsubprocess.run([sys.executable, "-c", {child!r}])'
    names = [notebook(tmp_path/'passes.ipynb', 'x = 1', '#| slow\nraise ValueError'),
             notebook(tmp_path/'fails.ipynb', 'assert 0'),
             notebook(tmp_path/'hangs.ipynb', f'#| hide\n{hang}'),
             notebook(tmp_path/'dies.ipynb', 'import os', 'os._exit(0)')]
    wrong = {o.name: why for o, _, why in run_notebooks.run_all(names, hang=20)}
    assert wrong['passes.ipynb'] is None and wrong['fails.ipynb'] == wrong['dies.ipynb'] == 'failed'
    assert 'was in "import subprocess, sys"' in wrong['hangs.ipynb']
    last = beat.read_text()
    time.sleep(1)
    assert beat.read_text() == last, 'what a hanging cell has started goes on'

def test_no_step_of_make_test_has_a_time_limit():
    makefile = (run_notebooks.ROOT/'Makefile').read_text(encoding='utf-8')
    assert 'timeout' not in makefile and run_notebooks.HANG >= 30*60

def test_rhythm_of_known_cells():
    export, other = '#| export\ndef f(): return 1', 'assert f() == 1'
    def share(*sources): return (r := rhythm.rhythm(sources)).followed, r.exports
    assert share(export, other, export, other) == (0, 2)
    assert share(export, export, other) == (1, 2)
    assert share('#| exports\nx = 1', 'f', export) == (1, 2)            # a name shows nothing
    assert share(export, 'repr(f)\n', '#| hide\nshow_doc(f)', export) == (1, 2)
    assert share(export, 'f()', export) == (0, 2)                       # a call does
    assert share('#| export\nimport os', export, other) == (0, 1)       # imports are no thing
    assert share('#| exporti\nx = 1', '#| export: x') == (0, 0)

def test_counts_of_known_code():
    nested = ast.parse('[[x for x in y] for y in z], [x for y in z for x in y], [x for x in y]')
    counts = rhythm.nested_comprehensions(nested), rhythm.comprehensions_of_two(nested)
    assert counts == (1, 1)
    source = 'def f(\n    a,\n):\n    "What"\n    b = a\n\n    return b\ndef g(x): return x\n'
    assert rhythm.signature_and_body(ast.parse(source), source.splitlines()) == (4, 3)
