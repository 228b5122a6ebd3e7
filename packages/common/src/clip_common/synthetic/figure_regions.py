"""Which regions of a walking figure two doctors watched."""

from clip_common.regions import REGIONS
from clip_common.synthetic.figures import Clip

_ASTRAY, _FURTHER = 0.05, 0.1  # how often a doctor looks at another region instead, and at one more


def watched_regions(clip: Clip, *, doctor: int) -> tuple[str, ...]:
    """One or two regions that a doctor (1 or 2) watched in a clip, in the order of `REGIONS`.

    It is the region that the subject complains of, in 19 clips of 20; in one of ten a further one is added. This does
    not depend on the condition: in a normal subject the doctor looked at that region and found nothing. So a region
    says where to look, and only the video says what is seen there: of K pathologies, whoever knows the region alone is
    right K times in K + 1.
    """
    random = clip.generator(f"walk doctor {doctor}")
    complaint = clip.subject.region
    others = [region for region in REGIONS if region != complaint]
    first = others[random.integers(len(others))] if random.random() < _ASTRAY else complaint
    further = [region for region in REGIONS if region != first]
    watched = {first, further[random.integers(len(further))]} if random.random() < _FURTHER else {first}
    return tuple(region for region in REGIONS if region in watched)
