"The wheel, as a user gets it: built from the repo, installed in a fresh environment, run there."
import email
import email.policy
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path
import pytest
from conftest import ROOT, files_of_the_repo, quiet

pytestmark = pytest.mark.once

def run(cwd, *args, **env):
    "What a command prints, run in folder `cwd` without sight of this repo"
    done = subprocess.run([str(a) for a in args], **quiet(cwd, **env))
    assert not done.returncode, f'{args}\n{done.stdout}\n{done.stderr}'
    return done.stdout

@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
    "Built from a copy of what git holds, so that no left-over of an older build gets in"
    src, out = tmp_path_factory.mktemp('src'), tmp_path_factory.mktemp('wheel')
    for p in files_of_the_repo():
        to = src/p.relative_to(ROOT)
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(p, to, follow_symlinks=False)
    run(out, sys.executable, '-m', 'pip', 'wheel', '--no-deps', '--no-build-isolation',
        '--no-index', '-q', '-w', out, src)
    return next(out.glob('*.whl'))

@pytest.fixture(scope='module')
def installed(wheel, tmp_path_factory):
    "A fresh environment with the wheel, and by path the dependencies of this one, not editable"
    venv = tmp_path_factory.mktemp('fresh')/'venv'
    run(venv.parent, sys.executable, '-m', 'venv', '--without-pip', venv)
    run(venv.parent, sys.executable, '-m', 'pip', '--python', venv/'bin/python', 'install', '-q',
        '--no-deps', '--no-index', wheel)
    site = next(venv.glob('lib/python*/site-packages'))
    paths = sysconfig.get_paths()
    folders = dict.fromkeys([paths['purelib'], paths['platlib']])
    (site/'dependencies.pth').write_text('\n'.join(folders) + '\n')
    return venv

def test_wheel_holds_the_package_and_its_assets(wheel, settings):
    names = set(zipfile.ZipFile(wheel).namelist())
    files = {p.relative_to(ROOT).as_posix() for p in files_of_the_repo()}
    ours = {o for o in files if o.startswith('sfr_repro/')}
    assert any('/assets/' in o for o in ours), 'no assets: this test sees nothing'
    assert ours <= names, sorted(ours - names)[:5]
    meta = f'{settings["lib_name"]}-{settings["version"]}.dist-info'
    assert {o.split('/')[0] for o in names} == {'sfr_repro', meta}
    text = zipfile.ZipFile(wheel).read(f'{meta}/METADATA').decode()
    for req in settings['requirements'].split(): assert f'Requires-Dist: {req}' in text

def metadata(wheel):
    "What the package index shows, and the long description"
    archive = zipfile.ZipFile(wheel)
    name, = (o for o in archive.namelist() if o.endswith('.dist-info/METADATA'))
    return email.message_from_bytes(archive.read(name), policy=email.policy.default)

def test_long_description_is_the_readme_with_links_that_lead_out(wheel, settings):
    text = metadata(wheel).get_payload(decode=True).decode()
    shown = text.strip()
    readme = (ROOT/'README.md').read_text(encoding='utf-8').strip()
    git, branch = settings['git_url'], settings['branch']
    for place in ('blob', 'raw'): shown = shown.replace(f'({git}/{place}/{branch}/', '(')
    assert shown == readme
    links = re.findall(r'\]\(([^)\s]+)\)', text)
    assert len(links) > 50 and all(re.match('https?:', o) for o in links), 'a link leads nowhere'
    assert f'{git}/raw/{branch}/nbs/records/index.png' in links

def test_the_index_is_told_what_this_is(wheel, settings):
    said = metadata(wheel)
    kinds = said.get_all('Classifier')
    tested = settings['tested_python'].split()
    assert tested[0] == settings['min_python'] and said['Requires-Python'] == f'>={tested[0]}'
    for v in tested: assert f'Programming Language :: Python :: {v}' in kinds
    assert 'Development Status :: 3 - Alpha' in kinds
    assert said['License-Expression'] == 'Apache-2.0'
    urls = dict(o.split(', ') for o in said.get_all('Project-URL'))
    assert urls['Source'] == settings['git_url'] and urls['Changelog'].endswith('/CHANGELOG.md')
    assert urls['Documentation'] == settings['doc_host'] + settings['doc_baseurl']

def test_the_fresh_package_is_the_one_that_runs(installed, tmp_path):
    code = 'import sfr_repro; print(sfr_repro.__file__)'
    where = run(tmp_path, installed/'bin/python', '-c', code).strip()
    assert Path(where).is_relative_to(installed), where

def test_command_line(installed, tmp_path):
    assert 'reproduce' in run(tmp_path, installed/'bin/sfr-repro', '--help')
    presets = run(tmp_path, installed/'bin/sfr-repro', 'presets')
    for name in ('smoke', 'embedded', 'paper'): assert name in presets

def test_embedded_encoder_opens(installed, tmp_path):
    code = ('from sfr_repro.encode.encoder import SentenceEncoder; '
            "v = SentenceEncoder.from_pretrained('sfr-mini').encode(['a b']); "
            'print(v.shape, v.dtype)')
    out = run(tmp_path, installed/'bin/python', '-c', code, HF_HUB_OFFLINE='1', SFR_DATA='none')
    assert out.splitlines()[-1] == '(1, 256) float32'
    assert not list(tmp_path.iterdir()), 'left something in the working folder'
