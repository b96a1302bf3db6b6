"""Names of the methods that take any network; `learned` reads embeddings of facs-flow alone and is tested apart."""

from fsmer.transfer import list_methods

NAMES = [one.name for one in list_methods() if one.name != "learned"]
