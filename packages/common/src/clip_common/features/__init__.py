"""What a frozen tower yields, computed once: `FeatureCache(folder).image_features(bundle, paths)`."""

from clip_common.features.cache import FeatureCache
from clip_common.features.shards import FeatureCacheError

__all__ = ["FeatureCache", "FeatureCacheError"]
