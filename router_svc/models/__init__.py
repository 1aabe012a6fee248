"""Model families: one file a model_type over shared parts; config.json in, ModelSpec and a forward out."""
