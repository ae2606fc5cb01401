"""The released checkpoints: their state dicts and flags, as ours and back."""

from adm.checkpoints.openai_fit import fit
from adm.checkpoints.openai_flags import Spec, check_flags, read_flags
from adm.checkpoints.openai_keys import is_classifier, move_to_ours, to_openai, to_ours
from adm.checkpoints.openai_shapes import Structure, infer
from adm.checkpoints.openai_words import write_flags, write_keywords

__all__ = [
    "Spec",
    "Structure",
    "check_flags",
    "fit",
    "infer",
    "is_classifier",
    "move_to_ours",
    "read_flags",
    "to_openai",
    "to_ours",
    "write_flags",
    "write_keywords",
]
