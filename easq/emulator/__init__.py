"""What the cloud puts around a model: gateway, instances and discovery, to run clients against."""
