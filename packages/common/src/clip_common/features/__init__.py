"""Features of frozen encoders, computed once: `FeatureCache(folder).features(bundle.image, paths)`."""

from clip_common.features.cache import FeatureCache
from clip_common.features.shards import FeatureCacheError

__all__ = ["FeatureCache", "FeatureCacheError"]
