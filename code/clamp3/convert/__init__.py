"""Raw files -> what the models take."""
