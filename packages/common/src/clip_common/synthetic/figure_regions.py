"""The regions of a walking figure that two doctors watched."""

from clip_common.regions import REGIONS
from clip_common.synthetic.figures import Clip

_ASTRAY, _FURTHER = 0.05, 0.1  # how often a doctor watches another region instead, or one more


def watched_regions(clip: Clip, *, doctor: int) -> tuple[str, ...]:
    """Return the one or two regions that a doctor (1 or 2) watched in a clip, in the order of `REGIONS`.

    In 19 of 20 clips the doctor watches the region that the subject complains about, otherwise another; in one of ten a
    further region is added. This does not depend on the condition: in a normal subject the doctor watched that region
    and found nothing. The region therefore tells where to look, and only the video tells what is there: with K
    pathologies, a classifier of the region alone is right K times in K + 1.
    """
    random = clip.generator(f"walk doctor {doctor}")
    complaint = clip.subject.region
    others = [region for region in REGIONS if region != complaint]
    first = others[random.integers(len(others))] if random.random() < _ASTRAY else complaint
    further = [region for region in REGIONS if region != first]
    watched = {first, further[random.integers(len(further))]} if random.random() < _FURTHER else {first}
    return tuple(region for region in REGIONS if region in watched)
