"""The micro-expression data sets: who owns them and where to ask for them.

None of them may be passed on by others; this table is what fsmer can say when one is not there.
"""

from __future__ import annotations

from dataclasses import dataclass

from fsmer.data.schemes import canonical_dataset

__all__ = ["DATASETS", "DatasetInfo", "dataset_info"]

_SIGNED = "free for academic research under a signed licence agreement"


@dataclass(frozen=True)
class DatasetInfo:
    """Owner, paper and licence of a data set.

    Parameters
    ----------
    key : str
        Name in tables and protocols, as `fsmer.data.canonical_dataset` gives it.
    title : str
        Full name.
    owner : str
        Institution that gives it out.
    paper : str
        Paper that introduces it.
    licence : str
        Kind of licence.
    url : str or None
        Page with the application form, where one is known.
    """

    key: str
    title: str
    owner: str
    paper: str
    licence: str = _SIGNED
    url: str | None = None

    def where_to_request(self) -> str:
        """One phrase that says where to request it."""
        page = f", {self.url}" if self.url else ""
        return f"request {self.title} from {self.owner}{page} ({self.licence}; {self.paper})"


_CAS = "the Institute of Psychology, Chinese Academy of Sciences"
_OULU = "the Center for Machine Vision and Signal Analysis, University of Oulu"
_SMIC_PAPER = "Li et al., A spontaneous micro-expression database: inducement, collection and baseline, FG 2013"
_SMIC_PAGE = "https://www.oulu.fi/cmvs/node/41319"

DATASETS: dict[str, DatasetInfo] = {
    info.key: info
    for info in (
        DatasetInfo(
            "casme",
            "CASME",
            _CAS,
            "Yan et al., CASME database: a dataset of spontaneous micro-expressions collected from neutralized faces, "
            "FG 2013",
            url="http://casme.psych.ac.cn/casme/e1",
        ),
        DatasetInfo(
            "casme2",
            "CASME II",
            _CAS,
            "Yan et al., CASME II: an improved spontaneous micro-expression database and the baseline evaluation, "
            "PLOS ONE 2014",
            url="http://casme.psych.ac.cn/casme/e2",
        ),
        DatasetInfo(
            "casme-squared",
            "CAS(ME)^2",
            _CAS,
            "Qu et al., CAS(ME)^2: a database for spontaneous macro-expression and micro-expression spotting and "
            "recognition, IEEE TAFFC 2018",
            url="http://casme.psych.ac.cn/casme/e3",
        ),
        DatasetInfo(
            "casme3",
            "CAS(ME)^3",
            _CAS,
            "Li et al., CAS(ME)^3: a third generation facial spontaneous micro-expression database with depth "
            "information and high ecological validity, IEEE TPAMI 2022",
            url="http://casme.psych.ac.cn/casme/e4",
        ),
        DatasetInfo(
            "samm",
            "SAMM",
            "Manchester Metropolitan University",
            "Davison et al., SAMM: a spontaneous micro-facial movement dataset, IEEE TAFFC 2018",
            url="https://helward.mmu.ac.uk/STAFF/m.yap/dataset.php",
        ),
        DatasetInfo("smic", "SMIC (its high-speed part, SMIC-HS)", _OULU, _SMIC_PAPER, url=_SMIC_PAGE),
        DatasetInfo("smic-vis", "SMIC (its visible-light part, SMIC-VIS)", _OULU, _SMIC_PAPER, url=_SMIC_PAGE),
        DatasetInfo("smic-nir", "SMIC (its near-infrared part, SMIC-NIR)", _OULU, _SMIC_PAPER, url=_SMIC_PAGE),
        DatasetInfo(
            "mmew",
            "MMEW",
            "Shandong University (group of Xianye Ben)",
            "Ben et al., Video-based facial micro-expression analysis: a survey of datasets, features and algorithms, "
            "IEEE TPAMI 2022",
            url="http://www.dpailab.com/database.html",
        ),
        DatasetInfo(
            "4dme",
            "4DME",
            _OULU,
            "Li et al., 4DME: a spontaneous 4D micro-expression dataset with multimodalities, IEEE TAFFC 2022",
        ),
    )
}


def dataset_info(name: str) -> DatasetInfo | None:
    """Entry of a data set in any spelling, or None where it is not a known one.

    Examples
    --------
    >>> dataset_info("CASME II").key
    'casme2'
    """
    return DATASETS.get(canonical_dataset(name))
