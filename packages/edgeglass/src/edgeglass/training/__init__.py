"""From a configuration to a trained model: losses, features, Lightning modules, the experiment."""
