"""All that a release needs, short of publishing: `make release-check` runs it.

facts  settings.ini, CHANGELOG.md and CITATION.cff name one version; with TAG, that tag names it
       too, and the changelog has its day
build  source archive and wheel from the commit that is checked out, into dist/; the wheel is built
       from the source archive, and `twine check --strict` passes
run    the wheel in a fresh environment, torch first, the rest at the versions of constraints.txt;
       there `sfr-repro` says its help and runs the smallest reproduction, offline

The tools have an environment of their own, by release_requirements of settings.ini.
"""
import configparser
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
HIDDEN = ('PYTHONPATH', 'PYTHONHOME', 'VIRTUAL_ENV', 'SFR_RUNS')
OFFLINE = {'SFR_DATA': 'none', 'HF_HUB_OFFLINE': '1'}

def settings():
    "settings.ini, the one configuration"
    found = configparser.ConfigParser(delimiters=['='])
    found.read(ROOT/'settings.ini', encoding='utf-8')
    return found['DEFAULT']

def version_faults(version, changelog, citation, tag=''):
    "What does not name this version; the changelog's newest entry is '## VERSION, DAY'"
    newest = re.search(r'^## (\S+?)(?:, (.+))?$', changelog, re.M)
    cited = re.search(r'^version: (\S+)$', citation, re.M)
    said = {'CHANGELOG.md': newest and newest[1], 'CITATION.cff': cited and cited[1]}
    wrong = [f'{name} says version {v}, settings.ini {version}' for name, v in said.items()
             if v != version]
    if not tag: return wrong
    if tag != f'v{version}': wrong.append(f'the tag is {tag}, settings.ini says {version}')
    dated = newest and re.fullmatch(r'\d{4}-\d\d-\d\d', newest[2] or '')
    if not dated: wrong.append(f'CHANGELOG.md has no day for {version}')
    return wrong

def run(*args, cwd=ROOT, **env):
    "What a command prints, without sight of this folder's package; its failure ends the check"
    kept = {k: v for k, v in os.environ.items() if k not in HIDDEN}
    done = subprocess.run([str(a) for a in args], cwd=cwd, env=kept | env, text=True,
                          stdin=subprocess.DEVNULL, capture_output=True)
    if done.returncode:
        sys.exit(f'{done.stdout}{done.stderr}\nmake: {" ".join(map(str, args))} failed')
    return done.stdout

def say(text): print(f'\n== {text}', flush=True)

def environment(folder):
    "A fresh environment; returns its `python -I -m pip install`, as a list"
    run(sys.executable, '-m', 'venv', folder)
    return [folder/'bin/python', '-I', '-m', 'pip', '--disable-pip-version-check', 'install', '-q']

def build(work, requirements):
    "dist/ with a source archive and a wheel that twine has nothing to say about"
    say('build: source archive and wheel from the commit that is checked out')
    source, tools, dist = work/'source', work/'tools', ROOT/'dist'
    run('git', 'archive', '-o', work/'source.tar', 'HEAD')
    with tarfile.open(work/'source.tar') as archive: archive.extractall(source, filter='data')
    run(*environment(tools), *requirements)
    shutil.rmtree(dist, ignore_errors=True)
    run(tools/'bin/python', '-m', 'build', '--outdir', dist, source)
    print(run(tools/'bin/python', '-m', 'twine', 'check', '--strict',
              *dist.iterdir(), NO_COLOR='1').strip())
    wheel, = dist.glob('*.whl')
    return wheel

def use(work, wheel, version):
    "Install the wheel as a user does, and run it"
    say('run: the wheel in a fresh environment')
    fresh, pins = work/'fresh', ROOT/'constraints.txt'
    install = environment(fresh)
    torch, = re.findall(r'^torch==\S+$', pins.read_text(encoding='utf-8'), re.M)
    run(*install, torch)
    run(*install, '-c', pins, wheel)
    print(run(fresh/'bin/python', '-I', '-m', 'pip', 'check').strip())
    found = run(fresh/'bin/python', '-c', 'import sfr_repro; print(sfr_repro.__version__)',
                cwd=work).strip()
    if found != version: sys.exit(f'make: the wheel says version {found}, settings.ini {version}')
    if 'reproduce' not in run(fresh/'bin/sfr-repro', '--help', cwd=work):
        sys.exit('make: sfr-repro --help does not name reproduce')
    smoke = [fresh/'bin/sfr-repro', 'reproduce', '--preset', 'smoke', '--out', work/'runs']
    print(run(*smoke, cwd=work, **OFFLINE).strip().splitlines()[-1].rpartition('/')[2], 'is there')

def main():
    said = settings()
    version = said['version']
    if changed := run('git', 'status', '--porcelain').strip():
        sys.exit(f'make: a release is built from a commit; not committed:\n{changed}')
    say(f'facts: version {version}')
    read = lambda name: (ROOT/name).read_text(encoding='utf-8')
    wrong = version_faults(version, read('CHANGELOG.md'), read('CITATION.cff'),
                           os.environ.get('TAG', ''))
    if wrong: sys.exit('make: ' + '; '.join(wrong))
    with tempfile.TemporaryDirectory() as work:
        work = Path(work)
        use(work, build(work, said['release_requirements'].split()), version)
    say('dist/ is ready: ' + ', '.join(sorted(p.name for p in (ROOT/'dist').iterdir())))

if __name__ == '__main__': main()
