"Paper B's table of all-mpnet-base-v2, measured with the model itself, if its packages are there."
from importlib.metadata import PackageNotFoundError, distribution
import pytest
from sfr_repro.analysis.published_geometry import published_record
from sfr_repro.encode.mpnet import MPNET, MPNET_PARTS, mpnet_folder
from sfr_repro.results.published_geometry import deviations_of_geometry

def installed():
    "Whether all five parts of the model are installed"
    try: return all(distribution(part) for part in MPNET_PARTS)
    except PackageNotFoundError: return False

pytestmark = pytest.mark.skipif(not installed(), reason='needs pip install "sfr_repro[mpnet]"')

@pytest.fixture(scope='module')
def folder(tmp_path_factory): return mpnet_folder(tmp_path_factory.mktemp('model')/MPNET)

@pytest.mark.parametrize('products, missed', [('fp32', [('norm', 11)]), ('tf32', [])])
def test_the_published_numbers(folder, data_folder, products, missed):
    record = published_record(folder, source=data_folder, seeds=range(2), products=products)
    table = deviations_of_geometry({MPNET: record})
    fixed = table[table.measure != 'anisotropy']        # two draws have no range
    assert len(fixed) == 43
    assert [(r.measure, r.layer) for r in fixed[~fixed.within].itertuples()] == missed
