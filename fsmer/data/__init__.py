"""Clips and clip sets, their media, label schemes, action units and readers."""

from fsmer.data.au_parser import AUExpression, ParsedAU, au_numbers, parse_aus
from fsmer.data.clips import Clip, ClipSet, TorchClips, collate_clips, concat
from fsmer.data.facs import ACTION_UNITS, ActionUnit, action_unit, describe_aus
from fsmer.data.index import read_index
from fsmer.data.media import ArrayStore, ConcatStore, ImageStore, LazyArray, ListStore, MediaStore, NpyStore
from fsmer.data.readers import as_clips, read_arrays, read_clips, read_frame
from fsmer.data.schemes import Exclusion, LabelScheme, RelabelReport, canonical_dataset, list_schemes, load_scheme
from fsmer.data.spec import InputSpec, register_input_kind
from fsmer.data.ststnet_release import read_ststnet

__all__ = [
    "ACTION_UNITS", "AUExpression", "ActionUnit", "ArrayStore", "Clip", "ClipSet", "ConcatStore", "Exclusion",
    "ImageStore", "InputSpec", "LabelScheme", "LazyArray", "ListStore", "MediaStore", "NpyStore", "ParsedAU",
    "RelabelReport", "TorchClips", "action_unit", "as_clips", "au_numbers", "canonical_dataset", "collate_clips",
    "concat", "describe_aus", "list_schemes", "load_scheme", "parse_aus", "read_arrays", "read_clips", "read_frame",
    "read_index", "read_ststnet", "register_input_kind",
]  # fmt: skip
__dir__ = __all__.copy  # tab completion shows public names only
