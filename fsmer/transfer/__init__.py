"""From a backbone and a few labelled clips to a recognizer: methods, `adapt`, recognizers and domain diagnostics."""

from fsmer.transfer.adapt import adapt, recognizer_of_words
from fsmer.transfer.full_training import train
from fsmer.transfer.heads import Head
from fsmer.transfer.method import Method
from fsmer.transfer.mmd import MMDResult, mmd
from fsmer.transfer.recognizer import Recognizer
from fsmer.transfer.registry import MethodInfo, list_methods, load_method, register_method
from fsmer.transfer.source_model import MethodError, SourceModel

__all__ = [
    "Head", "MMDResult", "Method", "MethodError", "MethodInfo", "Recognizer", "SourceModel", "adapt", "list_methods",
    "load_method", "mmd", "recognizer_of_words", "register_method", "train",
]  # fmt: skip
__dir__ = __all__.copy  # tab completion shows public names only
