"Everything this says comes from settings.ini and README.md"
from configparser import ConfigParser
from pathlib import Path
import setuptools

here = Path(__file__).resolve().parent
parser = ConfigParser(delimiters=['='])
parser.read(here/'settings.ini', encoding='utf-8')
cfg = parser['DEFAULT']
lib = cfg['lib_path']
readme = here/'README.md'

setuptools.setup(
    name=cfg['lib_name'], version=cfg['version'], description=cfg['description'],
    long_description=readme.read_text(encoding='utf-8') if readme.exists() else cfg['description'],
    long_description_content_type='text/markdown',
    author=cfg['author'], author_email=cfg['author_email'],
    url=cfg['git_url'], keywords=cfg['keywords'],
    license={'apache2': 'Apache-2.0'}[cfg['license']], license_files=['LICENSE'],
    packages=setuptools.find_packages(include=[lib, f'{lib}.*']),
    # weights and own sentences; an editable install hides it when this is missing
    package_data={lib: ['assets/**/*']},
    install_requires=cfg['requirements'].split(),
    extras_require={k: cfg[f'{k}_requirements'].split()
                    for k in ('dev', 'compare', 'mpnet', 'mteb', 'sentence_transformers')},
    python_requires=f">={cfg['min_python']}",
    entry_points={'console_scripts': cfg['console_scripts'].split(),
                  'nbdev': [f'{lib}={lib}._modidx:d']},
    zip_safe=False,
)
