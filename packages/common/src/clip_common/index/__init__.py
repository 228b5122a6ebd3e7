"""An index of vectors of any items (images, texts, sounds): stored on disk, updated in place, searched at any width.

Needs the extra `clip` (safetensors, filelock).

    index = VectorIndex.open_or_create(folder, model=fingerprint, model_name="ViT-B-32", collection="photos")
    changes = index.changes(stamps)  # {id: stamp} of the current items
    index.delete([*changes.gone, *changes.changed])
    index.add(ids, vectors_ND, stamps=[stamps[id] for id in ids])
    index.save()
    index.nearest(query_D, k=10)  # exact
    index.nearest(query_D, k=10, dim=64, candidates=200)  # a first pass over 64 numbers, 200 items at full width
    certify(index, query_QD, k=10, dim=64, candidates=200).recall  # of that search, against the exact one
"""

from clip_common.index.certificate import Certificate, certify
from clip_common.index.distinct import drop_near_duplicates
from clip_common.index.files import Changes, find_changes, scan_folder, stamp_file
from clip_common.index.first import First
from clip_common.index.search import Neighbour
from clip_common.index.segments import VectorIndexError
from clip_common.index.store import VectorIndex

__all__ = [
    "Certificate",
    "Changes",
    "First",
    "Neighbour",
    "VectorIndex",
    "VectorIndexError",
    "certify",
    "drop_near_duplicates",
    "find_changes",
    "scan_folder",
    "stamp_file",
]
