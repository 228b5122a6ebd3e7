"""What looks wrong in a clip that can be read: joints, maps and frames that are rarely what was meant.

C channels of a map, T frames, S pixels a side.
"""

from clip_common.errors import DataError
from videoclip.config import DataConfig
from videoclip.data.decoding import probe
from videoclip.data.map_files import frames_are_last, read_array
from videoclip.data.maps import FRAMES_LAST, find_map_order, find_map_source, read_joints
from videoclip.data.pairs import Pair
from videoclip.data.records import ClipRecord

TOGETHER = "the joints of a frame are all within two pixels of each other"
OUTSIDE = "joints are outside the picture"
FAINT = "the map's maximum is below 0.05"
ONE_COLOUR = "frames are of one colour"

_PIXELS = 2.0
_LEAST_MAXIMUM = 0.05 * 255
_ONE_COLOUR = 8
"""Levels of 255 that the noise of an encoder spans."""


def find_symptoms(record: ClipRecord, pair: Pair, config: DataConfig, *, channels: int) -> list[str]:
    """Return what looks wrong in a clip, or was mended when it was read, each in words that need no clip's name.

    Keypoints are looked at even if no map is drawn from them.

    Args:
        record: The clip.
        pair: Its frames and map.
        config, channels: Those that the pair was read with.
    """
    found = []
    if record.keypoints is not None:
        try:
            found += _check_joints(record, config)
        except DataError as error:  # of joints that a map is drawn from, the pair would not have been read
            found.append(f"keypoints that `data.maps` does not use cannot be read ({error})")
    source = find_map_source(record, config, channels=channels)
    if source is not None and not source.regions and source.file.suffix in (".npy", ".npz"):
        array, _ = read_array(source.file)
        if frames_are_last(array.shape, find_map_order(source.file, record, channels=channels)):
            found.append(FRAMES_LAST)
    most = pair.map_CTSS.max()
    if source is not None and pair.map_CTSS.min() < most < _LEAST_MAXIMUM:
        found.append(FAINT)
    levels_T3P = pair.frames_T3SS.flatten(2)
    if bool((levels_T3P.amax(2) - levels_T3P.amin(2) <= _ONE_COLOUR).all(dim=1).any()):
        found.append(ONE_COLOUR)
    return found


def _check_joints(record: ClipRecord, config: DataConfig) -> list[str]:
    assert record.keypoints is not None
    joints = read_joints(record.keypoints, record, config)
    found, video = list(joints.mended), probe(record.video)
    frames = [joints_173[joints_173[:, 2] > 0, :2] for joints_173 in joints.joints_L173]
    spans = [places_N2.max(axis=0) - places_N2.min(axis=0) for places_N2 in frames if len(places_N2) > 1]
    if any((span <= _PIXELS).all() for span in spans):
        found.append(TOGETHER)
    most = (video.width + _PIXELS, video.height + _PIXELS)
    if any((places_N2 < -_PIXELS).any() or (places_N2 > most).any() for places_N2 in frames):
        found.append(OUTSIDE)
    return found
